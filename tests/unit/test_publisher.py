"""A learner that is blocked in a group of engines can leave it, meet them anew and send the same version whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rlvr.errors import DeadlineExceeded, WeightSyncError
from rlvr.learner.publisher import NcclPublisher
from rlvr.weights import DRAFT_PREFIX, fingerprints, part_of
from rlvr.weights import checksums as checksums_of

NAMES = ("model.a", "model.b", f"{DRAFT_PREFIX}0.c")
PARAMETERS = [(name, torch.nn.Parameter(torch.full((3,), float(i)))) for i, name in enumerate(NAMES)]
VLLM = "vllm.distributed.weight_transfer"


class FakeGroup:
    """What a communicator does to its sender: blocks it at tensor number `stops_at`, until it is destroyed."""

    def __init__(self, stops_at: int | None = None, error: Exception | None = None) -> None:
        self.received: list[str] = []
        self.blocked, self._destroyed = threading.Event(), threading.Event()
        self._stops_at, self._error = stops_at, error

    def receive(self, name: str) -> None:
        if len(self.received) == self._stops_at:
            self.blocked.set()
            if self._error is None:
                assert self._destroyed.wait(30), "nobody destroyed the group"
            raise self._error or RuntimeError("the group is gone")
        self.received.append(name)

    def destroy(self) -> None:
        self._destroyed.set()


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NcclPublisher]:
    """A publisher that has met a group; only the calls to CUDA and NCCL are replaced."""

    def produce(*, iterator: Iterator[tuple[str, torch.Tensor]], group: FakeGroup, **_: Any) -> None:
        for name, _tensor in iterator:
            group.receive(name)

    groups: list[FakeGroup] = []
    monkeypatch.setattr(f"{VLLM}.packed_tensor.packed_nccl_broadcast_producer", produce)
    monkeypatch.setattr(f"{VLLM}.nccl_common.stateless_init_process_group", lambda *_: groups[-1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def meet(group: FakeGroup, publisher: NcclPublisher | None = None, *, partitioned: bool = False) -> NcclPublisher:
        groups.append(group)
        publisher = publisher or NcclPublisher(PARAMETERS, stream, rank=0, partitioned=partitioned)
        publisher.connect(master_addr="here", master_port=1, num_engines=2)
        return publisher

    return meet


STREAMED: list[str] = []


def stream() -> Iterator[tuple[str, torch.Tensor]]:
    STREAMED.clear()
    for name, parameter in PARAMETERS:
        STREAMED.append(name)
        yield name, parameter.detach()


def test_a_sender_that_is_blocked_ends_with_its_group_and_the_version_goes_whole_through_the_next(
    meet: Callable[..., NcclPublisher],
) -> None:
    stuck, whole = FakeGroup(stops_at=1), FakeGroup()
    publisher = meet(stuck)
    publisher.offer(3)
    publisher.send()
    assert stuck.blocked.wait(30)
    with pytest.raises(DeadlineExceeded, match="the engines to receive what the learner sends"):
        publisher.wait(0.01)
    publisher.abandon()
    meet(whole, publisher)
    publisher.offer(3)
    assert publisher.send() == published()
    publisher.wait(30)
    assert whole.received == list(NAMES)


def test_a_sender_that_fails_says_so_before_the_weights_change(meet: Callable[..., NcclPublisher]) -> None:
    publisher = meet(FakeGroup(stops_at=2, error=RuntimeError("NCCL error")))
    publisher.send()
    with pytest.raises(WeightSyncError, match="could not send its weights: RuntimeError\\('NCCL error'\\)"):
        publisher.wait(30)


def test_a_rank_that_cannot_send_still_gathers_to_the_end_with_the_others(meet: Callable[..., NcclPublisher]) -> None:
    publisher = meet(FakeGroup(stops_at=0, error=RuntimeError("NCCL error")), partitioned=True)
    with pytest.raises(WeightSyncError, match="NCCL error"):
        publisher.send()
    assert list(NAMES) == STREAMED
    whole = FakeGroup()
    assert meet(whole, publisher).send() == published()
    assert whole.received == list(NAMES)


def published() -> Any:
    sums = fingerprints()
    for name, parameter in PARAMETERS:
        sums[part_of(name)].add(name, parameter)
    return checksums_of(sums)
