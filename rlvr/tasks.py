"""The mixture: which environment asks next, which of its tasks, under which budget. Its position is one small value."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlvr.config import EnvironmentSection
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment
from rlvr.types import Budget, Split, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One draw from the mixture. `number` counts draws from 0, so a task that comes again has another ticket."""

    number: int
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a mixture stands: all that a resumed run needs to draw the same tickets again."""

    next_number: int
    taken: dict[str, int]


class Mixture:
    """Draws tickets for ever; what ticket `n` is depends on the seed and `n` alone, so a resumed run draws the same."""

    def __init__(
        self,
        members: Sequence[tuple[EnvironmentSection, Environment]],
        *,
        seed: int,
        position: Position | None = None,
    ) -> None:
        self._members = {environment.name: (section, environment) for section, environment in members}
        self._seed = seed
        self._next_number = position.next_number if position else 0
        self._taken = dict.fromkeys(self._members, 0) | (position.taken if position else {})
        self._streams = {
            name: itertools.islice(_endless(environment), self._taken[name], None)
            for name, (_, environment) in self._members.items()
        }

    @property
    def position(self) -> Position:
        """Goes into every checkpoint."""
        return Position(next_number=self._next_number, taken=dict(self._taken))

    def draw(self) -> Ticket:
        """The next ticket. Raises `ConfigError` for an environment without training tasks."""
        rng = random.Random(f"{self._seed}/{self._next_number}")
        names = list(self._members)
        name = rng.choices(names, [section.weight for section, _ in self._members.values()])[0]
        section, _ = self._members[name]
        task = with_budget(next(self._streams[name]), section, rng)
        ticket = Ticket(number=self._next_number, task=task)
        self._next_number += 1
        self._taken[name] += 1
        return ticket


def with_budget(task: Task, section: EnvironmentSection, rng: random.Random) -> Task:
    """The task under the limits that the config gives its environment, one thinking budget drawn for it."""
    thinking = rng.choice(section.thinking_tokens)
    budget = Budget(
        thinking_tokens=None if thinking == "unlimited" else thinking,
        completion_tokens=section.completion_tokens,
        turns=section.turns,
        tool_calls=section.tool_calls,
        seconds=section.seconds,
    )
    return dataclasses.replace(task, budget=budget)


def held_out(members: Sequence[tuple[EnvironmentSection, Environment]], *, num_tasks: int) -> list[Task]:
    """The first held-out tasks of every environment, shared out by weight, each under its most generous budget."""
    total = sum(section.weight for section, _ in members)
    chosen: list[Task] = []
    for section, environment in members:
        count = max(1, round(num_tasks * section.weight / total))
        generous = max(section.thinking_tokens, key=lambda tokens: float("inf") if tokens == "unlimited" else tokens)
        generous_section = section.model_copy(update={"thinking_tokens": (generous,)})
        tasks = list(itertools.islice(environment.tasks("held_out"), count))
        if not tasks:
            raise ConfigError(f"environment {section.name!r} has no held-out tasks; evaluation needs some")
        chosen.extend(with_budget(task, generous_section, random.Random(0)) for task in tasks)
    return chosen


def _endless(environment: Environment, split: Split = "train") -> Iterator[Task]:
    while True:
        empty = True
        for task in environment.tasks(split):
            yield task
            empty = False
        if empty:
            raise ConfigError(f"environment {environment.name!r} has no {split} tasks")
