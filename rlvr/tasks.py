"""The mixture: which environment asks next, which of its tasks, under which budget. Its position is one small value."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlvr.config_environment import EnvironmentSection
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment
from rlvr.plugins import make_environment
from rlvr.shares import level_weights, token_factors
from rlvr.types import Budget, Split, Task

_TOKENS_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An environment of the mixture. `levels` are the objects its curriculum draws from, one a difficulty."""

    section: EnvironmentSection
    environment: Environment
    levels: Mapping[str, Environment] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its tasks, metrics and records go by: the config's label, or the environment's own name."""
        return self.section.label or self.environment.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One draw from the mixture. `number` counts draws from 0, so a task that comes again has another ticket."""

    number: int
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a ticket: the share of its judged episodes that passed, and the tokens that were trained on."""

    number: int
    environment: str
    level: str
    pass_rate: float | None
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a mixture stands: all that a resumed run needs to draw the same tickets again.

    `taken` counts the tasks taken of each stream, `passed` holds the last pass rates of each, oldest first (a stream
    is an environment, or "environment/level"); `tokens` those trained on of each environment's last tasks. `settled`
    is what has come in since the shares were last moved.
    """

    next_number: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    passed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    settled: tuple[Settled, ...] = ()


def make_members(sections: Sequence[EnvironmentSection]) -> tuple[Member, ...]:
    """The environments that a config names, each with the levels of its curriculum. Raises `ConfigError`."""
    members = tuple(_member(section) for section in sections)
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"environments {names}: the mixture cannot tell {twice!r} from {twice!r}; give each a label of its own, as "
            f'in label = "{twice}_2", or name it once and add up the weights'
        )
    return members


def _member(section: EnvironmentSection) -> Member:
    environment = make_environment(section.name, section.settings)
    if section.curriculum is None:
        return Member(section=section, environment=environment)
    levels = list(dict.fromkeys(getattr(environment.settings, "levels", ())))
    if len(levels) < 2:
        raise ConfigError(
            f"environment {environment.name!r}: a curriculum needs two levels or more to choose from, and its setting "
            f"`levels` gives {levels}; list them in settings.levels, or remove the curriculum"
        )
    each = {str(level): make_environment(section.name, section.settings | {"levels": [level]}) for level in levels}
    return Member(section=section, environment=environment, levels=each)


class Mixture:
    """Draws tickets for ever. Ticket `n` depends on the seed, on `n`, and on what had settled when the shares were last
    moved: so a resumed run draws the same, and so does a synchronous run that is done again.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        seed: int,
        by: Literal["tasks", "tokens"] = "tasks",
        position: Position | None = None,
    ) -> None:
        position = position or Position()
        self._members = {member.name: member for member in members}
        self._seed = seed
        self._by = by
        self._next_number = position.next_number
        environments = dict(_streams(members))
        self._taken = dict.fromkeys(environments, 0) | position.taken
        self._passed = dict.fromkeys(environments, ()) | position.passed
        self._tokens = dict.fromkeys(self._members, ()) | position.tokens
        self._settled = list(position.settled)
        self._streams = {
            name: itertools.islice(_endless(environment), self._taken[name], None)
            for name, environment in environments.items()
        }

    @property
    def position(self) -> Position:
        """Goes into every checkpoint."""
        return Position(
            next_number=self._next_number,
            taken=dict(self._taken),
            passed=dict(self._passed),
            tokens=dict(self._tokens),
            settled=tuple(self._settled),
        )

    def draw(self) -> Ticket:
        """The next ticket. Raises `ConfigError` for an environment without training tasks."""
        rng = random.Random(f"{self._seed}/{self._next_number}")
        name = _choose(rng, self._weights())
        member = self._members[name]
        weights = self.level_weights(name)
        level = _choose(rng, weights) if weights else ""
        stream = f"{name}/{level}" if level else name
        task = with_budget(_labelled(_at_level(next(self._streams[stream]), level), member), member.section, rng)
        ticket = Ticket(number=self._next_number, task=task)
        self._next_number += 1
        self._taken[stream] += 1
        return ticket

    def settle(self, ticket: Ticket, *, pass_rate: float | None, num_tokens: int) -> None:
        """The group of this ticket was trained on, with so many tokens, or dropped; `None` where none was judged."""
        task = ticket.task
        self._settled.append(
            Settled(
                number=ticket.number,
                environment=task.environment,
                level=task.level,
                pass_rate=pass_rate,
                num_tokens=num_tokens,
            )
        )

    def move_shares(self) -> None:
        """Let the next draws know what has settled: once a step, so that they do not depend on which came first."""
        for one in sorted(self._settled, key=lambda settled: settled.number):
            member = self._members.get(one.environment)
            if member is None:
                continue  # a resumed run's config may have lost an environment
            self._tokens[one.environment] = (*self._tokens[one.environment], one.num_tokens)[-_TOKENS_WINDOW:]
            stream, curriculum = f"{one.environment}/{one.level}", member.section.curriculum
            if curriculum is not None and stream in self._passed and one.pass_rate is not None:
                self._passed[stream] = (*self._passed[stream], one.pass_rate)[-curriculum.window :]
        self._settled.clear()

    def level_weights(self, name: str) -> dict[str, float]:
        """Of an environment's curriculum, by level; empty without one."""
        member = self._members[name]
        if member.section.curriculum is None:
            return {}
        passed = {level: self._passed[f"{name}/{level}"] for level in member.levels}
        return level_weights(passed, floor=member.section.curriculum.floor)

    def _weights(self) -> dict[str, float]:
        weights = {name: member.section.weight for name, member in self._members.items()}
        if self._by == "tasks":
            return weights
        factors = token_factors({name: self._tokens[name] for name in self._members})
        return {name: weight * factors[name] for name, weight in weights.items()}


def with_budget(task: Task, section: EnvironmentSection, rng: random.Random) -> Task:
    """The task under the limits that the config gives its environment, one thinking budget drawn for it."""
    choices = section.thinking_tokens
    thinking = rng.choices(choices, [choice.weight for choice in choices])[0].tokens
    limits = {
        "thinking_tokens": thinking,
        "completion_tokens": section.completion_tokens,
        "turns": section.turns,
        "tool_calls": section.tool_calls,
        "seconds": section.seconds,
    }
    budget = Budget(
        **{name: None if limit == "unlimited" else limit for name, limit in limits.items()},  # type: ignore[arg-type]
        answer_tokens=section.answer_tokens,
        closing=section.closing,
        note=budget_note(section.tell_budget, limits | {"answer_tokens": section.answer_tokens}),
        over_budget=section.over_budget,
    )
    return dataclasses.replace(task, budget=budget)


def budget_note(tell: bool | str, limits: Mapping[str, Any]) -> str:
    """The line that tells the model its budget: the config's template, or the limits that there are."""
    if isinstance(tell, str):
        return tell.format(**limits)
    shown = ("thinking_tokens", "completion_tokens", "tool_calls")
    known = [f"{limits[name]} {name.replace('_', ' ')}" for name in shown if limits[name] != "unlimited"]
    return f"Budget: {', '.join(known)}." if tell and known else ""


def held_out(members: Sequence[Member], *, num_tasks: int) -> list[Task]:
    """The first held-out tasks of every environment, shared out by weight, each under its most generous budget."""
    chosen: list[Task] = []
    for member, count in zip(members, share_out(num_tasks, members), strict=True):
        section = member.section
        generous = max(
            section.thinking_tokens, key=lambda one: float("inf") if one.tokens == "unlimited" else one.tokens
        )
        section = section.model_copy(update={"thinking_tokens": (generous,)})
        tasks = list(itertools.islice(member.environment.tasks("held_out"), count))
        if not tasks:
            raise ConfigError(f"environment {member.name!r} has no held-out tasks; evaluation needs some")
        chosen.extend(with_budget(_labelled(task, member), section, random.Random(0)) for task in tasks)
    return chosen


def share_out(num_tasks: int, members: Sequence[Member]) -> list[int]:
    """How many of the tasks each member gets: by weight, and one at least."""
    total = sum(member.section.weight for member in members)
    return [max(1, round(num_tasks * member.section.weight / total)) for member in members]


def _streams(members: Sequence[Member]) -> Iterator[tuple[str, Environment]]:
    for member in members:
        name = member.name
        if member.section.curriculum is None:
            yield name, member.environment
        else:
            yield from ((f"{name}/{level}", environment) for level, environment in member.levels.items())


def _choose(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _at_level(task: Task, level: str) -> Task:
    if not level:
        return task
    # Each level numbers its own tasks: the level makes the id unique again.
    environment, split, key = task.id.split("/", 2)
    return dataclasses.replace(task, id=f"{environment}/{split}/level-{level}/{key}", level=level)


def _labelled(task: Task, member: Member) -> Task:
    if member.section.label is None:
        return task
    _, _, rest = task.id.partition("/")
    return dataclasses.replace(task, id=f"{member.name}/{rest}", environment=member.name)


def _endless(environment: Environment, split: Split = "train") -> Iterator[Task]:
    while True:
        empty = True
        for task in environment.tasks(split):
            yield task
            empty = False
        if empty:
            raise ConfigError(f"environment {environment.name!r} has no {split} tasks")
