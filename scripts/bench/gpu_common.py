"""What the GPU programs share: random policies of real shapes, the device's name, one JSON line a result."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import machine
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlvr.cache import made_aside
from rlvr.config import RunConfig, parse
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.model import PolicyModel
from rlvr.learner.mtp import MtpLayer
from rlvr.plugins import make_environment
from rlvr.rollout.renderer import Renderer
from rlvr.starter.tokenizer import train_tokenizer
from rlvr.tokenizer import load_tokenizer

# Qwen2.5's published shapes, with one MTP layer; "tiny" is to try a program on the CPU.
SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
VOCABULARY = 151_936


def device() -> str:
    """GPU and versions, for beside a figure; the processor where there is no GPU."""
    if not torch.cuda.is_available():
        return machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("vllm", "deepspeed", "ray", "transformers"))
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}, {packages}"


def report(**values: Any) -> None:
    """One line of JSON on standard output; floats with five digits."""
    rounded = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in values.items()}
    print("RESULT", json.dumps(rounded), flush=True)


def random_policy(size: str) -> Path:
    """A checkpoint of `SHAPES[size]` with random weights, written once to the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"rlvr-random-{size}"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = train_tokenizer(["What is 12 + 30?", "Solve 3x + 4 = 10 for x."])
    config = Qwen2Config(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True,
        rope_theta=1e6, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SHAPES[size],
        attn_implementation=IMPLEMENTATION,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = PolicyModel(Qwen2ForCausalLM(config), MtpLayer(config)).to(torch.bfloat16)
    with made_aside(folder) as partial:
        model.save(partial)
        tokenizer.save_pretrained(partial)
    del model
    torch.cuda.empty_cache()
    return folder


def prompts(folder: Path, count: int) -> list[tuple[int, ...]]:
    """Of the math environment in the policy's own chat template; random tokens where it is a random policy."""
    if folder.name.startswith("rlvr-random"):
        generator = random.Random(0)
        return [tuple(generator.randrange(10, 300) for _ in range(64)) for _ in range(count)]
    renderer = Renderer(load_tokenizer(folder))
    tasks = make_environment("math_solver", {}).tasks("train")
    return [renderer.start(task.prompt) for task in itertools.islice(tasks, count)]


def num_parameters(folder: Path) -> tuple[int, int, int]:
    """Of the policy (a tied head counted once) and of the MTP layer, and the policy's bytes in bfloat16."""
    from safetensors import safe_open

    counts = {"policy": 0, "draft": 0}
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            shape = tensors.get_slice(name).get_shape()
            counts["draft" if "mtp_layers" in name else "policy"] += int(torch.Size(shape).numel())
    return counts["policy"], counts["draft"], 2 * counts["policy"]


def run_config(folder: Path, *, max_model_len: int, **sections: dict[str, Any]) -> RunConfig:
    """A configuration for parts of the program, without a run around them."""
    inference = {"max_model_len": max_model_len, "max_num_batched_tokens": 8192, **sections.pop("inference", {})}
    learner = {"micro_batch_tokens": max(max_model_len, 16_384), **sections.pop("learner", {})}
    return parse(
        {
            "run": {"name": "bench", "deadline_seconds": 400},
            "environments": [{"name": "none", "completion_tokens": max_model_len // 2}],
            "policy": {"path": str(folder)},
            "inference": inference,
            "learner": learner,
            **sections,
        }
    )
