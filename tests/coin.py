"""An environment for tests of the machinery: any policy, however ignorant, solves about half of its tasks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.types import Message, Split, Task, Verdict


class CoinSettings(EnvironmentSettings):
    num_tasks: int = 10_000


class CoinVerifier:
    """Correct when a checksum of what the model wrote is even."""

    id = "coin"
    version = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        text = transcript[-1].thinking + transcript[-1].content
        even = zlib.crc32(text.encode()) % 2 == 0
        return Verdict(
            outcome="correct" if even else "incorrect",
            reward=1.0 if even else -1.0,
            reason="even" if even else "odd",
            verifier=self.id,
            version=self.version,
        )


class Coin(Environment):
    name = "coin"
    summary = "A toss, decided by what the model wrote."
    Settings = CoinSettings
    settings: CoinSettings

    def tasks(self, split: Split) -> Iterator[Task]:
        for number in range(self.settings.num_tasks):
            prompt = (Message(role="user", content=f"{split} {number}"),)
            yield Task(id=f"coin/{split}/{number}", environment=self.name, prompt=prompt, reference={})

    def verifier(self) -> CoinVerifier:
        return CoinVerifier()
