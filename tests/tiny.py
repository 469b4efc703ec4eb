"""A tiny policy with random weights: the whole real stack on it starts in seconds and knows nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

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
