"""A policy's tokenizer, as its own files have it.

transformers reads the tokenizer of every checkpoint with `model_type: qwen2` by Qwen2's rules, whatever its files say.
A grafted Llama (`rlvr.graft`) is a Qwen2 by its weights, but not by its tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path) -> Any:
    """From a checkpoint folder's `tokenizer.json`, or from a GGUF file."""
    folder = Path(folder)
    if folder.is_file():
        from transformers import AutoTokenizer  # brings torch, which a rollout worker starts without: three seconds

        return AutoTokenizer.from_pretrained(folder.parent, gguf_file=folder.name)
    return PreTrainedTokenizerFast.from_pretrained(folder)
