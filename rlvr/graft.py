"""`rlvr graft-mtp`: gives a policy without a multi-token prediction (MTP) layer one to draft with.

    checkpoint -> the same weights as a Qwen2 -> + a fresh MTP layer -> samples of its own -> trained MTP layer
     (Llama or Qwen2 family)                      (MiMo's form, which vLLM drafts with)

The policy's own weights are written as they were read. A Llama is a Qwen2 whose query, key and value biases are 0, so
its outputs stay the same too; both claims are checked before anything is trained, on the logits.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlvr.batching import pack
from rlvr.errors import ConfigError
from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.interfaces import Environment
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.model import PolicyModel, companions
from rlvr.learner.mtp import MtpLayer
from rlvr.rollout.renderer import Renderer
from rlvr.tokenizer import load_tokenizer
from rlvr.types import Completion, Sample, SamplingParams

# Of a Llama's configuration, what a Qwen2 means the same by.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_LOGIT_TOLERANCE = 1e-4  # float32 on both sides; kernels may differ
MICRO_BATCH_TOKENS = 16_384
TOP_K = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftSettings:
    """How much is sampled, how long is trained, and how the graft is measured."""

    num_samples: int = 4096
    max_tokens: int = 256
    temperature: float = 1.0
    epochs: int = 3
    samples_per_step: int = 64
    learning_rate: float = 1e-3
    num_draft_tokens: int = 2
    num_measured: int = 128
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What drafting was worth on prompts that were not trained on, and what the policy says to them greedily."""

    acceptance: tuple[float, ...]  # by position of the draft, each of all that were drafted
    greedy: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftReport:
    """Greedy output is counted against that of the engine without drafting."""

    before: Measured
    after: Measured
    num_identical: int
    num_tokens: int
    losses: tuple[float, ...]


def prepare_process() -> None:
    """Set what vLLM reads from the environment; before the first `graft` of a process."""
    os.environ.update(environment_variables(num_threads=2, on_gpu=torch.cuda.is_available()))


def graft(
    source: Path, target: Path, environment: Environment, settings: GraftSettings, say: Callable[[str], None]
) -> GraftReport:
    """Write the grafted checkpoint to the folder `target`. Raises `ConfigError`."""
    if target.exists():
        raise ConfigError(f"{target} exists already; give a folder that does not")
    on_gpu = torch.cuda.is_available()
    model = convert(source, target, torch.bfloat16 if on_gpu else torch.float32)
    say(f"grafted a fresh MTP layer: {target}")
    renderer = Renderer(load_tokenizer(target))

    def prompts(split: Any, count: int) -> list[tuple[int, ...]]:
        return [renderer.start(task.prompt) for task in itertools.islice(environment.tasks(split), count)]

    held_out = prompts("held_out", settings.num_measured)
    training = prompts("train", settings.num_samples)
    longest = max(map(len, itertools.chain(held_out, training)))

    def engine(num_draft_tokens: int) -> Engine:
        return Engine(_engine_settings(target, settings, longest, num_draft_tokens, on_gpu))

    say(f"sampling {len(training)} completions of the policy")
    samples, plain = asyncio.run(_sample(engine(0), training, held_out, settings))
    before = asyncio.run(_measure(engine(settings.num_draft_tokens), held_out, settings))
    say(f"acceptance by position before training: {_percent(before.acceptance)}")
    losses = train_layer(model, samples, settings, say)
    model.save(target)
    after = asyncio.run(_measure(engine(settings.num_draft_tokens), held_out, settings))
    say(f"acceptance by position after training: {_percent(after.acceptance)}")
    identical = sum(one == other for one, other in zip(plain, after.greedy, strict=True))
    say(f"greedy output with drafting: {identical} of {len(plain)} completions identical to those without")
    return GraftReport(
        before=before,
        after=after,
        num_identical=identical,
        num_tokens=sum(len(sample.token_ids) for sample in samples),
        losses=tuple(losses),
    )


def convert(source: Path, target: Path, dtype: torch.dtype) -> PolicyModel:
    """Write `source` as a Qwen2 with a fresh MTP layer, tokenizer included; the same model, in `dtype`, to train on."""
    policy = read(source).eval()
    state = policy.state_dict()
    config = qwen2_config(policy.config)
    grafted = Qwen2ForCausalLM(config)
    zeros = {
        name: torch.zeros_like(tensor)
        for name, tensor in grafted.state_dict().items()
        if name not in state and name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
    }
    grafted.load_state_dict(state | zeros)
    _check_same(policy, grafted)
    layer = MtpLayer(grafted.config)
    start_from_last_layer(layer, grafted)
    model = PolicyModel(grafted, layer).to(dtype)
    model.save(target, companions=companions(source) if source.is_dir() else {})
    if source.is_file():
        load_tokenizer(source).save_pretrained(target)
    if torch.cuda.is_available():
        model = model.cuda()
    return model


def read(source: Path) -> Any:
    """A Hugging Face checkpoint folder, or a GGUF file (dequantized). Raises `ConfigError`."""
    if source.is_file() and source.suffix == ".gguf":
        from transformers import GgufConfig

        config = GgufConfig(dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=config
        )
    if not (source / "config.json").is_file():
        raise ConfigError(f"{source} is neither a Hugging Face checkpoint folder (no config.json) nor a .gguf file")
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def qwen2_config(config: Any) -> Qwen2Config:
    """The same architecture in Qwen2's words. Raises `ConfigError` for one that Qwen2 cannot express."""
    if config.model_type not in ("llama", "qwen2"):
        raise ConfigError(f"MTP can be grafted onto llama and qwen2 checkpoints, not onto {config.model_type!r}")
    if config.model_type == "llama" and (config.attention_bias or config.mlp_bias):
        raise ConfigError("this llama has biases that a Qwen2 lacks (attention_bias or mlp_bias); choose another")
    if getattr(config, "use_sliding_window", False):
        raise ConfigError("this qwen2 uses sliding windows, which rlvr's learner does not; choose another")
    shared = {name: getattr(config, name) for name in _SHARED if hasattr(config, name)}
    return Qwen2Config(**shared, attn_implementation=IMPLEMENTATION)


def start_from_last_layer(layer: MtpLayer, policy: Any) -> None:
    """Begin as one more of the policy's layers: its last one again, over a mean of hidden state and embedding."""
    last = policy.model.layers[-1].state_dict()
    layer.load_state_dict(layer.state_dict() | last)
    with torch.no_grad():
        layer.final_layernorm.weight.copy_(policy.model.norm.weight)
        half = 0.5 * torch.eye(policy.config.hidden_size)
        layer.input_proj.weight.copy_(torch.cat([half, half], dim=1))


@torch.no_grad()
def _check_same(policy: Any, grafted: Any) -> None:
    ids = torch.arange(48).reshape(2, 24) * 7 % policy.config.vocab_size
    grafted.set_attn_implementation("sdpa")
    worst = float((policy(ids).logits - grafted(ids).logits).abs().max())
    grafted.set_attn_implementation(IMPLEMENTATION)
    if not worst <= _LOGIT_TOLERANCE:
        raise ConfigError(
            f"as a Qwen2 this checkpoint computes other logits, off by {worst:.1e} (allowed {_LOGIT_TOLERANCE:.0e}): "
            "its architecture has something that Qwen2 lacks; choose another checkpoint"
        )


def train_layer(
    model: PolicyModel, samples: Sequence[Sample], settings: GraftSettings, say: Callable[[str], None]
) -> list[float]:
    """Teach the MTP layer what the policy says next on its own samples; the loss of each step, in nats a token.

    The weights that are saved have the policy's dtype; the optimizer moves float32 copies of them.
    """
    assert model.mtp is not None
    model.policy.requires_grad_(False)
    weights = list(model.mtp.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    per_epoch = len(samples) // settings.samples_per_step
    num_steps = max(1, per_epoch * settings.epochs)
    generator = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    for step in range(num_steps):
        if step % max(1, per_epoch) == 0:
            order = torch.randperm(len(samples), generator=generator).tolist()
        start = step % max(1, per_epoch) * settings.samples_per_step
        chosen = [samples[i] for i in order[start : start + settings.samples_per_step]]
        losses.append(_backward(model, chosen))
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((step + 1) / 20, (num_steps - step) / num_steps)
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)
        if step % 20 == 0 or step == num_steps - 1:
            say(f"MTP layer: step {step + 1}/{num_steps}, loss {losses[-1]:.3f}")
    return losses


def _backward(model: PolicyModel, samples: Sequence[Sample]) -> float:
    device = next(model.parameters()).device
    batch = pack(samples, num_ranks=1, micro_batch_tokens=MICRO_BATCH_TOKENS)
    total = torch.zeros((), device=device)
    for part in batch.shards[0]:
        output = model(part.to(device), 1.0, mtp_top_k=TOP_K)
        (output.mtp_loss / batch.num_loss_tokens).backward()
        total += output.mtp_loss.detach()
    return float(total) / batch.num_loss_tokens


async def _sample(
    engine: Engine, training: Sequence[tuple[int, ...]], held_out: Sequence[tuple[int, ...]], settings: GraftSettings
) -> tuple[list[Sample], list[tuple[int, ...]]]:
    """Samples to train on, and greedy completions of what will be measured on."""
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)
    await engine.start()
    try:
        drawn = await asyncio.gather(
            *(engine.sample(ids, replace(params, seed=settings.seed + i)) for i, ids in enumerate(training))
        )
        greedy = await _greedy(engine, held_out, settings)
    finally:
        await engine.stop()
    samples = [_as_sample(ids, completion) for ids, completion in zip(training, drawn, strict=True)]
    return [sample for sample in samples if any(sample.loss_mask)], greedy


async def _measure(engine: Engine, prompts: Sequence[tuple[int, ...]], settings: GraftSettings) -> Measured:
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)
    await engine.start()
    try:
        await asyncio.gather(*(engine.sample(ids, replace(params, seed=10**6 + i)) for i, ids in enumerate(prompts)))
        acceptance = engine.acceptance_by_position()
        greedy = await _greedy(engine, prompts, settings)
    finally:
        await engine.stop()
    return Measured(acceptance=acceptance, greedy=tuple(greedy))


async def _greedy(engine: Engine, prompts: Sequence[tuple[int, ...]], settings: GraftSettings) -> list[tuple[int, ...]]:
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=0.0)
    completions = await asyncio.gather(*(engine.sample(ids, params) for ids in prompts))
    return [completion.token_ids for completion in completions]


def _as_sample(prompt: tuple[int, ...], completion: Completion) -> Sample:
    ids = prompt + completion.token_ids
    zeros = (0.0,) * len(ids)
    mask = (0,) * len(prompt) + completion.loss_mask
    return Sample(token_ids=ids, loss_mask=mask, behaviour_logprobs=zeros, advantages=zeros, oldest_version=0)


def _engine_settings(
    folder: Path, settings: GraftSettings, longest: int, num_draft_tokens: int, on_gpu: bool
) -> EngineSettings:
    length = longest + settings.max_tokens + 1
    return EngineSettings(
        index=0,
        model_folder=str(folder),
        dtype="bfloat16" if on_gpu else "float32",
        enforce_eager=not on_gpu,
        num_draft_tokens=num_draft_tokens,
        draft_schedule=(),
        max_num_seqs=512 if on_gpu else 64,
        max_model_len=length,
        max_num_batched_tokens=max(8192, length),
        kv_cache_bytes=None if on_gpu else 2**30,
        gpu_memory_utilization=0.5,
        transport="memory",
        seed=settings.seed,
        deadline_seconds=600.0,
    )


def _percent(acceptance: Sequence[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in acceptance)
