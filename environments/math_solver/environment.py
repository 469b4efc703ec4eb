"""One user message asks, one assistant message answers.

Generated and file problems are answered in `\\boxed{...}` and judged by value; those of reasoning-gym between
`<answer>` and `</answer>`, since many answers are grids or lists of moves, and judged by the family's own scorer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from environments.math_solver import data, gym
from environments.math_solver.gym_verifier import GymVerifier
from rlvr import interfaces
from rlvr.errors import ConfigError
from rlvr.splits import tasks_of, tasks_of_file
from rlvr.types import Message, Split, Task
from verifiers.math import MathVerifier, parse
from verifiers.tokens import ParseError

INSTRUCTION = " Answer in \\boxed{}."
GYM_INSTRUCTION = "\n\nWrite the final answer, and nothing else, between <answer> and </answer>."

Level = Annotated[int, Field(ge=min(data.LEVELS), le=max(data.LEVELS))]


class MathSettings(interfaces.EnvironmentSettings):
    """The `settings` table of this environment."""

    levels: tuple[Level, ...] = Field((1,), min_length=1, description="difficulties to draw from, 1 to 3")
    seed: int = 0
    path: str | None = Field(None, description="JSONL file of problems, in place of generated ones")
    num_train: PositiveInt | None = Field(None, description="default: endless, or all of the file's")
    num_held_out: PositiveInt = Field(512, description="generated ones are distinct; of a file, at most so many")
    families: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="of reasoning-gym, with their options; a list of names takes the defaults"
    )

    @field_validator("families", mode="before")
    @classmethod
    def _by_name(cls, families: Any) -> Any:
        return {name: {} for name in families} if isinstance(families, list | tuple) else families

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.families and self.path is not None:
            raise ValueError("path and families are two sources of problems; give one of them")
        for family, options in self.families.items():
            gym.check_family(family, options)
        return self


class MathSolver(interfaces.Environment):
    """Generated problems, endless for training; or those of `settings.path`, or of `settings.families`."""

    name = "math_solver"
    summary = "arithmetic, your own problems, and the families of reasoning-gym"
    Settings = MathSettings
    settings: MathSettings

    def tasks(self, split: Split) -> Iterable[Task]:
        if self.settings.path is not None:
            return self._from_file(self.settings.path, split)
        if self.settings.families:
            return self._from_gym(split)
        return self._generated(split)

    def verifier(self) -> interfaces.Verifier:
        return GymVerifier() if self.settings.families else MathVerifier()

    def gold(self, task: Task) -> Sequence[Message]:
        if "family" in task.reference:
            if task.reference["answer"] is None:
                raise ConfigError(f"reasoning-gym tells no answer to tasks of its family {task.reference['family']!r}")
            return (Message(role="assistant", content=f"<answer>{task.reference['answer']}</answer>"),)
        return (Message(role="assistant", content=f"\\boxed{{{task.reference['answer']}}}"),)

    def worked_examples(self, seed: int) -> Iterator[tuple[tuple[Message, ...], Message]]:
        """Endless pairs of prompt and answer to learn from before any reward: generated training problems only.

        They are of uneven quality on purpose: some work the answer out, the others estimate and are mostly wrong.
        With `path` they are what its problems are learned from, for these are answered in the same way; with
        `families` there are none.
        """
        if self.settings.families:
            return
        rng = random.Random(f"{seed}/worked")
        for problem in data.generate(seed, self.settings.levels, "train"):
            thought, answer = data.worked_thought(problem, rng)
            yield _prompt(problem), Message(role="assistant", thinking=thought, content=f"\\boxed{{{answer}}}")

    def _generated(self, split: Split) -> Iterator[Task]:
        settings = self.settings
        return tasks_of(
            data.generate(settings.seed, settings.levels, split),
            partial(self._task, split),
            split=split,
            num_train=settings.num_train,
            num_held_out=settings.num_held_out,
            source=f"{self.name}: levels {settings.levels}",
        )

    def _from_file(self, path: str, split: Split) -> Sequence[Task]:
        return tasks_of_file(
            _readable(path),
            partial(self._task, split),
            split=split,
            limit=self.settings.num_train if split == "train" else self.settings.num_held_out,
            source=f"{self.name}: {path}",
        )

    def _from_gym(self, split: Split) -> Iterator[Task]:
        """The families in turn; one that has no new problems is left out, and with the last one the split ends."""
        settings = self.settings
        limit = settings.num_train if split == "train" else settings.num_held_out
        streams = {
            family: gym.problems(family, options, seed=settings.seed, split=split)
            for family, options in settings.families.items()
        }
        number = 0
        while streams:
            for family, stream in list(streams.items()):
                problem = next(stream, None)
                if problem is None:
                    del streams[family]
                    continue
                yield self._gym_task(split, number, problem)
                number += 1
                if number == limit:
                    return

    def _gym_task(self, split: Split, key: int, problem: gym.Problem) -> Task:
        return Task(
            id=f"{self.name}/{split}/{problem.family}-{key}",
            environment=self.name,
            prompt=(Message(role="user", content=problem.question.strip() + GYM_INSTRUCTION),),
            reference=problem.reference(),
            level=problem.family,
            seed=key,
        )

    def _task(self, split: Split, key: int, problem: data.Problem) -> Task:
        return Task(
            id=f"{self.name}/{split}/{key}",
            environment=self.name,
            prompt=_prompt(problem),
            reference={"answer": problem.answer},
            level=problem.level,
            seed=key,
        )


def _prompt(problem: data.Problem) -> tuple[Message, ...]:
    return (Message(role="user", content=problem.text + INSTRUCTION),)


def _readable(path: str) -> Iterator[tuple[int, data.Problem]]:
    """The file's problems, each with an answer that the verifier can read. Raises `ConfigError`."""
    for line, problem in data.read_jsonl(path):
        try:
            parse(problem.answer)
        except ParseError as error:
            raise ConfigError(
                f"{path}, line {line}: 'answer' = {problem.answer!r} cannot be judged ({error}); write a number, a "
                "formula, an equation, an interval, a list or a set, in LaTeX or plain (docs/verifiers.md)"
            ) from None
        yield line, problem
