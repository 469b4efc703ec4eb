"""The environment under the conformance kit, and how the kit plays its episodes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlvr.errors import PluginError, RlvrError
from rlvr.interfaces import Environment
from rlvr.kit.scripted import Script, ScriptedSampler, renderer, say
from rlvr.kit.threads import FreshThreads
from rlvr.plugins import make_environment
from rlvr.rollout.play import play
from rlvr.rollout.renderer import Renderer
from rlvr.types import Budget, Episode, Message, Split, Task

# Static checks read more tasks than are played.
READ_FACTOR = 10
_CONCURRENCY = 8
_MAX_MODEL_LEN = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`read` holds the first tasks of each split; `tasks` are those that are played, half of each split."""

    name: str
    settings: dict[str, Any]
    environment: Environment
    read: dict[Split, tuple[Task, ...]]
    tasks: tuple[Task, ...]
    seconds: float
    threads: FreshThreads

    @property
    def has_own_step(self) -> bool:
        return type(self.environment).step is not Environment.step

    def gold(self, task: Task) -> tuple[Message, ...]:
        return tuple(self.environment.gold(task))

    def single_use(self) -> Environment:
        """As a worker gives it to an episode."""
        return copy.copy(self.environment)

    async def play(
        self, task: Task, script: Script, *, environment: Environment | None = None, drawn: Renderer | None = None
    ) -> Episode:
        """One real episode, on an environment of its own."""
        return await play(
            task,
            episode_id=f"{task.id}@check",
            environment=environment or self.single_use(),
            sampler=ScriptedSampler(script),
            renderer=drawn or renderer(),
            max_model_len=_MAX_MODEL_LEN,
            temperature=1.0,
            seed=0,
        )

    async def play_all(self, attempts: Iterable[tuple[Task, Script]]) -> list[Episode]:
        """Episodes side by side, a few at once; in the order of the attempts."""
        limit = asyncio.Semaphore(_CONCURRENCY)

        async def one(task: Task, script: Script) -> Episode:
            async with limit:
                return await self.play(task, script)

        return list(await asyncio.gather(*(one(task, script) for task, script in attempts)))

    async def play_golds(self, tasks: Sequence[Task]) -> list[Episode]:
        return await self.play_all((task, say(*self.gold(task))) for task in tasks)


def transcript(episode: Episode) -> tuple[Message, ...]:
    """All messages of an episode, as its verifier saw them."""
    messages = list(episode.task.prompt)
    for turn in episode.turns:
        messages += [turn.message, *turn.reply.messages]
    return tuple(messages)


@contextlib.contextmanager
def open_subject(
    name: str, settings: dict[str, Any], *, num_tasks: int, seconds: float, max_turns: int
) -> Iterator[Subject]:
    """Make the environment, set it up, read its tasks; close it at the end.

    Raises `PluginError` where it cannot get so far.
    """
    environment = make_environment(name, settings)
    with _blame(name, "setup()"):
        environment.setup()
    try:
        read = {split: _read(name, environment, split, num_tasks * READ_FACTOR) for split in _SPLITS}
        num_held_out = min(num_tasks // 2, len(read["held_out"]))
        chosen = read["train"][: num_tasks - num_held_out] + read["held_out"][:num_held_out]
        budget = Budget(turns=max_turns, seconds=seconds)
        yield Subject(
            name=name,
            settings=settings,
            environment=environment,
            read=read,
            tasks=tuple(dataclasses.replace(task, budget=budget) for task in chosen),
            seconds=seconds,
            threads=FreshThreads(),
        )
    finally:
        with _blame(name, "close()"):
            environment.close()


_SPLITS: tuple[Split, ...] = ("train", "held_out")


def _read(name: str, environment: Environment, split: Split, count: int) -> tuple[Task, ...]:
    with _blame(name, f"tasks({split!r})"):
        tasks = tuple(islice(environment.tasks(split), count))
    for task in tasks:
        if not isinstance(task, Task):
            raise PluginError(f"environment {name!r}: tasks({split!r}) yields {task!r}, not an rlvr.types.Task")
    if not tasks:
        raise PluginError(f"environment {name!r}: tasks({split!r}) is empty; both splits need tasks")
    return tasks


@contextlib.contextmanager
def _blame(name: str, call: str) -> Iterator[None]:
    try:
        yield
    except RlvrError:
        raise
    except Exception as error:
        raise PluginError(f"environment {name!r}: {call} raised {error!r}") from error
