"""Plays many groups at once against the engines. A plain class; the controller makes it a Ray actor."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rlvr.interfaces import Environment, Sampler
from rlvr.plugins import make_environment
from rlvr.rollout.play import play
from rlvr.rollout.renderer import Renderer, Tokenizer
from rlvr.types import Group, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the controller asks of a worker: `group_size` episodes of one task.

    `ticket` numbers the draw within `series`, as `RunFolder.train_series`. Both go into the ids of the episodes, which
    differ in a whole run; their draws depend on `seed`, task and `ticket` alone, so a resumed run makes the same.
    `environment` is the place of the task's environment among the worker's: two may have one name.
    """

    series: str
    ticket: int
    task: Task
    environment: int
    group_size: int
    temperature: float
    birth_version: int
    seed: int


# The loop's own pool has four more than there are cores: slow verifiers, sandboxes and remote environments, which wait
# more than they compute, would queue there while their episodes' time runs.
NUM_THREADS = 64


class RolloutWorker:
    """Owns the environments' shared state, from `setup` to `close`."""

    def __init__(
        self,
        *,
        environments: Sequence[tuple[str, dict[str, Any]]],
        tokenizer: Tokenizer,
        sampler: Sampler,
        max_model_len: int,
    ) -> None:
        """`environments` are the config's names and settings."""
        self._renderer = Renderer(tokenizer)
        self._sampler = sampler
        self._max_model_len = max_model_len
        self._shared = [make_environment(name, settings) for name, settings in environments]
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="environment")
        for environment in self._shared:
            environment.setup()

    async def play(self, order: Order) -> Group:
        """All episodes of a task, at once. Raises what the engines raise; then no episode of it is left playing."""
        playing = [
            asyncio.ensure_future(
                play(
                    order.task,
                    episode_id=f"{order.task.id}@{order.series}.{order.ticket}#{index}",
                    environment=self._single_use(order.environment),
                    sampler=self._sampler,
                    renderer=self._renderer,
                    max_model_len=self._max_model_len,
                    temperature=order.temperature,
                    seed=f"{order.seed}/{order.task.id}@{order.ticket}#{index}",
                    threads=self._threads,
                )
            )
            for index in range(order.group_size)
        ]
        try:
            episodes = await asyncio.gather(*playing)
        finally:
            for episode in playing:
                episode.cancel()
        return Group(task=order.task, episodes=tuple(episodes), birth_version=order.birth_version)

    async def close(self) -> None:
        """End what `setup` began."""
        for environment in self._shared:
            await asyncio.to_thread(environment.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _single_use(self, place: int) -> Environment:
        # A shallow copy: an object of its own, with what `setup` made still shared.
        return copy.copy(self._shared[place])
