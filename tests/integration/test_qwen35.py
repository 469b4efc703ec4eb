"""Qwen3.5 in a real engine: it drafts through the checkpoint's own MTP layer as the learner trains it, and both arrive.

Without delta-net layers, which vLLM runs on GPUs alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import is_torchvision_available

from rlvr.batching import pack as pack_samples
from rlvr.diagnostics import exactness
from rlvr.inference.engine import Engine
from rlvr.learner.model import PolicyModel
from rlvr.types import Completion, Sample, SamplingParams
from rlvr.weights import pack
from tests.integration.runs import Run, write_config
from tests.tiny import add_vision, running_engine, write_qwen35

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = (1, 40, 41, 42, 43, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two versions of a tiny policy."""
    return {seed: write_qwen35(tmp_path_factory.mktemp(f"version{seed}"), seed=seed) for seed in range(2)}


# vLLM's module for Qwen3.5 brings that of its vision tower, which imports torchvision; of that there is no CPU build.
NO_VISION = """
import enum

class InterpolationMode(enum.Enum):
    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(7)

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


@pytest.fixture(scope="module", autouse=True)
def no_vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For the processes of the engine, a torchvision that has every name and does nothing."""
    root = tmp_path_factory.mktemp("no-vision")
    for package in (
        "",
        "io",
        "ops",
        "transforms",
        "transforms/functional",
        "transforms/v2",
        "transforms/v2/functional",
    ):
        folder = root / "torchvision" / package
        folder.mkdir()
        (folder / "__init__.py").write_text(NO_VISION + "__version__ = '0.28.0'\n")
    if is_torchvision_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patched:
        # The first for those that are forked from this one, the second for those that are not.
        patched.syspath_prepend(root)
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: dict[int, Path]) -> AsyncIterator[Engine]:
    async with running_engine(folders[0]) as engine:
        yield engine


@pytest.mark.parametrize("version", [0, 1], ids=["as loaded", "as published"])
async def test_engine_and_learner_agree_on_policy_and_draft(
    version: int, engine: Engine, folders: dict[int, Path]
) -> None:
    policy = PolicyModel.load(folders[version], dtype=torch.float32)
    if version > 0:
        weights = pack(version, policy.named_weights())
        assert (await engine.update(weights)).checksums == weights.checksums()
    engine.acceptance_by_position()  # what was counted before
    completions = await asyncio.gather(
        *(engine.sample(PROMPT, SamplingParams(max_tokens=60, seed=seed)) for seed in range(120))
    )
    plain = AutoModelForCausalLM.from_pretrained(folders[version], dtype=torch.float32)
    found = exactness(plain, [(PROMPT, completion) for completion in completions], temperature=1.0)
    assert found.num_tokens > 2000
    assert abs(found.z) < 3
    assert found.max_logprob_error < 1e-3
    (accepted,) = engine.acceptance_by_position()
    expected = expected_acceptance(policy, completions)
    assert 0.05 < expected < 0.95
    assert accepted == pytest.approx(expected, abs=0.04)


@torch.no_grad()
def expected_acceptance(policy: PolicyModel, completions: list[Completion]) -> float:
    """The share of drafts that the engine should accept behind these tokens, as the learner computes it."""
    samples = []
    for completion in completions:
        ids = PROMPT + completion.token_ids
        zeros = (0.0,) * len(ids)
        mask = (0,) * len(PROMPT) + (1,) * len(completion.token_ids)
        samples.append(
            Sample(token_ids=ids, loss_mask=mask, behaviour_logprobs=zeros, advantages=zeros, oldest_version=0)
        )
    batch = pack_samples(samples, num_ranks=1, micro_batch_tokens=4096)
    outputs = [policy(part, 1.0, mtp_top_k=4) for part in batch.shards[0]]
    return float(sum(output.mtp_acceptance for output in outputs) / sum(output.mtp_count for output in outputs))


async def test_a_run_starts_from_a_published_checkpoint_and_leaves_a_text_model(tmp_path: Path) -> None:
    """Every version reaches policy and draft: the run compares checksums and the probe, and ends where they differ."""
    published = add_vision(write_qwen35(tmp_path / "text"), tmp_path / "published")
    run = Run(write_config(tmp_path, published), tmp_path, "run.num_steps=3", "learner.zero_stage=2")
    assert await asyncio.to_thread(run.wait) == 0, run.output()
    assert max(step["sync/probe_error"] for step in run.metrics() if "sync/probe_error" in step) < 1e-3
    (left,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    trained = dict(PolicyModel.load(left / "model", dtype=torch.float32).named_weights())
    for name, before in PolicyModel.load(tmp_path / "text", dtype=torch.float32).named_weights():
        assert not torch.equal(trained[name], before), name
