"""Sends each call to the engine that holds the episode's prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from rlvr.types import Completion, SamplingParams

EngineCall = Callable[[Sequence[int], SamplingParams], Awaitable[Completion]]
# A group forgotten too early only loses its prefix cache.
_GROUPS_REMEMBERED = 10_000


class Router:
    """A `Sampler` over several engines. A group stays with the engine that was least busy when it first called."""

    def __init__(self, engines: Sequence[EngineCall]) -> None:
        self._engines = tuple(engines)
        self._running = [0] * len(self._engines)
        self._home: OrderedDict[str, int] = OrderedDict()

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        """As `rlvr.interfaces.Sampler`."""
        if group not in self._home:
            self._home[group] = min(range(len(self._engines)), key=self._running.__getitem__)
        self._home.move_to_end(group)
        if len(self._home) > _GROUPS_REMEMBERED:
            self._home.popitem(last=False)
        index = self._home[group]
        self._running[index] += 1
        try:
            return await self._engines[index](prompt_ids, params)
        finally:
            self._running[index] -= 1
