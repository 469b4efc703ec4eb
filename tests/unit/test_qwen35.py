"""Qwen3.5 dense: its delta-net layers keep packed sequences apart, its own MTP layer loads, trains and is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlvr.learner.model import PolicyModel, companions, has_mtp
from rlvr.types import MicroBatch
from rlvr.weights import part_of
from tests.tiny import write_qwen35
from tests.unit.test_model import TEMPERATURE, micro_batch, sequences

LENGTHS = (7, 70, 1, 12)  # one longer than the chunk in which the delta rule is computed


@pytest.fixture(params=["hybrid", "full attention"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_qwen35(tmp_path / "policy", hybrid=request.param == "hybrid")


def test_packed_sequences_score_as_transformers_scores_each_alone(folder: Path) -> None:
    policy = PolicyModel.load(folder, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batch = micro_batch(LENGTHS)
    found = policy(batch, TEMPERATURE).logprobs
    for ids, where in sequences(batch):
        logp = (plain(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        torch.testing.assert_close(found[where][1:], logp[:-1].gather(1, ids[1:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_a_sequence_scores_the_same_whatever_is_packed_beside_it(folder: Path) -> None:
    policy = PolicyModel.load(folder, dtype=torch.float32)
    batch = micro_batch(LENGTHS)
    both = policy(batch, TEMPERATURE, mtp_top_k=4)
    assert both.mtp_count == sum(max(0, length - 2) for length in LENGTHS)
    total = sum(
        policy(alone(batch, where), TEMPERATURE, mtp_top_k=4).mtp_loss
        for ids, where in sequences(batch)
        if len(ids) > 1
    )
    torch.testing.assert_close(both.mtp_loss, total, atol=1e-3, rtol=1e-4)


def alone(batch: MicroBatch, where: slice) -> MicroBatch:
    """One of its sequences."""
    rows = ("token_ids", "position_ids", "loss_mask", "behaviour_logprobs", "advantages")
    cu_seqlens = torch.tensor([0, where.stop - where.start], dtype=torch.int32)
    return replace(batch, cu_seqlens=cu_seqlens, **{name: getattr(batch, name)[where] for name in rows})


def test_policy_and_mtp_layer_learn_and_the_mtp_loss_moves_the_mtp_layer_alone(folder: Path) -> None:
    policy = PolicyModel.load(folder, dtype=torch.float32)
    batch = micro_batch(LENGTHS)
    policy(batch, TEMPERATURE, mtp_top_k=4).mtp_loss.backward()
    for name, weight in policy.named_weights():
        assert (weight.grad is not None and bool(weight.grad.any())) == (part_of(name) == "draft"), name
    policy.zero_grad()
    policy(batch, TEMPERATURE).logprobs.sum().backward()
    for name, weight in policy.named_weights():
        assert (weight.grad is not None and bool(weight.grad.any())) == (part_of(name) == "policy"), name


def test_a_checkpoint_is_saved_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    assert has_mtp(folder)
    policy = PolicyModel.load(folder, dtype=torch.float32)
    names = {name for name, _ in policy.named_weights() if part_of(name) == "draft"}
    assert {name.split(".")[1] for name in names} == {
        "fc", "layers", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden",
    }  # fmt: skip
    policy.save(tmp_path / "again", companions=companions(folder))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForCausalLM"]
    assert (config["model_type"], config["mtp_num_hidden_layers"]) == ("qwen3_5_text", 1)
    again = dict(PolicyModel.load(tmp_path / "again", dtype=torch.float32).named_weights())
    for name, weight in policy.named_weights():
        assert torch.equal(again[name], weight)
