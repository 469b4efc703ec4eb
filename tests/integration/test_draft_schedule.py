"""A real vLLM engine that measures its draft schedule, changes it while it runs, and samples exactly all the while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from rlvr.diagnostics import exactness
from rlvr.inference.depth_by_load import DepthByLoad
from rlvr.inference.draft_schedule import as_schedule
from rlvr.inference.engine import Engine
from rlvr.learner.model import PolicyModel
from rlvr.types import Completion, SamplingParams
from rlvr.weights import pack
from tests.tiny import running_engine, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = (1, 40, 41, 42, 43, 3)
MOST = 16
FULL = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[Engine]:
    async with running_engine(folder, num_draft_tokens=FULL, draft_schedule="auto", max_num_seqs=MOST) as engine:
        yield engine


@pytest.fixture
def depths(engine: Engine) -> DepthByLoad:
    assert engine.depth_by_load is not None
    return engine.depth_by_load


async def sample(engine: Engine, count: int, *, seed: int = 0, length: int = 40) -> list[Completion]:
    return await asyncio.gather(
        *(engine.sample(PROMPT, SamplingParams(max_tokens=length, seed=seed + index)) for index in range(count))
    )


def table(depths: dict[int, int]) -> list[int]:
    return [depth for first, last, depth in as_schedule(depths) for _ in range(first, last + 1)]


async def test_an_engine_has_timed_every_size_and_depth_and_drafts_by_its_choice(depths: DepthByLoad) -> None:
    assert {size: len(seconds) for size, seconds in depths.costs.items()} == dict.fromkeys((1, 4, MOST), FULL + 1)
    assert all(0 < second < 10 for seconds in depths.costs.values() for second in seconds)
    assert await depths.in_use() == table(depths.depths)


async def test_a_forced_schedule_decides_how_many_tokens_are_drafted(engine: Engine, depths: DepthByLoad) -> None:
    await depths.use(((1, 1, FULL), (2, MOST, 0)))
    assert await depths.in_use() == [FULL, *[0] * (MOST - 1)]
    (alone,) = await sample(engine, 1)
    assert alone.num_draft_tokens > len(alone.token_ids)  # of three drafts a step hardly one is accepted
    together = await sample(engine, MOST)
    num_tokens = sum(len(completion.token_ids) for completion in together)
    # Some may run alone at the beginning and the end.
    assert sum(completion.num_draft_tokens for completion in together) < num_tokens / 2
    await depths.use(((1, MOST, 1),))
    (alone,) = await sample(engine, 1)
    steps = len(alone.token_ids) - alone.num_accepted_tokens
    assert steps - 3 <= alone.num_draft_tokens <= steps


async def test_acceptance_by_position_is_that_of_the_drafts_there_were(engine: Engine, depths: DepthByLoad) -> None:
    found = {}
    for depth in (FULL, 1):
        await depths.use(((1, MOST, depth),))
        engine.acceptance_by_position()
        await sample(engine, 60, seed=500, length=80)
        found[depth] = engine.acceptance_by_position()
    assert found[FULL][0] > found[FULL][1] >= found[FULL][2] > 0
    assert found[1][1:] == (0.0, 0.0)
    # About a tenth of several thousand first drafts in both.
    assert found[1][0] == pytest.approx(found[FULL][0], abs=0.03)


async def test_only_steps_in_which_all_requests_decode_are_timed(engine: Engine, depths: DepthByLoad) -> None:
    await depths.use(((1, MOST, 0),))
    await depths._call("time_steps", 4)
    await sample(engine, 3)
    assert await depths._call("step_seconds") == []
    length = 60
    loop = asyncio.get_running_loop()
    began = loop.time()
    completions = await sample(engine, 4, length=length)
    seconds = await depths._call("step_seconds")
    taken = loop.time() - began
    await depths._call("time_steps", 0)
    shortest = min(len(completion.token_ids) for completion in completions)
    # At most all but the one that reads the prompts, and the last, after which none is scheduled. On a loaded machine
    # the four start one after the other.
    assert 10 <= len(seconds) <= shortest - 2
    assert 0 < sum(seconds) < taken


async def test_sampling_is_exact_while_the_schedule_changes(engine: Engine, depths: DepthByLoad, folder: Path) -> None:
    async def change() -> None:
        while True:
            for schedule in (((1, MOST, 0),), ((1, MOST, FULL),), ((1, 4, FULL), (5, 15, 1), (16, MOST, 2))):
                await depths.use(schedule)
                await asyncio.sleep(0.03)

    changing = asyncio.create_task(change())
    completions = await sample(engine, 160, seed=1000)
    changing.cancel()
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = exactness(model, [(PROMPT, completion) for completion in completions], temperature=1.0)
    assert found.num_tokens > 5000
    assert abs(found.z) < 3
    assert found.max_logprob_error < 1e-3
    num_drafts = sum(completion.num_draft_tokens for completion in completions)
    assert 0.2 < num_drafts / found.num_tokens < 2.3  # without drafts 0, always with three of them about 2.6


async def test_an_update_of_the_weights_chooses_anew(engine: Engine, depths: DepthByLoad, folder: Path) -> None:
    """By costs made up here: drafts are free for one request, and for all of them not worth half their time."""
    depths.costs = {1: (1.0, 1.0, 1.0, 1.0), MOST: (1.0, 2.0, 3.0, 4.0)}
    depths.depths = {1: 0, MOST: FULL}
    report = await engine.update(pack(7, PolicyModel.load(folder, dtype=torch.float32).named_weights()))
    assert report.draft_depths == depths.depths == {1: FULL, MOST: 0}
    assert await depths.in_use() == [FULL] * 4 + [0] * 12
