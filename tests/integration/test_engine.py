"""A real vLLM engine that drafts: exact sampling, stop tokens, weights that arrive in flight."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from rlvr.diagnostics import exactness
from rlvr.errors import EngineLost, WeightSyncError
from rlvr.inference.engine import Engine
from rlvr.learner.model import PolicyModel
from rlvr.types import Completion, SamplingParams
from rlvr.weights import PackedWeights, pack
from tests.tiny import running_engine, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = (1, 40, 41, 42, 43, 3)  # ends with <think>
THINK_END = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Three versions of a tiny policy."""
    return {seed: write_checkpoint(tmp_path_factory.mktemp(f"version{seed}"), seed=seed) for seed in range(3)}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 3], ids=["1 draft token", "3 draft tokens"])
async def engine(folders: dict[int, Path], request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    async with running_engine(folders[0], num_draft_tokens=request.param) as engine:
        yield engine


async def test_the_models_process_may_run_on_every_processor(engine: Engine) -> None:
    """Intel's OpenMP holds a forked process to the first one unless told not to."""
    assert os.sched_getaffinity(await engine.process_id()) == os.sched_getaffinity(0)


def hugging_face(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


async def sample(engine: Engine, count: int, *, seed: int = 0, length: int = 40, **params: object) -> list[Completion]:
    return await asyncio.gather(
        *(
            engine.sample(PROMPT, SamplingParams(max_tokens=length, seed=seed + index, **params))  # type: ignore[arg-type]
            for index in range(count)
        )
    )


async def publish(engine: Engine, folder: Path, version: int) -> None:
    weights = pack(version, PolicyModel.load(folder, dtype=torch.float32).named_weights())
    report = await engine.update(weights)
    assert report.checksums == weights.checksums()
    assert report.checksums.policy != report.checksums.draft
    assert {how.split(":")[0] for how in report.loading.values()} == {"reload"}, "the CPU packs its linear weights"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_drafting_samples_from_the_learners_distribution(
    engine: Engine, folders: dict[int, Path], temperature: float
) -> None:
    await publish(engine, folders[0], version=0)
    # Mixed with greedy requests, which take another path through vLLM's sampler.
    greedy = asyncio.create_task(sample(engine, 8, temperature=0.0))
    # And with some that run to the longest length there is, beyond which nothing can be drafted.
    full = asyncio.create_task(sample(engine, 8, seed=2000, length=256 - len(PROMPT), temperature=temperature))
    completions = await sample(engine, 160, seed=1000, temperature=temperature)
    longest = await full
    await greedy
    assert 256 - len(PROMPT) in [len(completion.token_ids) for completion in longest]
    completions += longest
    found = exactness(
        hugging_face(folders[0]), [(PROMPT, completion) for completion in completions], temperature=temperature
    )
    assert found.num_tokens > 5000
    assert abs(found.z) < 3
    assert found.max_logprob_error < 1e-3
    assert sum(completion.num_accepted_tokens for completion in completions) > 0


async def test_greedy_output_is_the_models_argmax(engine: Engine, folders: dict[int, Path]) -> None:
    await publish(engine, folders[0], version=0)
    (completion,) = await sample(engine, 1, temperature=0.0)
    ids = list(PROMPT)
    model = hugging_face(folders[0])
    with torch.no_grad():
        for token in completion.token_ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


async def test_a_seed_repeats_a_completion_bit_for_bit_whatever_runs_beside_it(engine: Engine) -> None:
    alone = await sample(engine, 1, seed=7)
    among_others = await sample(engine, 40, seed=7)
    assert alone[0].token_ids == among_others[0].token_ids
    assert alone[0].logprobs == among_others[0].logprobs


async def test_a_prompt_that_takes_several_steps_to_read_is_continued_as_its_seed_says(engine: Engine) -> None:
    """Together the prompts are four times what one step reads, so some are read in parts.

    A draft's cache that is wrong shows in few tokens: hence many prompts, all compared. The longest ends at the
    greatest length there is.
    """
    prompts = [(*PROMPT[:-1], *(30 + (7 * row + column) % 200 for column in range(170 + row)), 3) for row in range(40)]

    async def continued(row: int) -> tuple[int, ...]:
        return (await engine.sample(prompts[row], SamplingParams(max_tokens=40, seed=row))).token_ids

    await engine.fall_asleep()  # so that the first step finds them all, and the parts are the same every time
    asked = [asyncio.create_task(continued(row)) for row in range(40)]
    await asyncio.sleep(1)
    await engine.wake_up()
    together = await asyncio.gather(*asked)
    # Under another version nothing is cached: each is read again, now alone and in one step.
    engine.version += 1000
    assert [await continued(row) for row in range(40)] == together


async def test_a_completion_ends_with_the_first_of_its_stop_tokens(engine: Engine) -> None:
    stopped = 0
    for completion in await sample(engine, 32, seed=50, stop_token_ids=(THINK_END, 60), length=60):
        *before, last = completion.token_ids
        assert not {THINK_END, 60} & set(before)
        assert completion.finish_reason == ("length" if len(completion.token_ids) == 60 else "stop")
        stopped += last in (THINK_END, 60)
    assert stopped > 0


async def test_an_update_reaches_policy_and_draft_while_a_request_is_in_flight(
    engine: Engine, folders: dict[int, Path]
) -> None:
    await publish(engine, folders[0], version=10)
    running = asyncio.create_task(sample(engine, 24, seed=300, length=200))
    await asyncio.sleep(0.3)
    assert not running.done()
    await publish(engine, folders[1], version=11)
    versions = [tuple(span.version for span in completion.weight_spans) for completion in await running]
    assert (10, 11) in versions
    for completion in await running:
        assert completion.weight_spans[0].start == 0
        assert completion.weight_spans[-1].end == len(completion.token_ids)
    ids = [*PROMPT, 60, 61, 62, 80, 90]
    with torch.no_grad():
        logp = hugging_face(folders[1])(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logp[position, token]) for position, token in enumerate(ids[1:])]
    assert await engine.logprobs(ids) == pytest.approx(expected, abs=1e-4)


async def test_an_engine_asleep_samples_nothing_and_then_goes_on_as_if_nothing_had_been(engine: Engine) -> None:
    params = SamplingParams(max_tokens=200, seed=77)
    began = time.monotonic()
    alone = await engine.sample(PROMPT, params)
    seconds = time.monotonic() - began
    running = asyncio.create_task(engine.sample(PROMPT, params))
    await asyncio.sleep(seconds / 4)
    await engine.fall_asleep()
    asked_now = asyncio.create_task(engine.sample(PROMPT, params))
    await asyncio.sleep(3 * seconds)
    assert not running.done()
    assert not asked_now.done()
    await engine.wake_up()
    assert (await running).token_ids == (await asked_now).token_ids == alone.token_ids


class TornOnce(PackedWeights):
    """The first time it is read, a tensor in the middle is not there."""

    def offer(self) -> Any:
        READS.append(self.version)
        end = len(self.buffer) if len(READS) > 1 else len(self.buffer) // 2
        return PackedWeights(version=self.version, manifest=self.manifest, buffer=self.buffer[:end]).offer()


READS: list[int] = []


async def test_a_transfer_that_broke_off_is_taken_again_whole(engine: Engine, folders: dict[int, Path]) -> None:
    await publish(engine, folders[0], version=14)
    READS.clear()
    packed = pack(15, PolicyModel.load(folders[1], dtype=torch.float32).named_weights())
    report = await engine.update(TornOnce(version=15, manifest=packed.manifest, buffer=packed.buffer))
    assert READS == [15, 15]
    assert report.checksums == packed.checksums()
    (completion,) = await sample(engine, 1, seed=3)
    found = exactness(hugging_face(folders[1]), [(PROMPT, completion)], temperature=1.0)
    assert found.max_logprob_error < 1e-3


async def test_a_new_request_does_not_meet_cached_keys_of_old_weights(engine: Engine, folders: dict[int, Path]) -> None:
    long_prompt = PROMPT[:-1] + tuple(range(30, 130)) + PROMPT[-1:]
    params = SamplingParams(max_tokens=20, seed=5)
    await publish(engine, folders[0], version=20)
    await engine.sample(long_prompt, params)
    await publish(engine, folders[2], version=21)
    completion = await engine.sample(long_prompt, params)
    found = exactness(hugging_face(folders[2]), [(long_prompt, completion)], temperature=1.0)
    assert found.max_logprob_error < 1e-3


async def test_acceptance_is_that_of_the_draft_layer_that_was_published(
    engine: Engine, folders: dict[int, Path]
) -> None:
    model = PolicyModel.load(folders[2], dtype=torch.float32)
    assert model.mtp is not None
    model.mtp.final_layernorm.weight.data.zero_()  # drafts are now uniform over the vocabulary
    await engine.update(pack(30, model.named_weights()))
    completions = await sample(engine, 64, seed=900)
    with torch.no_grad():
        logits = [
            hugging_face(folders[2])(torch.tensor([[*PROMPT, *completion.token_ids]])).logits[0, len(PROMPT) - 1 : -1]
            for completion in completions
        ]
    probs = torch.cat(logits).softmax(-1)
    expected = float(probs.clamp(max=1 / probs.shape[1]).sum(-1).mean())
    drafted = sum(completion.num_draft_tokens for completion in completions)
    accepted = sum(completion.num_accepted_tokens for completion in completions)
    if engine.settings.num_draft_tokens == 1:
        assert accepted / drafted == pytest.approx(expected, abs=0.04)
    assert accepted > 0


async def test_an_engine_whose_process_is_killed_says_so_to_all_that_wait(
    engine: Engine, folders: dict[int, Path]
) -> None:
    """The last of this file: the engine is gone afterwards."""
    process = await engine.process_id()
    assert process != os.getpid()

    class Killing(PackedWeights):
        """The engine dies when it is about to read them."""

        def offer(self) -> Any:
            with contextlib.suppress(ProcessLookupError):  # a second reading
                os.kill(process, signal.SIGKILL)
            return PackedWeights(version=self.version, manifest=self.manifest, buffer=self.buffer).offer()

    packed = pack(40, PolicyModel.load(folders[1], dtype=torch.float32).named_weights())
    running = asyncio.gather(*(sample(engine, 1, seed=seed, length=200) for seed in range(64)), return_exceptions=True)
    await asyncio.sleep(0.05)
    with pytest.raises((EngineLost, WeightSyncError)):
        await asyncio.wait_for(engine.update(Killing(version=40, manifest=packed.manifest, buffer=packed.buffer)), 60)
    ends = await asyncio.wait_for(running, 60)
    lost = [end for end in ends if isinstance(end, BaseException)]
    assert lost
    for error in lost:
        assert isinstance(error, EngineLost)
        assert str(error).startswith("engine 0 died")
    with pytest.raises(EngineLost):
        await sample(engine, 1)
