"""A tiny policy with random weights: the whole real stack on it starts in seconds and knows nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.model import PolicyModel
from rlvr.learner.mtp import MtpLayer, Qwen35MtpLayer
from rlvr.starter.tokenizer import train_tokenizer


def write_checkpoint(folder: Path, *, seed: int = 0, scale: float = 0.3, mtp: bool = True) -> Path:
    """A checkpoint folder with tokenizer. A larger `scale` of the weights makes sharper distributions."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["What is 12 + 30?", "Solve 3x + 4 = 10 for x."])
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=scale,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=IMPLEMENTATION,
    )
    model = PolicyModel(Qwen2ForCausalLM(config), MtpLayer(config) if mtp else None)
    model.save(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_qwen35(folder: Path, *, seed: int = 0, hybrid: bool = False) -> Path:
    """A Qwen3.5 with tokenizer and its own MTP layer; `hybrid` with delta-net layers, which vLLM runs on GPUs alone."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["What is 12 + 30?", "Solve 3x + 4 = 10 for x."])
    config = Qwen3_5TextConfig(
        vocab_size=-(-len(tokenizer) // 32) * 32, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=2048, initializer_range=0.2,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        layer_types=["linear_attention" if hybrid else "full_attention", "full_attention"],
        # Without the `mrope_section` of published ones, which text has no use for and vLLM's CPU kernel dies of.
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        attn_implementation=IMPLEMENTATION,
    )  # fmt: skip
    model = PolicyModel(Qwen3_5ForCausalLM(config), Qwen35MtpLayer(config))
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are 0 would hide mistakes
            parameter += 0.1 * torch.randn_like(parameter)
    model.save(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_vision(text: Path, folder: Path) -> Path:
    """What `write_qwen35` wrote to `text`, as it would be published: with a vision tower, and in two files."""
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
        "num_position_embeddings": 16,
    }  # fmt: skip
    config = Qwen3_5Config(text_config=json.loads((text / "config.json").read_text()), vision_config=vision)
    model, language = Qwen3_5ForConditionalGeneration(config), Qwen3_5ForCausalLM.from_pretrained(text)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    layer = {name: tensor for name, tensor in load_file(text / "model.safetensors").items() if name.startswith("mtp.")}
    assert {"model.visual", "model.language_model"} <= {".".join(name.split(".")[:2]) for name in whole}
    (folder / "model.safetensors").unlink()
    where = {}
    for number, part in enumerate((whole, layer), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for file in (*text.glob("*token*"), *text.glob("chat_template*")):
        shutil.copy(file, folder)
    return folder


@asynccontextmanager
async def running_engine(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """vLLM on the CPU with such a checkpoint; `settings` are those of `EngineSettings` that matter to the test."""
    os.environ.update(environment_variables(num_threads=1, on_gpu=False))
    usual = EngineSettings(
        index=0,
        model_folder=str(folder),
        dtype="float32",
        enforce_eager=True,
        num_draft_tokens=1,
        max_num_seqs=64,
        max_model_len=256,
        max_num_batched_tokens=2048,
        kv_cache_bytes=2**27,
        gpu_memory_utilization=0.5,
        seed=0,
        deadline_seconds=300,
    )
    engine = Engine(dataclasses.replace(usual, **settings))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
