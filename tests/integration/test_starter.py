"""The starter policy as a run begins with it: good enough to be rewarded, bad enough to have something to learn."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from environments.math_solver import MathSolver
from rlvr.batching import pack
from rlvr.learner.model import PolicyModel
from rlvr.rollout.renderer import Renderer
from rlvr.starter.build import build_starter
from rlvr.types import Sample, Task

GROUP_SIZE = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def starter() -> Path:
    return build_starter([MathSolver(MathSolver.Settings())], seed=0, progress=print)


@torch.no_grad()
def play(folder: Path, tasks: list[Task], *, sample: bool) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Prompt ids, completion ids and whether the answer is correct, for each task."""
    environment = MathSolver(MathSolver.Settings())
    verifier = environment.verifier()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    played = []
    for start in range(0, len(tasks), 128):
        part = tasks[start : start + 128]
        prompts = [renderer.start(task.prompt) for task in part]
        batch = tokenizer.pad({"input_ids": [list(ids) for ids in prompts]}, padding_side="left", return_tensors="pt")
        output = model.generate(**batch, do_sample=sample, top_k=0, max_new_tokens=64)
        for task, prompt, row in zip(part, prompts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            ids = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
            message = renderer.parse(prompt, ids)
            correct = verifier.verify(task, [*task.prompt, message]).outcome == "correct"
            played.append((prompt, tuple(ids), correct))
    return played


def test_greedy_accuracy_leaves_room_in_both_directions(starter: Path) -> None:
    tasks = list(MathSolver(MathSolver.Settings()).tasks("held_out"))
    accuracy = sum(correct for *_, correct in play(starter, tasks, sample=False)) / len(tasks)
    assert 0.2 <= accuracy <= 0.5, accuracy


def test_samples_have_spread_and_drafts_are_accepted(starter: Path) -> None:
    tasks = list(islice(MathSolver(MathSolver.Settings()).tasks("held_out"), 64))
    played = play(starter, [task for task in tasks for _ in range(GROUP_SIZE)], sample=True)
    groups = [played[start : start + GROUP_SIZE] for start in range(0, len(played), GROUP_SIZE)]
    spread = sum(0 < sum(correct for *_, correct in group) < GROUP_SIZE for group in groups) / len(groups)
    assert spread >= 0.7, spread

    samples = []
    for prompt, ids, _ in played:
        zeros = (0.0,) * (len(prompt) + len(ids))
        mask = (0,) * len(prompt) + (1,) * len(ids)
        sample = Sample(
            token_ids=prompt + ids, loss_mask=mask, behaviour_logprobs=zeros, advantages=zeros, oldest_version=0
        )
        samples.append(sample)
    model = PolicyModel.load(starter, dtype=torch.float32)
    accepted = count = 0.0
    with torch.no_grad():
        for part in pack(samples, num_ranks=1, micro_batch_tokens=4096).shards[0]:
            output = model(part, 1.0, mtp_top_k=16)
            accepted += output.mtp_acceptance.item()
            count += output.mtp_count.item()
    assert accepted / count >= 0.7, accepted / count
