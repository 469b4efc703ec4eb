"""`inference.draft_schedule = "auto"`: an engine times its own steps before it serves, and drafts by what it found.

Costs are measured once, by numbers of requests and depth; drafts accepted are counted as the run goes; at every weight
update the schedule is chosen anew from both (`rlvr.inference.draft_schedule`). Sampling stays exact, but runs of
one seed no longer repeat each other: the random numbers that a completion is drawn with depend on what was drafted for
it, and so, under any schedule, on the requests beside it, and under this one on the clock.

Under any schedule, given or measured, vLLM's V1 model runner gives up full CUDA graphs for piecewise ones; its V2
runner, which GPUs get, keeps them and captures each depth of the schedule that it is built with. What that costs is in
the measured times, which are those of the engine that serves.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from statistics import median
from typing import Any

from rlvr.errors import RlvrError
from rlvr.inference.draft_schedule import (
    Acceptance,
    DraftSchedule,
    StepCosts,
    as_schedule,
    best_depths,
    sizes_to_measure,
)

logger = logging.getLogger(__name__)

_STEPS = 16  # timed for a median
_FEWEST_STEPS = 3
_PROMPT_TOKENS = 256
_SECONDS_BETWEEN_LOOKS = 0.05

Generate = Callable[..., Awaitable[Any]]


class DepthByLoad:
    """The draft schedule of one engine. `generate(prompt_ids, **sampling_params)` runs a request in it."""

    def __init__(self, llm: Any, *, num_draft_tokens: int, max_num_seqs: int, max_model_len: int) -> None:
        self._llm = llm
        self._num_draft_tokens, self._max_num_seqs, self._max_model_len = num_draft_tokens, max_num_seqs, max_model_len
        self._acceptance = Acceptance(num_draft_tokens)
        self.costs: StepCosts = {}
        self.depths: dict[int, int] = {}  # by the numbers of requests in `costs`

    async def measure(self, generate: Generate) -> None:
        """Time steps at every depth, and choose by the prior. Raises `RlvrError` where nothing could be timed."""
        costs = {}
        for size in sizes_to_measure(self._max_num_seqs):
            seconds = [await self._time(generate, size, depth) for depth in range(self._num_draft_tokens + 1)]
            # So many never run at once where the cache is too small for them: then no depth is needed either.
            if all(len(steps) >= _FEWEST_STEPS for steps in seconds):
                costs[size] = tuple(map(median, seconds))
        await self._call("time_steps", 0)
        if not costs:
            raise RlvrError(
                f"inference.draft_schedule = 'auto': no step could be timed with inference.max_model_len = "
                f"{self._max_model_len}; raise it, or give a schedule, as in [[1, 64, 1], [65, 512, 0]]"
            )
        self.costs, self.depths = costs, dict.fromkeys(costs, self._num_draft_tokens)
        await self.choose()

    def count(self, steps: Iterable[tuple[int, int]]) -> None:
        """Tokens drafted and accepted in each step of a finished request."""
        self._acceptance.add(steps)

    async def choose(self) -> None:
        """Draft by costs and acceptance as they are known now."""
        self.depths = best_depths(self.costs, self._acceptance.rates(), self.depths)
        self._acceptance.fade()
        await self.use(as_schedule(self.depths))

    async def use(self, schedule: DraftSchedule) -> None:
        """Draft by this schedule until the next choice."""
        logger.info("drafts by running requests: %s", schedule)
        await self._call("set_schedule", schedule)

    async def in_use(self) -> list[int]:
        """The depth by the number of running requests, from 1 on, as the scheduler has it."""
        table: list[int] = await self._call("depths")
        return table[1:]

    async def _time(self, generate: Generate, size: int, depth: int) -> list[float]:
        """Seconds of steps of `size` requests that sample as the run's do, until there are enough or they end."""
        await self._call("set_schedule", ((1, self._max_num_seqs, depth),))
        await self._call("time_steps", size)
        length = min(_PROMPT_TOKENS, self._max_model_len // 2)
        vocabulary_size = self._llm.model_config.get_vocab_size()

        def request(index: int) -> Awaitable[Any]:
            prompt = random.Random(index).choices(range(vocabulary_size), k=length)
            max_tokens = self._max_model_len - length
            return generate(prompt, max_tokens=max_tokens, temperature=1.0, seed=index, logprobs=0, ignore_eos=True)

        running = [asyncio.ensure_future(request(index)) for index in range(size)]
        try:
            while any(not request.done() for request in running):
                await asyncio.wait(running, timeout=_SECONDS_BETWEEN_LOOKS)
                for ended in filter(asyncio.Future.done, running):
                    ended.result()  # raises what it ended with
                if len(await self._call("step_seconds")) >= _STEPS:
                    break
            seconds: list[float] = await self._call("step_seconds")
            return seconds
        finally:
            for left in running:
                left.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """A method of `rlvr.inference.vllm_scheduler`, in vLLM's engine core."""
        return await self._llm.engine_core.call_utility_async("rlvr_call_scheduler", method, arguments)
