"""A worker plays groups at once, and names each episode like no other."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from rlvr.errors import EngineLost
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.rollout.worker import Order, RolloutWorker
from rlvr.starter.tokenizer import train_tokenizer
from rlvr.types import Completion, Message, SamplingParams, Split, Task, Verdict
from tests.fakes import CharacterTokenizer, FakeVerifier, make_completion, make_task, make_verdict

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


class Quick(Waits):
    def verifier(self) -> FakeVerifier:  # type: ignore[override]
        return FakeVerifier()


class Wrong(Waits):
    """Goes by the name of the other, and judges otherwise."""

    def verifier(self) -> FakeVerifier:  # type: ignore[override]
        return FakeVerifier("incorrect")


class Answers:
    def __init__(self) -> None:
        self.seeds: list[int | None] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        self.seeds.append(params.seed)
        return make_completion(CharacterTokenizer().encode("</think>4<|im_end|>"))


def order(*, group_size: int, ticket: int = 0, environment: int = 0, series: str = "train-000") -> Order:
    return Order(
        series=series,
        ticket=ticket,
        task=make_task(),
        environment=environment,
        group_size=group_size,
        temperature=1.0,
        birth_version=0,
        seed=0,
    )


async def test_episodes_that_wait_do_not_wait_for_each_others_threads() -> None:
    worker = RolloutWorker(
        environments=[(f"{Path(__file__)}:Waits", {})],
        tokenizer=CharacterTokenizer(),
        sampler=Answers(),
        max_model_len=10_000,
    )
    group = await worker.play(order(group_size=NUM_EPISODES))
    await worker.close()
    assert {episode.verdict.outcome for episode in group.episodes} == {"correct"}


async def test_a_ticket_that_is_played_again_has_other_ids_and_the_same_draws() -> None:
    answers = Answers()
    worker = RolloutWorker(
        environments=[(f"{Path(__file__)}:Quick", {})],
        tokenizer=CharacterTokenizer(),
        sampler=answers,
        max_model_len=10_000,
    )
    series = ["train-000", "train-001", "eval-001.0", "eval-001.1"]
    groups = [await worker.play(order(group_size=2, series=each)) for each in series]
    other = await worker.play(order(group_size=2, ticket=1))
    await worker.close()
    ids = [episode.id for group in [*groups, other] for episode in group.episodes]
    assert ids[:2] == ["e/train/0@train-000.0#0", "e/train/0@train-000.0#1"]
    assert len(set(ids)) == len(ids) == 10
    assert answers.seeds[:2] * 4 == answers.seeds[:8]
    assert len({*answers.seeds}) == 4, "two of a group, and two of another ticket"


async def test_two_environments_of_one_name_are_told_apart_by_their_place() -> None:
    worker = RolloutWorker(
        environments=[(f"{Path(__file__)}:{name}", {}) for name in ("Quick", "Wrong")],
        tokenizer=CharacterTokenizer(),
        sampler=Answers(),
        max_model_len=10_000,
    )
    groups = [await worker.play(order(group_size=1, environment=place)) for place in (0, 1)]
    await worker.close()
    assert [group.episodes[0].verdict.outcome for group in groups] == ["correct", "incorrect"]


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
    with pytest.raises(EngineLost):
        await worker.play(order(group_size=4))
    await asyncio.sleep(0.1)
    await worker.close()
    assert engine.running == 0


def test_a_rollout_worker_starts_without_torch(tmp_path: Path) -> None:
    """Which would take it three seconds, and there are many."""
    train_tokenizer(["What is 12 + 30?"]).save_pretrained(tmp_path)
    script = (
        "import sys; import rlvr.actors; from rlvr.plugins import make_environment\n"
        "from rlvr.rollout.renderer import Renderer; from rlvr.tokenizer import load_tokenizer\n"
        f"renderer = Renderer(load_tokenizer({str(tmp_path)!r}))\n"
        "for name in ('math_solver', 'code_sandbox', 'sql_database', 'tool_use'):\n"
        "    renderer.start(next(iter(make_environment(name, {}).tasks('train'))).prompt)\n"
        "print([name for name in ('torch', 'vllm', 'deepspeed') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
