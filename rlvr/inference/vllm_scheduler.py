"""vLLM's scheduler, with a draft depth by load that changes while the engine runs, and a clock for its steps.

vLLM imports this module in its engine core, where the scheduler lives, as the engine's `scheduler_cls`. A schedule of
depths is part of vLLM's configuration, expanded once to `dynamic_sd_lookup`: the depth by the number of requests in a
step. Another list in its place is all it takes, and samples stay exact, since the depth of a step only says how many
drafts the next one checks.

A worker extension does not reach the scheduler, because on the CPU the worker is another process. The engine core
answers to the names of its methods (`call_utility_async`), so it gets one here that passes a call on to the scheduler.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from rlvr.inference.draft_schedule import DraftSchedule


class _DepthByLoad:
    """Mixed in before one of vLLM's schedulers."""

    dynamic_sd_lookup: list[int]
    max_num_running_reqs: int
    num_spec_tokens: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.time_steps(0)

    def set_schedule(self, schedule: DraftSchedule) -> None:
        """From the next step on."""
        self.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
            list(schedule), self.max_num_running_reqs, self.num_spec_tokens
        )

    def depths(self) -> list[int]:
        """Tokens drafted, by the number of requests in a step; the first entry, for none, means nothing."""
        return self.dynamic_sd_lookup

    def time_steps(self, num_requests: int) -> None:
        """Time the steps that decode so many requests, all at one depth; 0: no more."""
        self._timed_size = num_requests
        self._last_step: tuple[int, float] | None = None  # its depth, and when it was scheduled
        self._seconds: list[float] = []

    def step_seconds(self) -> list[float]:
        """Of each step since `time_steps`, from the moment it was scheduled to when the next of its kind was."""
        return self._seconds

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        output = super().schedule(*arguments, **options)  # type: ignore[misc]
        if self._timed_size:
            self._note(output)
        return output

    def _note(self, output: Any) -> None:
        now = time.perf_counter()
        sizes, depth = output.num_scheduled_tokens.values(), output.num_spec_tokens_to_schedule
        # Every request brings its last token and a full set of drafts: none reads its prompt, or is near its end.
        if len(sizes) != self._timed_size or set(sizes) != {depth + 1}:
            self._last_step = None
            return
        if self._last_step is not None and self._last_step[0] == depth:
            self._seconds.append(now - self._last_step[1])
        self._last_step = depth, now


class _Synchronous(_DepthByLoad, Scheduler):
    pass


class _Asynchronous(_DepthByLoad, AsyncScheduler):
    pass


def make(vllm_config: Any, **arguments: Any) -> Scheduler:
    """Called as a class would be, since only vLLM's final configuration says which of the two it takes."""
    kind = _Asynchronous if vllm_config.scheduler_config.async_scheduling else _Synchronous
    return kind(vllm_config=vllm_config, **arguments)


def _call_scheduler(core: EngineCore, method: str, arguments: list[Any]) -> Any:
    return getattr(core.scheduler, method)(*arguments)


EngineCore.rlvr_call_scheduler = _call_scheduler
