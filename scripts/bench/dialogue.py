"""A conversation with a tool: a few turns whose replies hold text that no tokenizer gives back as it was cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from rlvr.interfaces import Environment
from rlvr.types import Message, Reply, Split, Task, Verdict

# White space, broken words, marks of the chat template, scripts that are cut into bytes.
ODD = ("  42 ", "\n\n", "4 2", "<tool_call>", "</think", "naïve", "日本", "🙂🙃", "\t1.5e-3", "a" * 9, "=", "12+30=42")
MAX_TURNS = 4


class DialogueVerifier:
    """Correct when the model got to its last turn."""

    id = "dialogue"
    version = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        turns = sum(message.role == "assistant" for message in transcript)
        correct = turns == task.reference["turns"]
        return Verdict(
            outcome="correct" if correct else "incorrect",
            reward=1.0 if correct else -1.0,
            reason=f"{turns} turns",
            verifier=self.id,
            version=self.version,
        )


class Dialogue(Environment):
    """Whatever the model says is a call: one or two tool messages answer it, until the task's turns are over."""

    name = "dialogue"
    summary = "a few turns with a tool"

    def tasks(self, split: Split) -> Iterator[Task]:
        for number in range(10**9):
            rng = random.Random(f"{split}/{number}")
            question = f"What is {rng.randint(10, 99)}+{rng.randint(10, 99)}? Answer in \\boxed{{}}."
            yield Task(
                id=f"dialogue/{split}/{number}",
                environment=self.name,
                prompt=(Message(role="user", content=question),),
                reference={"turns": rng.randint(2, MAX_TURNS)},
                seed=number,
            )

    def verifier(self) -> DialogueVerifier:
        return DialogueVerifier()

    def reset(self, task: Task) -> Sequence[Message]:
        self._rng = random.Random(task.seed)
        self._left = task.reference["turns"]
        return task.prompt

    def step(self, message: Message) -> Reply:
        self._left -= 1
        if self._left == 0:
            return Reply(done=True)
        said = [
            Message(role="tool", content=" ".join(self._rng.choices(ODD, k=self._rng.randint(1, 3))))
            for _ in range(self._rng.randint(1, 2))
        ]
        return Reply(messages=(*said, Message(role="user", content="Again.")), done=False)
