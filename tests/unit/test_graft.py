"""A grafted policy is the policy it was, and its MTP layer learns from the policy's own samples."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlvr.errors import ConfigError
from rlvr.graft import GraftSettings, convert, qwen2_config, read, train_layer
from rlvr.learner.model import PolicyModel, has_mtp
from rlvr.starter.tokenizer import train_tokenizer
from rlvr.tokenizer import load_tokenizer
from rlvr.types import Sample

SHAPE = {
    "vocab_size": 384, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 512,
}  # fmt: skip
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_theta=5e4, tie_word_embeddings=True)),
    "llama 3 with scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
}


def write_source(folder: Path, kind: str) -> Path:
    torch.manual_seed(1)
    model = KINDS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 and biases of 0 would hide mistakes
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    train_tokenizer(["What is 12 + 30?"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_grafted_policy_computes_the_logits_of_its_source(kind: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", kind)
    convert(source, tmp_path / "grafted", torch.float32)
    assert has_mtp(tmp_path / "grafted")
    assert not has_mtp(source)
    ids = torch.randint(384, (2, 90), generator=torch.Generator().manual_seed(2))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, tmp_path / "grafted"))
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-5, rtol=0)
    PolicyModel.load(tmp_path / "grafted", dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grafted_policy_keeps_its_sources_tokenizer(kind: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", kind)
    convert(source, tmp_path / "grafted", torch.float32)
    text = "It's 3.14 +  12\n\t=> don't"
    assert load_tokenizer(tmp_path / "grafted").encode(text) == load_tokenizer(source).encode(text)


def test_a_tokenizer_splits_as_its_own_file_says_even_in_a_qwen2_checkpoint(tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = train_tokenizer(["What is 12 + 30? 1212 1212 1212 1212"])
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)  # digits together, unlike Qwen2
    KINDS["qwen2"]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "1212 12"
    assert load_tokenizer(tmp_path).encode(text) == backend.encode(text).ids


def test_what_qwen2_cannot_express_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention_bias"):
        qwen2_config(LlamaConfig(**SHAPE, attention_bias=True))
    with pytest.raises(ConfigError, match="'gpt2'"):
        qwen2_config(GPT2Config())


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read(tmp_path)


def test_training_moves_the_mtp_layer_towards_the_policy_and_leaves_the_policy_alone(tmp_path: Path) -> None:
    model = convert(write_source(tmp_path / "source", "llama"), tmp_path / "grafted", torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.policy.named_parameters()}
    generator = random.Random(0)
    samples = []
    for _ in range(64):
        ids = tuple(generator.randrange(384) for _ in range(40))
        zeros = (0.0,) * 40
        samples.append(
            Sample(
                token_ids=ids,
                loss_mask=(0,) * 4 + (1,) * 36,
                behaviour_logprobs=zeros,
                advantages=zeros,
                oldest_version=0,
            )
        )
    settings = GraftSettings(samples_per_step=16, epochs=12, learning_rate=3e-3)
    losses = train_layer(model, samples, settings, lambda _: None)
    assert len(losses) == 48
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(weight, before[name]) for name, weight in model.policy.named_parameters())
