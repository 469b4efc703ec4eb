from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from rlvr.errors import EngineLost
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.rollout.worker import Order, RolloutWorker
from rlvr.types import Completion, Message, SamplingParams, Split, Task, Verdict
from tests.fakes import CharacterTokenizer, make_completion, make_task, make_verdict

NUM_EPISODES = 32
# Judging waits until all the episodes of a group are being judged: more than the loop's own threads on a small machine.
TOGETHER = threading.Barrier(NUM_EPISODES, timeout=60)


class Patient:
    id, version = "patient", "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        TOGETHER.wait()
        return make_verdict("correct")


class Waits(Environment):
    name = "e"
    Settings = EnvironmentSettings

    def tasks(self, split: Split) -> Iterable[Task]:
        return [make_task()]

    def verifier(self) -> Patient:
        return Patient()


class Answers:
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        return make_completion(CharacterTokenizer().encode("</think>4<|im_end|>"))


async def test_episodes_that_wait_do_not_wait_for_each_others_threads() -> None:
    worker = RolloutWorker(
        environments=[(f"{Path(__file__)}:Waits", {})],
        tokenizer=CharacterTokenizer(),
        sampler=Answers(),
        max_model_len=10_000,
    )
    order = Order(ticket=0, task=make_task(), group_size=NUM_EPISODES, temperature=1.0, birth_version=0, seed=0)
    group = await worker.play(order)
    await worker.close()
    assert {episode.verdict.outcome for episode in group.episodes} == {"correct"}


class Losing:
    """One episode's engine is lost at once; the others would play on for ever."""

    def __init__(self) -> None:
        self.running = 0
        self._calls = 0

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        self._calls += 1
        if self._calls == 3:
            raise EngineLost("engine 0", "SIGKILL")
        self.running += 1
        try:
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            self.running -= 1


async def test_no_episode_plays_on_when_its_group_is_lost() -> None:
    engine = Losing()
    worker = RolloutWorker(
        environments=[(f"{Path(__file__)}:Waits", {})],
        tokenizer=CharacterTokenizer(),
        sampler=engine,
        max_model_len=10_000,
    )
    order = Order(ticket=0, task=make_task(), group_size=4, temperature=1.0, birth_version=0, seed=0)
    with pytest.raises(EngineLost):
        await worker.play(order)
    await asyncio.sleep(0.1)
    await worker.close()
    assert engine.running == 0
