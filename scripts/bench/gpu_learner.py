"""Learner on one GPU: trained tokens/s, model FLOPs utilisation and peak memory, beside plain full logits.

    scripts/bench/gpu_learner.py 1.5b 2048 [key=value of the learner section ...] [--naive]

One step is 65,536 tokens in packed sequences, all but a prompt of 128 tokens each under the loss mask, the MTP layer
trained beside. Counted as useful are 6 FLOPs a parameter and token (a tied head once, the embedding look-up not) and
6 * layers * hidden * length a token for causal attention; what is computed again counts nothing. `mfu` leaves the MTP
layer out; `mfu_with_mtp` counts it like a layer, and 4 FLOPs a weight of the head that its drafts go through, once
forward and once back (they do not move the head). Utilisation is given of 989 TFLOP/s, the H100's and H200's dense bf16
by NVIDIA's datasheet.
`--naive` is transformers' own model and SDPA attention with full logits, one sequence a row, the same optimizer.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from gpu_common import SHAPES, VOCABULARY, device, num_parameters, random_policy, report, run_config

from rlvr.batching import pack
from rlvr.learner.learner import Learner
from rlvr.types import LossSettings, Sample

PEAK = 989e12
TOKENS = 65_536
PROMPT = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("length", type=int)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--naive", action="store_true")
    arguments = parser.parse_args()
    folder = random_policy(arguments.size)
    overrides = dict(setting.split("=", 1) for setting in arguments.settings)
    settings = {key: tomllib.loads(f"v = {value}")["v"] for key, value in overrides.items()}
    measure = naive if arguments.naive else ours
    try:
        seconds, extra = measure(folder, arguments.length, arguments.steps, settings)
    except torch.OutOfMemoryError as error:
        report(program="gpu_learner", size=arguments.size, length=arguments.length, naive=arguments.naive,
               settings=json.dumps(settings), out_of_memory=str(error).splitlines()[0])  # fmt: skip
        return
    median = statistics.median(seconds[2:])
    shape = SHAPES[arguments.size]
    attention = 6 * shape["num_hidden_layers"] * shape["hidden_size"] * arguments.length
    policy, draft, _ = num_parameters(folder)
    flops = TOKENS * (6 * policy + attention)
    drafting = 0 if arguments.naive or settings.get("mtp") == {"train": False} else 1
    length = arguments.length
    head = 4 * shape["hidden_size"] * VOCABULARY * (length - PROMPT) / length
    with_mtp = flops + drafting * TOKENS * (6 * draft + 6 * shape["hidden_size"] * length + head)
    report(
        program="gpu_learner", size=arguments.size, length=arguments.length, naive=arguments.naive,
        settings=json.dumps(settings), step_seconds=median, first_step_seconds=seconds[0],
        tokens_per_second=TOKENS / median, mfu=flops / median / PEAK,
        mfu_with_mtp=with_mtp / median / PEAK,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30, device=device(), **extra,
    )  # fmt: skip


def samples(length: int) -> list[Sample]:
    generator = random.Random(0)
    mask = tuple(int(i >= PROMPT) for i in range(length))
    return [
        Sample(
            token_ids=tuple(generator.randrange(VOCABULARY) for _ in range(length)),
            loss_mask=mask,
            behaviour_logprobs=tuple(-12.0 * m for m in mask),
            advantages=tuple(generator.choice([1.0, -1.0]) * m for m in mask),
            oldest_version=0,
            loss=LossSettings(importance_min=1e-9, importance_max=1e9),
        )
        for _ in range(TOKENS // length)
    ]


def ours(folder: Path, length: int, steps: int, settings: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    config = run_config(
        folder, max_model_len=length, inference={"gpus_per_engine": 1.0}, learner={"gpus_per_rank": 1.0, **settings},
    )  # fmt: skip
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    learner = Learner(
        config=config, model_folder=str(folder), rank=0, world_size=1, master_addr="localhost", master_port=port
    )
    batch = pack(samples(length), num_ranks=1, micro_batch_tokens=config.learner.micro_batch_tokens)
    seconds = []
    for step in range(steps):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        metrics = learner.step([(batch.shards[0], batch.num_loss_tokens)])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    learner.close()
    return seconds, {"entropy": metrics["policy/entropy"], "grad_norm": metrics["grad_norm/policy"]}


def naive(folder: Path, length: int, steps: int, settings: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
    if settings.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-6, fused=True)
    rows = max(1, 16_384 // length)
    ids = torch.tensor([sample.token_ids for sample in samples(length)], device="cuda")
    seconds = []
    for step in range(steps):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for part in ids.split(rows):
            logp = model(part).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)
            loss = -logp.gather(-1, part[:, PROMPT:, None]).sum() / ids.numel()
            loss.backward()
            del logp, loss
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)
            master.grad = None
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, {}


if __name__ == "__main__":
    main()
