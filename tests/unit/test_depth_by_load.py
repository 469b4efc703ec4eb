"""An engine's own times make its draft schedule. vLLM is played by a fake whose steps cost what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rlvr.errors import RlvrError
from rlvr.inference.depth_by_load import DepthByLoad
from rlvr.inference.draft_schedule import DraftSchedule

LENGTH = 64


class FakeVllm:
    """Answers as `rlvr.inference.vllm_scheduler` does: a step of n requests with d drafts each takes `seconds(n, d)`.

    More than `room` requests never run in one step. A request ends by itself after `lasting` seconds, or in `error`.
    """

    def __init__(
        self,
        seconds: Callable[[int, int], float],
        *,
        room: int = 64,
        lasting: float = 60.0,
        error: Exception | None = None,
    ) -> None:
        self._seconds, self._room, self._lasting, self._error = seconds, room, lasting, error
        self.engine_core = self
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 100)
        self.schedules: list[DraftSchedule] = []
        self.timed: list[int] = []
        self.running = self.most_running = 0

    async def call_utility_async(self, name: str, method: str, arguments: Sequence[Any]) -> Any:
        assert name == "rlvr_call_scheduler"
        if method == "set_schedule":
            self.schedules.append(arguments[0])
        elif method == "time_steps":
            assert self.running == 0, "requests of the size before would be timed with these"
            self.timed.append(arguments[0])
        elif method == "step_seconds":
            ((_, _, depth),) = self.schedules[-1]
            seconds = self._seconds(self.timed[-1], depth)
            # One of them is slow, as a first step is.
            return [100.0, *[seconds] * 19] if self.running == self.timed[-1] <= self._room else []
        return None

    async def generate(self, prompt_ids: Sequence[int], **params: Any) -> None:
        assert len(prompt_ids) + params["max_tokens"] == LENGTH
        assert all(0 <= token < 100 for token in prompt_ids)
        if self._error is not None:
            raise self._error
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self._lasting)
        finally:
            self.running -= 1


def depth_by_load(vllm: FakeVllm, *, num_draft_tokens: int = 1, max_num_seqs: int = 16) -> DepthByLoad:
    return DepthByLoad(vllm, num_draft_tokens=num_draft_tokens, max_num_seqs=max_num_seqs, max_model_len=LENGTH)


async def test_every_size_is_timed_at_every_depth_and_the_schedule_made_of_it_used() -> None:
    vllm = FakeVllm(lambda size, depth: 1.0 + depth * (0.1 if size < 16 else 0.9))
    depths = depth_by_load(vllm, num_draft_tokens=2)
    await depths.measure(vllm.generate)
    assert vllm.timed == [1, 1, 1, 4, 4, 4, 16, 16, 16, 0]
    assert vllm.schedules[:-1] == [((1, 16, depth),) for _ in range(3) for depth in range(3)]
    assert depths.costs == {1: (1.0, 1.1, 1.2), 4: (1.0, 1.1, 1.2), 16: (1.0, 1.9, 2.8)}
    assert depths.depths == {1: 2, 4: 2, 16: 0}
    assert vllm.schedules[-1] == ((1, 8, 2), (9, 16, 0))
    assert vllm.most_running == 16
    assert vllm.running == 0


async def test_the_schedule_moves_with_the_drafts_accepted() -> None:
    vllm = FakeVllm(lambda size, depth: 1.0 + depth * (0.1 if size < 16 else 0.6))
    depths = depth_by_load(vllm)
    await depths.measure(vllm.generate)
    assert vllm.schedules[-1] == ((1, 16, 1),)
    depths.count([(1, 0)] * 700 + [(1, 1)] * 300)
    await depths.choose()
    assert vllm.schedules[-1] == ((1, 8, 1), (9, 16, 0))
    depths.count([(1, 1)] * 2000)
    await depths.choose()
    assert vllm.schedules[-1] == ((1, 16, 1),)


async def test_a_size_that_the_cache_cannot_hold_is_left_out() -> None:
    vllm = FakeVllm(lambda size, depth: 1.0, room=8, lasting=0.5)
    depths = depth_by_load(vllm)
    await depths.measure(vllm.generate)
    assert set(depths.costs) == {1, 4}
    assert vllm.schedules[-1] == ((1, 4, 1),)


async def test_where_nothing_could_be_timed_the_error_says_what_to_change() -> None:
    vllm = FakeVllm(lambda size, depth: 1.0, room=0, lasting=0.2)
    with pytest.raises(RlvrError, match=r"max_model_len = 64; raise it, or give a schedule"):
        await depth_by_load(vllm).measure(vllm.generate)


async def test_a_request_that_fails_ends_the_measurement_with_its_own_error() -> None:
    vllm = FakeVllm(lambda size, depth: 1.0, error=RuntimeError("the engine is dead"))
    with pytest.raises(RuntimeError, match="the engine is dead"):
        await depth_by_load(vllm).measure(vllm.generate)
