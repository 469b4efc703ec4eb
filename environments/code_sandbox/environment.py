"""A coding task is answered with Python; what the code does in the sandbox decides, and the model may try again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from environments.code_sandbox import feedback, files, generate
from environments.code_sandbox.problem import Problem
from rlvr import interfaces
from rlvr.errors import ConfigError
from rlvr.splits import mixed_levels, tasks_of, tasks_of_file
from rlvr.types import Message, Reply, Split, Task, Verdict
from sandbox.base import Limits
from verifiers.code import CodeVerifier

INSTRUCTION = "Answer with the code."
# How often a worked example of a level is thought through; the others are written down at once, and mostly wrong.
CAREFUL_SHARE = {1: 0.5, 2: 0.45, 3: 0.4}

Level = Annotated[int, Field(ge=min(generate.LEVELS), le=max(generate.LEVELS))]


class CodeSandboxSettings(interfaces.EnvironmentSettings):
    """The `settings` table of this environment."""

    levels: tuple[Level, ...] = Field((1,), min_length=1, description="difficulties to draw from, 1 to 3")
    kinds: tuple[Literal["function", "program"], ...] = Field(("function", "program"), min_length=1)
    seed: int = 0
    path: str | None = Field(None, description="JSONL file in the shape of HumanEval, MBPP or a contest")
    num_train: PositiveInt | None = Field(None, description="default: endless, or all of the file's")
    num_held_out: PositiveInt = Field(512, description="generated ones are distinct; of a file, at most so many")
    max_attempts: PositiveInt = Field(1, description="above 1 a failing attempt is told why, and may be made again")
    sandbox: Literal["auto", "docker", "bubblewrap"] = "auto"
    seconds: PositiveFloat = Field(10.0, description="of CPU and of wall time, where the task has no limit of its own")
    memory_megabytes: PositiveInt = 512


class CodeSandbox(interfaces.Environment):
    """Generated tasks, endless for training; or those of `settings.path`."""

    name = "code_sandbox"
    summary = "small Python tasks, run against hidden tests in the sandbox"
    Settings = CodeSandboxSettings
    settings: CodeSandboxSettings
    _task: Task
    _attempts: int

    def setup(self) -> None:
        """A machine without a sandbox stops the run here, and says what to install."""
        self.verifier()

    def tasks(self, split: Split) -> Iterable[Task]:
        if self.settings.path is not None:
            return self._from_file(self.settings.path, split)
        return self._generated(split)

    def verifier(self) -> CodeVerifier:
        settings = self.settings
        limits = Limits(
            wall_seconds=settings.seconds, cpu_seconds=settings.seconds, memory_bytes=settings.memory_megabytes << 20
        )
        return CodeVerifier(settings.sandbox, limits)  # one pool of boxes serves all verifiers of a process

    def reset(self, task: Task) -> Sequence[Message]:
        self._task, self._attempts = task, 0
        return task.prompt

    def step(self, message: Message) -> Reply:
        """The last attempt is left to the verdict; one before it is judged here, and told why it fails."""
        self._attempts += 1
        if self._attempts >= self.settings.max_attempts:
            return Reply(done=True)
        complaint = self._complaint(message)
        if complaint is None:
            return Reply(done=True)
        return Reply(messages=(Message(role="user", content=complaint),), done=False)

    def gold(self, task: Task) -> Sequence[Message]:
        if "solution" not in task.reference:
            raise ConfigError(f"task {task.id} has no solution in its file, and so no gold answer")
        return (Message(role="assistant", content=task.reference["solution"]),)

    def worked_examples(self, seed: int) -> Iterator[interfaces.WorkedExample]:
        """Training problems only, of uneven quality on purpose: some are thought through, the others mostly wrong."""
        rng = random.Random(f"{seed}/worked")
        for problem in self._draws(seed, "train"):
            code, thought = problem.solution, problem.plan
            if rng.random() > CAREFUL_SHARE[problem.level]:
                thought = "Just write it."
                code = rng.choice(problem.wrong) if problem.wrong and rng.random() < 0.85 else code
            yield interfaces.WorkedExample(
                _prompt(problem), Message(role="assistant", thinking=thought, content=code.rstrip("\n"))
            )

    def _complaint(self, message: Message) -> str | None:
        """Why the attempt fails, as far as the model may know; `None` where it passes."""
        reference, public = self._task.reference, self._task.reference["public"]
        if public:
            shown = dataclasses.replace(self._task, reference=feedback.public_reference(reference, public))
            verdict = self._verdict(shown, message)
            if verdict.outcome == "incorrect":
                return feedback.of_public(verdict)
        verdict = self._verdict(self._task, message)
        return feedback.of_hidden(verdict) if verdict.outcome == "incorrect" else None

    def _verdict(self, task: Task, message: Message) -> Verdict:
        verdict = self.verifier().verify(task, (*task.prompt, message))
        if verdict.outcome == "invalid":
            raise RuntimeError(f"an attempt could not be judged: {verdict.reason}")
        return verdict

    def _draws(self, seed: int, split: Split) -> Iterator[Problem]:
        settings = self.settings
        return mixed_levels(
            settings.levels,
            lambda level: generate.generate(seed, level, settings.kinds, split),
            seed=seed,
            split=split,
        )

    def _generated(self, split: Split) -> Iterator[Task]:
        settings = self.settings
        return tasks_of(
            self._draws(settings.seed, split),
            partial(self.task_of, split),
            split=split,
            num_train=settings.num_train,
            num_held_out=settings.num_held_out,
            source=f"{self.name}: levels {settings.levels}",
        )

    def _from_file(self, path: str, split: Split) -> Sequence[Task]:
        return tasks_of_file(
            files.read_jsonl(path),
            partial(self.task_of, split),
            split=split,
            limit=self.settings.num_train if split == "train" else self.settings.num_held_out,
            source=f"{self.name}: {path}",
        )

    def task_of(self, split: Split, key: int, problem: Problem) -> Task:
        gold = {"solution": problem.solution} if problem.solution else {}
        return Task(
            id=f"{self.name}/{split}/{key}",
            environment=self.name,
            prompt=_prompt(problem),
            reference={**problem.reference, **gold, "public": problem.public},
            level=str(problem.level) if problem.level else "",
            seed=key,
        )


def _prompt(problem: Problem) -> tuple[Message, ...]:
    return (Message(role="user", content=f"{problem.text.rstrip()}\n{INSTRUCTION}"),)
