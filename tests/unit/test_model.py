from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlvr.errors import ConfigError
from rlvr.learner import model as model_module
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.model import PolicyModel, companions, has_mtp
from rlvr.learner.mtp import CHECKPOINT_PREFIX, MtpLayer
from rlvr.types import MicroBatch

LENGTHS = (7, 1, 12, 4)
TEMPERATURE = 0.7


def tiny_policy(*, tied: bool = True, mtp: bool = True) -> PolicyModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, attn_implementation=IMPLEMENTATION, initializer_range=0.3,
    )  # fmt: skip
    model = PolicyModel(Qwen2ForCausalLM(config), MtpLayer(config) if mtp else None)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases of 1 and 0 would hide mistakes
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def micro_batch(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 1) -> MicroBatch:
    """Random sequences, all tokens but the first of each under the loss mask."""
    generator = torch.Generator().manual_seed(seed)
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    total = sum(lengths)
    return MicroBatch(
        token_ids=torch.randint(40, (total,), generator=generator),
        position_ids=position_ids,
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
        loss_mask=(position_ids > 0).float(),
        behaviour_logprobs=torch.zeros(total),
        advantages=torch.ones(total),
    )


def sequences(batch: MicroBatch) -> list[tuple[Tensor, slice]]:
    ends = batch.cu_seqlens.tolist()
    return [(batch.token_ids[a:b], slice(a, b)) for a, b in itertools.pairwise(ends)]


def reference_model(model: PolicyModel, tmp_path: Path) -> Qwen2ForCausalLM:
    """The same policy in plain transformers with eager attention."""
    model.save(tmp_path / "reference")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "reference", attn_implementation="eager")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows_at_once", [5, 1024])
def test_packed_logprobs_and_entropy_equal_those_of_single_sequences(
    tied: bool, rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "ROWS_AT_ONCE", rows_at_once)
    model, batch = tiny_policy(tied=tied), micro_batch()
    reference = reference_model(model, tmp_path)
    with torch.no_grad():
        output = model(batch, TEMPERATURE)
        for tokens, where in sequences(batch):
            logp = (reference(tokens[None]).logits[0] / TEMPERATURE).log_softmax(-1)
            expected = logp[:-1].gather(1, tokens[1:, None])[:, 0]
            assert output.logprobs[where][0] == 0
            torch.testing.assert_close(output.logprobs[where][1:], expected, atol=1e-5, rtol=0)
            entropy = -(logp.exp() * logp).sum(-1)[:-1]
            torch.testing.assert_close(output.entropy[where][1:], entropy, atol=1e-5, rtol=0)


def test_only_tokens_under_the_loss_mask_are_scored() -> None:
    model, batch = tiny_policy(), micro_batch()
    full = model(batch, TEMPERATURE).logprobs
    batch.loss_mask[5:15] = 0
    part = model(batch, TEMPERATURE).logprobs
    torch.testing.assert_close(part, full * batch.loss_mask)


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_the_policy_equals_autograd_through_full_logits(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "ROWS_AT_ONCE", 5)
    model, batch = tiny_policy(tied=tied), micro_batch()
    weights = torch.randn(len(batch.token_ids), generator=torch.Generator().manual_seed(2))
    output = model(batch, TEMPERATURE, mtp_top_k=4)
    ((output.logprobs * weights).sum() + 3 * output.mtp_loss).backward()

    reference = reference_model(model, tmp_path)
    for tokens, where in sequences(batch):
        logp = (reference(tokens[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        (logp[:-1].gather(1, tokens[1:, None])[:, 0] * weights[where][1:]).sum().backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.policy.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("vocabulary", [100, 128 * 64, 128 * 70, 9001])
def test_the_top_of_a_vocabulary_is_topks_whatever_its_size(vocabulary: int) -> None:
    logits = torch.randn(37, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    values, ids = model_module.top(logits, 16)
    expected = logits.topk(16, dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model, batch = tiny_policy(), micro_batch()
    model.save(tmp_path)
    checkpointed = PolicyModel.load(tmp_path, dtype=torch.float32, gradient_checkpointing=True).train()
    for each in (model, checkpointed):
        each(batch, TEMPERATURE).logprobs.sum().backward()
    for (name, one), (_, other) in zip(
        model.policy.named_parameters(), checkpointed.policy.named_parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad), name


def test_a_micro_batch_without_loss_tokens_still_reaches_every_parameter_with_zeros() -> None:
    model, batch = tiny_policy(), micro_batch((3,))
    batch.loss_mask.zero_()
    output = model(batch, TEMPERATURE, mtp_top_k=4)
    (output.logprobs.sum() + output.mtp_loss).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mtp", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_checkpoint_loads_back_equal(tied: bool, mtp: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    (tmp_path / "source" / "generation_config.json").write_text("{}")
    model = tiny_policy(tied=tied, mtp=mtp).to(dtype)
    model.save(tmp_path / "saved", companions=companions(tmp_path / "source"))
    loaded = PolicyModel.load(tmp_path / "saved", dtype=dtype)

    expected, got = dict(model.named_weights()), dict(loaded.named_weights())
    assert list(expected) == list(got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(expected)
    assert ("lm_head.weight" in expected) is not tied
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert (config.get("architectures") == ["MiMoForCausalLM"]) is mtp
    assert (config.get("num_nextn_predict_layers") == 1) is mtp
    assert has_mtp(tmp_path / "saved") is mtp
    assert {"tokenizer.json", "generation_config.json"} <= {file.name for file in (tmp_path / "saved").iterdir()}


def test_checkpoint_names_of_the_mtp_layer_are_mimos() -> None:
    names = {name for name, _ in tiny_policy().named_weights() if name.startswith(CHECKPOINT_PREFIX)}
    attention = {f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")}
    norms = {"token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm", "post_attention_layernorm"}
    matrices = norms | {"input_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert names == {CHECKPOINT_PREFIX + name for name in attention | {f"{name}.weight" for name in matrices}}


def test_a_folder_without_checkpoint_is_a_config_error(tmp_path: Path) -> None:
    assert not has_mtp(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        PolicyModel.load(tmp_path, dtype=torch.float32)
