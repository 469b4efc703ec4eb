"""The starter policy: a small Qwen2 decoder with an MTP layer, taught from its environments' worked examples.

    worked examples -> tokenizer -> decoder (next token) -> MTP layer (the decoder's own predictions) -> cache

It knows the language of its environments and has their habits, the bad ones too: a run on a machine without a GPU, and
without anything to download, starts from it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Tokenizer

from rlvr import cache
from rlvr.batching import pack
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment, WorkedExample
from rlvr.learner import attention, model, mtp
from rlvr.learner.model import PolicyModel, PolicyOutput
from rlvr.rollout.renderer import with_tools
from rlvr.starter import tokenizer as tokenizer_module
from rlvr.starter.tokenizer import VOCABULARY_SIZE, train_tokenizer
from rlvr.types import Message, MicroBatch, Sample

logger = logging.getLogger(__name__)

# Numbers of steps, not minutes: the same seed gives the same weights.
POLICY_STEPS = 700
MTP_STEPS = 100
EXAMPLES_PER_STEP = 32
MTP_TOP_K = 16
# Sequences of unlike length are padded to the longest of their micro-batch: two halves waste less than one whole.
MICRO_BATCH_TOKENS = 900
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 4e-3
NUM_THREADS = 2
SECONDS_BETWEEN_LINES = 3.0

# Longer texts want more tokens for their words, or sequences get long: two for each character that an example has,
# on average, beyond those of a sum.
SHORT_EXAMPLE = 120
LARGEST_VOCABULARY = 1024


class TeachesByExample(Protocol):
    """What a starter asks of an environment beyond `Environment`: endless worked examples of its training tasks.

    None at all say that it has none under its settings.
    """

    name: str

    def worked_examples(self, seed: int) -> Iterable[tuple[Any, ...]]:
        """`rlvr.interfaces.WorkedExample`s, or plain tuples of their fields."""
        ...


def build_starter(
    environments: Sequence[Environment],
    *,
    seed: int,
    cache_folder: str | Path | None = None,
    progress: Callable[[str], None],
    policy_steps: int = POLICY_STEPS,
    mtp_steps: int = MTP_STEPS,
) -> Path:
    """A Hugging Face checkpoint folder, from the cache or built into it: about 90 s on two idle cores for one teacher.

    Every environment that has worked examples teaches, in turn. `policy_steps` are for one; each further one adds half
    as many, for what they share is learned once.
    `cache_folder` defaults to `$RLVR_CACHE`, else `~/.cache/rlvr`. The cache key holds the code, the examples and the
    seed. Two processes may build the same starter at once: each writes a folder of its own, and the first to finish
    gives its folder the name. Raises `ConfigError` where no environment has worked examples.
    """
    able = [each for each in environments if _teaches(each, seed)]
    silent = ", ".join(repr(each.name) for each in environments if each not in able)
    if not able:
        raise ConfigError(
            f"policy.path = 'starter', but environment {silent} has no `worked_examples` under its settings to teach "
            "it from; set policy.path to a checkpoint folder, or add an environment that has them"
        )
    if silent:
        logger.warning(
            "the starter policy learns nothing of environment %s, which has no worked examples under its settings; a "
            "policy.path that can solve its tasks now and then has more to learn from",
            silent,
        )
    teachers = cast("list[TeachesByExample]", able)
    taught = "+".join(teacher.name for teacher in teachers)
    name = f"starter-{taught}-{seed}-{_fingerprint(teachers, seed, policy_steps, mtp_steps)}"
    final = Path(cache_folder or cache.cache_folder()) / name
    if final.is_dir():
        progress(f"starter policy: {final} (cached)")
        return final
    num_threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    try:
        with cache.made_aside(final) as unfinished, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _build(unfinished, teachers, seed, policy_steps * (len(teachers) + 1) // 2, mtp_steps, progress)
    finally:
        torch.set_num_threads(num_threads)
    progress(f"starter policy: {final}")
    return final


def _teaches(environment: Environment, seed: int) -> bool:
    worked_examples = getattr(environment, "worked_examples", None)
    return worked_examples is not None and next(iter(worked_examples(seed)), None) is not None


def starter_config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    """One million parameters with the MTP layer. Heads of 32, because vLLM's CPU attention knows that size."""
    return Qwen2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _fingerprint(teachers: Sequence[TeachesByExample], seed: int, policy_steps: int, mtp_steps: int) -> str:
    """Of all that decides the weights: our code, the libraries, the examples (and so the environment's code)."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__} {policy_steps} {mtp_steps}".encode())
    for module in (__file__, tokenizer_module.__file__, attention.__file__, model.__file__, mtp.__file__):
        digest.update(Path(module).read_bytes())
    for example in islice(_examples(teachers, seed), 200 * len(teachers)):
        digest.update(repr(tuple(example)).encode())
    return digest.hexdigest()[:12]


def _examples(teachers: Sequence[TeachesByExample], seed: int) -> Iterator[WorkedExample]:
    """One of each teacher in turn, tools told as the starter's chat template will hear of them."""
    streams = [teacher.worked_examples(seed) for teacher in teachers]
    for example in chain.from_iterable(zip(*streams, strict=False)):
        prompt, answer, tools = WorkedExample(*example)
        yield WorkedExample(tuple(with_tools(prompt, tools)), answer)


def _build(
    folder: Path,
    teachers: Sequence[TeachesByExample],
    seed: int,
    policy_steps: int,
    mtp_steps: int,
    progress: Callable[[str], None],
) -> None:
    progress("starter policy: not in the cache; making its examples and tokenizer")
    examples = list(islice(_examples(teachers, seed), policy_steps * EXAMPLES_PER_STEP))
    tokenizer = _tokenizer(examples[: 2000 * len(teachers)])
    samples = _samples(tokenizer, examples)
    config = starter_config(tokenizer)
    policy = AutoModelForCausalLM.from_config(config, attn_implementation=attention.IMPLEMENTATION)
    layer = mtp.MtpLayer(policy.config)
    module = PolicyModel(policy, layer)

    def next_token(output: PolicyOutput, num_tokens: int) -> Tensor:
        return -output.logprobs.sum() / num_tokens

    def draft(output: PolicyOutput, num_tokens: int) -> Tensor:
        return output.mtp_loss / num_tokens

    layer.requires_grad_(False)
    _train(module, samples[: policy_steps * EXAMPLES_PER_STEP], next_token, 0, "policy", progress)
    module.requires_grad_(False)
    layer.requires_grad_(True)
    _train(module, samples[-mtp_steps * EXAMPLES_PER_STEP :], draft, MTP_TOP_K, "MTP layer", progress)
    tokenizer.save_pretrained(folder)
    policy.generation_config.save_pretrained(folder)
    module.save(folder)


def _tokenizer(examples: Sequence[WorkedExample]) -> Qwen2Tokenizer:
    texts = [message.content + message.thinking for prompt, answer, _ in examples for message in (*prompt, answer)]
    length = sum(map(len, texts)) / len(examples)
    size = min(LARGEST_VOCABULARY, VOCABULARY_SIZE + 2 * max(0, round(length) - SHORT_EXAMPLE))
    return train_tokenizer(texts, size=size)


def _samples(tokenizer: Qwen2Tokenizer, examples: list[WorkedExample]) -> list[Sample]:
    """Loss on what the assistant writes, from after `<think>` up to and with its end-of-turn token."""

    def tokens(conversations: list[list[dict[str, str]]], **options: Any) -> list[list[int]]:
        texts = tokenizer.apply_chat_template(conversations, tokenize=False, **options)
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    prompts = [[_plain(message) for message in prompt] for prompt, _, _ in examples]
    whole = [[*prompt, _plain(answer)] for prompt, (_, answer, _) in zip(prompts, examples, strict=True)]
    samples = []
    for prompt_ids, ids in zip(tokens(prompts, add_generation_prompt=True), tokens(whole), strict=True):
        while ids[-1] != tokenizer.eos_token_id:
            ids.pop()
        loss_mask = (0,) * len(prompt_ids) + (1,) * (len(ids) - len(prompt_ids))
        zeros = (0.0,) * len(ids)
        samples.append(
            Sample(
                token_ids=tuple(ids), loss_mask=loss_mask, behaviour_logprobs=zeros, advantages=zeros, oldest_version=0
            )
        )
    return samples


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content, "thinking": message.thinking}


def _train(
    module: PolicyModel,
    samples: list[Sample],
    loss_of: Callable[[PolicyOutput, int], Tensor],
    mtp_top_k: int,
    name: str,
    progress: Callable[[str], None],
) -> None:
    """One pass over `samples`; every parameter that wants a gradient learns."""
    optimizers = list(_optimizers(module))
    num_steps = len(samples) // EXAMPLES_PER_STEP
    longest = max(len(sample.token_ids) for sample in samples)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, num_steps))
        for optimizer in optimizers
    ]
    start = last_line = time.monotonic()
    for step in range(num_steps):
        batch = pack(
            samples[step * EXAMPLES_PER_STEP : (step + 1) * EXAMPLES_PER_STEP],
            num_ranks=1,
            micro_batch_tokens=max(MICRO_BATCH_TOKENS, longest),
        )
        loss = sum(_backward(module, part, loss_of, batch.num_loss_tokens, mtp_top_k) for part in batch.shards[0])
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES or step == num_steps - 1:
            last_line = now
            progress(f"starter {name}: step {step + 1}/{num_steps}, loss {loss:.3f}, {now - start:.0f} s")


def _backward(
    module: PolicyModel,
    part: MicroBatch,
    loss_of: Callable[[PolicyOutput, int], Tensor],
    num_loss_tokens: int,
    mtp_top_k: int,
) -> float:
    loss = loss_of(module(part, 1.0, mtp_top_k=mtp_top_k), num_loss_tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _optimizers(module: PolicyModel) -> Iterator[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, for it needs half of AdamW's tokens here; AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inner = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            (matrices if inner else rest).append(parameter)
    yield torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.0)
    yield torch.optim.AdamW(rest, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _learning_rate_factor(step: int, num_steps: int) -> float:
    """Up over 20 steps, flat to the half, then down in a straight line."""
    return min((step + 1) / 20, 1.0, max(0.05, 2.0 * (num_steps - step) / num_steps))
