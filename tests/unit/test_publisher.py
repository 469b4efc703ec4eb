"""A learner that is blocked in a group of engines can leave it, meet them anew and send the same version whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rlvr.errors import DeadlineExceeded, WeightSyncError
from rlvr.learner.publisher import NcclPublisher
from rlvr.weights import DRAFT_PREFIX, fingerprints, part_of
from rlvr.weights import checksums as checksums_of
from tests.fake_cuda import FakeStream, pretend

NAMES = ("model.a", "model.b", f"{DRAFT_PREFIX}0.c")
PARAMETERS = [(name, torch.nn.Parameter(torch.full((3,), float(i)))) for i, name in enumerate(NAMES)]
for _, _parameter in PARAMETERS:
    _parameter.ds_tensor = torch.cat([_parameter.detach(), torch.zeros(1)])  # a share, padded, as under ZeRO-3
SENT = [parameter.detach().numpy().tobytes() for _, parameter in PARAMETERS]
VLLM = "vllm.distributed.weight_transfer"


class FakeGroup:
    """A communicator, to its sender. From bucket number `stops_at` on nobody receives, or it raises `error`."""

    def __init__(self, stops_at: int | None = None, error: Exception | None = None) -> None:
        self.received: list[bytes] = []
        self.destroyed = False
        self._stops_at, self._error, self._asked = stops_at, error, 0

    def broadcast(self, tensor: torch.Tensor, *, src: int, stream: FakeStream | None = None) -> None:
        assert src == 0
        if len(self.received) != self._stops_at:
            self.received.append(tensor.numpy().tobytes())
        elif self._error is not None:
            raise self._error
        self._asked += 1

    def over(self) -> bool:
        """Whether what was asked of it is done, or nobody does it any more."""
        return self.destroyed or self._asked == len(self.received)

    def destroy(self) -> None:
        self.destroyed = True


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NcclPublisher]:
    """A publisher that has met a group; only the calls to CUDA and NCCL are replaced."""

    groups: list[FakeGroup] = []
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    monkeypatch.setattr(f"{VLLM}.nccl_common.stateless_init_process_group", lambda *_: groups[-1])
    monkeypatch.setattr("rlvr.learner.publisher.BROADCAST_BYTES", 1)  # so that each tensor is a bucket
    pretend(monkeypatch, lambda: all(group.over() for group in groups))

    def meet(group: FakeGroup, publisher: NcclPublisher | None = None, *, partitioned: bool = False) -> NcclPublisher:
        publisher = publisher or NcclPublisher(PARAMETERS, stream, rank=0, partitioned=partitioned)
        groups.append(group)
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
    assert publisher.send() == published()
    with pytest.raises(DeadlineExceeded, match="the engines to receive what the learner sends"):
        publisher.wait(0.01)
    publisher.abandon()
    meet(whole, publisher)
    publisher.offer(3)
    assert publisher.send() == published()
    publisher.wait(30)
    assert whole.received == SENT


def test_what_outlives_its_group_is_waited_for_before_another_is_met(
    meet: Callable[..., NcclPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvr.learner.publisher.ABANDON_SECONDS", 0.01)
    publisher = meet(FakeGroup(stops_at=1))
    publisher.send()
    with pytest.raises(DeadlineExceeded, match="the learner's sending to end with its group"):
        meet(FakeGroup(), publisher)


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_sender_that_fails_says_so(partitioned: bool, meet: Callable[..., NcclPublisher]) -> None:
    publisher = meet(FakeGroup(stops_at=2, error=RuntimeError("NCCL error")), partitioned=partitioned)
    with pytest.raises(WeightSyncError, match="could not send its weights: RuntimeError\\('NCCL error'\\)"):
        publisher.send()


def test_a_rank_that_cannot_send_still_gathers_to_the_end_with_the_others(meet: Callable[..., NcclPublisher]) -> None:
    publisher = meet(FakeGroup(stops_at=0, error=RuntimeError("NCCL error")), partitioned=True)
    with pytest.raises(WeightSyncError, match="NCCL error"):
        publisher.send()
    assert list(NAMES) == STREAMED
    whole = FakeGroup()
    assert meet(whole, publisher).send() == published()
    assert whole.received == SENT


@pytest.mark.parametrize("error", [None, RuntimeError("NCCL error")])
def test_two_ranks_gather_every_bucket_whether_it_can_be_sent_or_not(
    error: Exception | None, meet: Callable[..., NcclPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the other one would wait for this one."""
    other: list[torch.Tensor] = []  # shares of rank 1, of which the last element is padding
    for _, parameter in PARAMETERS:
        whole = parameter.detach()
        monkeypatch.setattr(parameter, "ds_tensor", whole[:2].clone())
        other.append(torch.cat([whole[2:], torch.ones(1)]).view(torch.uint8))

    def gather(output: torch.Tensor, mine: torch.Tensor) -> None:
        output.copy_(torch.cat([mine, other.pop(0)]))

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", gather)
    group = FakeGroup(stops_at=0 if error else None, error=error)
    publisher = meet(group, partitioned=True)
    with contextlib.nullcontext() if error is None else pytest.raises(WeightSyncError, match="NCCL error"):
        assert publisher.send() == published()
    assert other == []
    assert group.received == ([] if error else SENT)


def published() -> Any:
    sums = fingerprints()
    for name, parameter in PARAMETERS:
        sums[part_of(name)].add(name, parameter)
    return checksums_of(sums)
