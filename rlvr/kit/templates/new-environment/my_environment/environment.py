"""What is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files

from pydantic import Field, PositiveInt
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.types import Message, Split, Task

from my_environment.verifier import MyVerifier

INSTRUCTION = "\nEnd with a line of the form 'answer: N'."
HELD_OUT_EVERY = 4


class MySettings(EnvironmentSettings):
    """The `settings` table of this environment in a config."""

    num_tasks: PositiveInt | None = Field(None, description="of each split; default: all there are")


class MyEnvironment(Environment):
    """One question, one answer. For several turns write `reset` and `step` as well."""

    name = "my_environment"
    summary = "how many letters a word has"
    Settings = MySettings
    settings: MySettings

    def tasks(self, split: Split) -> Sequence[Task]:
        tasks = [
            Task(
                id=f"{self.name}/{split}/{number}",
                environment=self.name,
                prompt=(Message(role="user", content=problem["question"] + INSTRUCTION),),
                reference={"answer": problem["answer"]},
            )
            for number, problem in _problems()
            if _split_of(problem["question"]) == split
        ]
        return tasks[: self.settings.num_tasks]

    def verifier(self) -> MyVerifier:
        return MyVerifier()

    def gold(self, task: Task) -> Sequence[Message]:
        return (Message(role="assistant", content=f"answer: {task.reference['answer']}"),)


def _problems() -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and problem; the number stays a task's key when lines are added at the end."""
    text = (files("my_environment") / "data" / "problems.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, json.loads(line)


def _split_of(question: str) -> Split:
    """By the text alone, so that no question can stand in both splits."""
    digest = hashlib.sha256(question.encode()).digest()
    return "held_out" if digest[0] % HELD_OUT_EVERY == 0 else "train"
