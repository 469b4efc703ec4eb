"""Coin's tosses at levels of unlike luck: what a curriculum moves between."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.types import Message, Split, Task, Verdict


class LeveledSettings(EnvironmentSettings):
    levels: tuple[int, ...] = (1, 2, 3)


class LeveledVerifier:
    """Level 1 is always solved, 2 half of the time, 3 never."""

    id = "leveled"
    version = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        text = transcript[-1].thinking + transcript[-1].content
        correct = zlib.crc32(text.encode()) % 2 < {1: 2, 2: 1, 3: 0}[task.reference["level"]]
        return Verdict(
            outcome="correct" if correct else "incorrect",
            reward=1.0 if correct else -1.0,
            reason="",
            verifier=self.id,
            version=self.version,
        )


class Leveled(Environment):
    name = "leveled"
    Settings = LeveledSettings
    settings: LeveledSettings

    def tasks(self, split: Split) -> Iterator[Task]:
        for number in range(100_000):
            level = self.settings.levels[number % len(self.settings.levels)]
            prompt = (Message(role="user", content=f"{split} {level} {number}"),)
            yield Task(id=f"leveled/{split}/{number}", environment=self.name, prompt=prompt, reference={"level": level})

    def verifier(self) -> LeveledVerifier:
        return LeveledVerifier()
