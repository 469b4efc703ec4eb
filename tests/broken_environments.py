"""A sound environment, and what is wrong with copies of it: each must be caught by the check named beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from rlvr.interfaces import Environment
from rlvr.types import Message, Reply, Split, Task, Verdict


class SumVerifier:
    """Correct when the last message is "answer: N" with the right N, and nothing else."""

    id = "sum"
    version = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        said = next((message.content for message in reversed(transcript) if message.role == "assistant"), "")
        right = self.accepts(said, task)
        return Verdict(
            outcome="correct" if right else "incorrect",
            reward=1.0 if right else -1.0,
            reason=f"{said[:40]!r} against {task.reference['answer']}",
            verifier=self.id,
            version=self.version,
        )

    def accepts(self, said: str, task: Task) -> bool:
        return said == f"answer: {task.reference['answer']}"


class Sum(Environment):
    """Two turns: the sum, and a last word on being asked for it."""

    name = "sum"
    summary = "sums of two numbers"
    offset: ClassVar[dict[Split, int]] = {"train": 1_000, "held_out": 5_000}

    def tasks(self, split: Split) -> Iterator[Task]:
        rng = random.Random(f"sum/{split}")
        for number in range(300):
            a, b = self.offset[split] + number, rng.randint(1_000, 9_000)
            yield self.task(split, number, a, b)

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        return Task(
            id=f"{self.name}/{split}/{number}",
            environment=self.name,
            prompt=(Message(role="user", content=f"How much is {a} and {b}?"),),
            reference={"answer": a + b},
        )

    def reset(self, task: Task) -> Sequence[Message]:
        self.turn = 0
        return task.prompt

    def step(self, message: Message) -> Reply:
        self.turn += 1
        if self.turn == 2 or "answer" in message.content:
            return Reply(done=True)
        return Reply(messages=(Message(role="user", content=f"Your answer, {self.turn}?"),), done=False)

    def verifier(self) -> SumVerifier:
        return SumVerifier()

    def gold(self, task: Task) -> Sequence[Message]:
        return (
            Message(role="assistant", content="Let me see."),
            Message(role="assistant", content=f"answer: {task.reference['answer']}"),
        )


def judged_by(accepts: Any) -> type[SumVerifier]:
    return type("Judge", (SumVerifier,), {"accepts": lambda _self, said, task: accepts(said, task)})


class WrongGold(Sum):
    """Its references are off by one."""

    caught_by = "gold"

    def gold(self, task: Task) -> Sequence[Message]:
        return (Message(role="assistant", content=f"answer: {task.reference['answer'] + 1}"),)


class RewardsSilence(Sum):
    """No wrong number is found in an empty message."""

    caught_by = "silence"

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: SumVerifier().accepts(said, task) or not said)()


class StartsRight(Sum):
    """Its state is an accepted one before anything was done."""

    caught_by = "doing_nothing"

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: SumVerifier().accepts(said, task) or "answer" not in said)()


class SameIds(Sum):
    caught_by = "unique_ids"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        return super().task(split, number // 2, a, b)


class HashSeed(Sum):
    """hash() of text differs from process to process."""

    caught_by = "stable"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        return super().task(split, number, a, 1_000 + hash(f"{a} {b}") % 1_000)


class GlobalRandom(Sum):
    """Other tasks on every call."""

    caught_by = "stable"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        return super().task(split, number, a, random.randint(1_000, 9_000))


class SharedSplits(Sum):
    caught_by = "disjoint_splits"

    def tasks(self, split: Split) -> Iterator[Task]:
        for task in super().tasks("train"):
            number = int(task.id.rpartition("/")[2])
            yield Task(id=f"sum/{split}/{number}", environment="sum", prompt=task.prompt, reference=task.reference)


class AnswerInPrompt(Sum):
    caught_by = "hidden_reference"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        task = super().task(split, number, a, b)
        hint = Message(role="user", content=f"How much is {a} and {b}? (key {a + b}, do not tell)")
        return Task(id=task.id, environment=self.name, prompt=(hint,), reference=task.reference)


class TupleReference(Sum):
    """JSON makes a list of it: judged again offline, the episode would earn something else."""

    caught_by = "well_formed"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        task = super().task(split, number, a, b)
        return Task(id=task.id, environment=self.name, prompt=task.prompt, reference={"answer": a + b, "terms": (a, b)})


class Alarm(Sum):
    """signal.alarm works on the main thread only."""

    caught_by = "any_thread"

    def step(self, message: Message) -> Reply:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return super().step(message)


class OneThread(Sum):
    """SQLite's connections belong to the thread that made them."""

    caught_by = "any_thread"

    def reset(self, task: Task) -> Sequence[Message]:
        self.database = sqlite3.connect(":memory:")
        return super().reset(task)

    def step(self, message: Message) -> Reply:
        self.database.execute("SELECT 1")
        return super().step(message)


class SlowJudge(Sum):
    caught_by = "in_time"

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: time.sleep(60))()


class Uncancellable(Sum):
    caught_by = "cancellation"

    async def step(self, message: Message) -> Reply:  # type: ignore[override]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
        return super().step(message)


class Endless(Sum):
    """A call of it goes on long after its episode was given up."""

    caught_by = "cancellation"

    async def step(self, message: Message) -> Reply:  # type: ignore[override]
        while True:
            try:
                await asyncio.sleep(0.05)
                return super().step(message)
            except asyncio.CancelledError:
                await asyncio.sleep(8)


class SharedList(Sum):
    """What one episode was told, all of them know."""

    caught_by = "isolation"
    said: ClassVar[list[str]] = []

    def reset(self, task: Task) -> Sequence[Message]:
        self.said.clear()
        return super().reset(task)

    def step(self, message: Message) -> Reply:
        self.said.append(message.content)
        reply = super().step(message)
        note = Message(role="user", content=f"So far I heard {len(self.said)} things.")
        return reply if reply.done else Reply(messages=(note,), done=False)


class OneForAll(Sum):
    """Its copies are itself."""

    caught_by = "isolation"

    def __copy__(self) -> OneForAll:
        return self


class Moody(Sum):
    """Its second look at an answer is another one."""

    caught_by = "repeatable"
    looks: ClassVar[dict[str, int]] = {}

    def verifier(self) -> SumVerifier:
        def accepts(said: str, task: Task) -> bool:
            self.looks[task.id + said] = self.looks.get(task.id + said, 0) + 1
            return SumVerifier().accepts(said, task) and self.looks[task.id + said] % 4 != 0

        return judged_by(accepts)()


class StateOnly(Sum):
    """Its verdict is in the episode's object, so nobody can judge a recorded transcript."""

    caught_by = "repeatable"

    def step(self, message: Message) -> Reply:
        self.heard = message.content
        return super().step(message)

    def verifier(self) -> SumVerifier:
        return judged_by(lambda _said, task: SumVerifier().accepts(getattr(self, "heard", ""), task))()


ANSWERS: dict[str, int] = {}


class AnswersInMemory(Sum):
    """The process that draws the tasks keeps their answers; workers are other processes."""

    caught_by = "other_process"

    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        task = super().task(split, number, a, b)
        ANSWERS[task.id] = a + b
        return task

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: said == f"answer: {ANSWERS.get(task.id)}")()


class SwallowsFaults(Sum):
    """What is broken in it counts against the model."""

    caught_by = "fault_in_step"

    def step(self, message: Message) -> Reply:
        try:
            return super().step(message)
        except Exception:
            return Reply(done=True)


class TrustsText(Sum):
    """A model that writes something odd makes its episode invalid."""

    caught_by = "hostile_text"

    def step(self, message: Message) -> Reply:
        if "{" in message.content:
            json.loads(message.content)
        return super().step(message)


class Substring(Sum):
    caught_by = "hedge"

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: re.search(rf"answer: {task.reference['answer']}\b", said))()


class Rounds(Sum):
    """Near enough is not right."""

    caught_by = "altered_gold"

    def verifier(self) -> SumVerifier:
        def accepts(said: str, task: Task) -> bool:
            match = re.fullmatch(r"answer: (-?\d+)", said)
            return match is not None and abs(int(match[1]) - task.reference["answer"]) < 10

        return judged_by(accepts)()


class FormOnly(Sum):
    """Any number will do."""

    caught_by = "wrong_answer"

    def verifier(self) -> SumVerifier:
        return judged_by(lambda said, task: re.fullmatch(r"answer: -?\d{1,6}", said))()


class Echoed(Sum):
    """Looks for the numbers of the task; they stand in the prompt."""

    caught_by = "echo"

    def verifier(self) -> SumVerifier:
        def accepts(said: str, task: Task) -> bool:
            numbers = re.findall(r"\d+", task.prompt[0].content)
            return SumVerifier().accepts(said, task) or (len(said) < 99 and all(number in said for number in numbers))

        return judged_by(accepts)()


BROKEN: dict[str, type[Any]] = {
    name: kind
    for name, kind in dict(globals()).items()
    if isinstance(kind, type) and issubclass(kind, Sum) and kind is not Sum
}
# What else a fault may rightly set off.
ALSO: dict[str, set[str]] = {
    "RewardsSilence": {"doing_nothing"},
    "StartsRight": {"silence", "echo", "hostile_text"},
    "FormOnly": {"altered_gold"},
    "OneForAll": {"gold", "fault_in_step"},
}
