"""Budgets and conversations on a real engine: what was forced is known, what was sampled is what is trained on."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from rlvr.inference.engine import Engine, environment_variables
from rlvr.learner.model import PolicyModel
from rlvr.plugins import make_environment
from rlvr.types import Budget, Task
from rlvr.weights import pack
from tests.tiny import write_checkpoint

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
sys.path.insert(0, str(BENCH))
import played  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

NUM_EPISODES = 60
THINKING = (0, 1, 5, 17, None)
TEMPERATURE = 0.8
THINK_END = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[0, 1, 3], ids=lambda count: f"{count} drafts")
async def engine(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    os.environ.update(environment_variables(num_threads=1, on_gpu=False))
    async with played.running_engine(folder, num_draft_tokens=request.param) as engine:
        yield engine


def tasks(**budget: object) -> list[Task]:
    environment = make_environment(f"{BENCH / 'dialogue.py'}:Dialogue", {})
    limits = Budget(turns=None, completion_tokens=90, closing="So: ", **budget)  # type: ignore[arg-type]
    return [
        dataclasses.replace(task, budget=dataclasses.replace(limits, thinking_tokens=THINKING[number % len(THINKING)]))
        for number, task in enumerate(islice(environment.tasks("train"), NUM_EPISODES))
    ]


async def play(engine: Engine, folder: Path, asked: list[Task]) -> list[played.Played]:
    environment = make_environment(f"{BENCH / 'dialogue.py'}:Dialogue", {})
    found = await played.play_all(engine, folder, environment, asked, temperature=TEMPERATURE, at_once=64)
    assert all(one.episode.verdict.outcome != "invalid" for one in found), [one.episode.verdict for one in found]
    return found


def check(found: list[played.Played]) -> None:
    """Every budget kept to the token, every sampled token in its place, nothing forced with loss on it."""
    forced = 0
    for one in found:
        sample = played.sample_of(one, temperature=TEMPERATURE)
        assert played.drift(one, sample) == ""
        completions = [turn.completion for turn in one.episode.turns]
        budget = one.episode.task.budget
        if budget.thinking_tokens is not None:
            assert sum(completion.num_thinking_tokens for completion in completions) <= budget.thinking_tokens
        assert sum(len(completion.token_ids) for completion in completions) <= 90
        forced += sum(completion.loss_mask.count(0) for completion in completions)
    assert forced > NUM_EPISODES
    assert sum(len(one.episode.turns) for one in found) > NUM_EPISODES, "one turn only"


async def test_budgets_hold_and_log_probabilities_are_the_learners(engine: Engine, folder: Path) -> None:
    found = await play(engine, folder, tasks(answer_tokens=8))
    check(found)
    samples = [played.sample_of(one, temperature=TEMPERATURE) for one in found]
    found_apart = played.agreement(folder, samples)
    assert found_apart["behind forced tokens"].count > 1000
    assert found_apart["engine to learner"].worst < 1e-4
    drafted = sum(turn.completion.num_draft_tokens for one in found for turn in one.episode.turns)
    assert (drafted > 0) == (engine.settings.num_draft_tokens > 0)


async def test_budgets_hold_across_weights_that_arrive_in_flight(engine: Engine, folder: Path) -> None:
    weights = [
        (name, weight.detach()) for name, weight in PolicyModel.load(folder, dtype=torch.float32).named_weights()
    ]
    playing = asyncio.create_task(play(engine, folder, tasks()))
    versions = 0
    while not playing.done() and versions < 6:
        await asyncio.sleep(0.15)
        versions += 1
        await engine.update(pack(versions, [(name, weight * (1 + 0.01 * versions)) for name, weight in weights]))
    found = await playing
    await engine.update(pack(0, weights))
    check(found)
    mixed = [{span.version for turn in one.episode.turns for span in turn.completion.weight_spans} for one in found]
    assert max(len(versions) for versions in mixed) > 1, "no episode met two versions"


async def test_the_answer_gets_its_tokens_however_long_the_thought(engine: Engine, folder: Path) -> None:
    found = await play(engine, folder, tasks(answer_tokens=30))
    cut = 0
    for one in found:
        first = one.episode.turns[0].completion
        closed = first.loss_mask.index(0) if 0 in first.loss_mask else None
        # A thought that opens again in the answer eats of the answer's own tokens.
        if closed and first.finish_reason == "length" and THINK_END not in first.token_ids[:closed]:
            cut += 1
            assert len(first.token_ids) - closed >= 30
    assert cut > 0
