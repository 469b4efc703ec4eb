"""A tiny policy with random weights: the whole real stack on it starts in seconds and knows nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.model import PolicyModel
from rlvr.learner.mtp import MtpLayer
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
