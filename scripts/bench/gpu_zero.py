"""The same losses whatever the ZeRO stage and the number of ranks: six steps of the learner, each case on its own.

    scripts/bench/gpu_zero.py [--ranks 1 2]

A Qwen2 of 60 million random parameters with an MTP layer, a learning rate that moves it, warm-up off. Stage 0 keeps no
float32 master weights, so it runs in float32 alone; the others in float32 and bfloat16. Said of every case: its losses
and policy gradient norms, and how far the worst step lies from the first case of the same dtype.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from gpu_common import device, report, run_config
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlvr.batching import pack
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.learner import Learner
from rlvr.learner.model import PolicyModel
from rlvr.learner.mtp import MtpLayer
from rlvr.types import LossSettings, Sample

STEPS = 6
CASES = [
    (0, "float32"),
    (1, "float32"),
    (2, "float32"),
    (3, "float32"),
    (1, "bfloat16"),
    (2, "bfloat16"),
    (3, "bfloat16"),
]

gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0,1").split(",")
environment = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    folder = small_policy()
    reference: dict[str, list[dict[str, float]]] = {}
    cases = [(stage, dtype, ranks) for stage, dtype in CASES for ranks in arguments.ranks]
    with ThreadPoolExecutor(len(cases)) as pool:  # all at once: nothing here is timed
        running = [(case, pool.submit(run, folder, *case)) for case in cases]
        for (stage, dtype, ranks), future in running:
            steps = future.result()
            first = reference.setdefault(dtype, steps)
            report(
                program="gpu_zero", stage=stage, dtype=dtype, ranks=ranks,
                losses=[round(step["loss/policy"], 6) for step in steps],
                mtp_losses=[round(step["mtp/loss"], 5) for step in steps],
                grad_norms=[round(step["grad_norm/policy"], 6) for step in steps],
                worst_mtp_loss=max(abs(a["mtp/loss"] - b["mtp/loss"]) for a, b in zip(steps, first, strict=True)),
                worst_grad_norm=max(
                    abs(a["grad_norm/policy"] / b["grad_norm/policy"] - 1) for a, b in zip(steps, first, strict=True)
                ),
                device=device(),
            )  # fmt: skip


def run(folder: Path, stage: int, dtype: str, ranks: int) -> list[dict[str, float]]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=train, args=(queue, folder, stage, dtype, rank, ranks, port)) for rank in range(ranks)
    ]
    for gpu, process in zip(gpus, processes, strict=False):
        with environment:  # a process inherits it as it starts; its imports may begin to use CUDA
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            process.start()
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not any(process.exitcode for process in processes):
        with contextlib.suppress(Empty):
            steps: list[dict[str, float]] = queue.get(timeout=1)
            for process in processes:
                process.join(60)
            return steps
    for process in processes:
        process.kill()
    raise RuntimeError(f"stage {stage} in {dtype} on {ranks} ranks: exit codes {[p.exitcode for p in processes]}")


def train(queue: Any, folder: Path, stage: int, dtype: str, rank: int, ranks: int, port: int) -> None:
    settings = {"gpus_per_rank": 1.0, "num_ranks": ranks, "zero_stage": stage, "dtype": dtype, "learning_rate": 1e-3,
                "micro_batch_tokens": 1024, "compile": False}  # fmt: skip
    config = run_config(folder, max_model_len=512, learner=settings)  # fmt: skip
    learner = Learner(
        config=config, model_folder=str(folder), rank=rank, world_size=ranks, master_addr="localhost", master_port=port
    )
    generator = random.Random(0)
    steps = []
    for _ in range(STEPS):
        samples = []
        for _ in range(12):
            mask = tuple(int(i >= 8) for i in range(generator.randint(64, 512)))
            advantage = generator.choice([1.0, -1.0])
            samples.append(
                Sample(
                    token_ids=tuple(generator.randrange(4096) for _ in mask),
                    loss_mask=mask,
                    behaviour_logprobs=tuple(-8.3 * m for m in mask),
                    advantages=tuple(advantage * m for m in mask),
                    oldest_version=0,
                    loss=LossSettings(importance_min=1e-9, importance_max=1e9),
                )
            )
        batch = pack(samples, num_ranks=ranks, micro_batch_tokens=1024)
        steps.append(learner.step([(batch.shards[rank], batch.num_loss_tokens)]))
    if rank == 0:
        queue.put(steps)
    learner.close()


def small_policy() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rlvr-zero-"))
    config = Qwen2Config(
        vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, attn_implementation=IMPLEMENTATION,
    )  # fmt: skip
    torch.manual_seed(0)
    PolicyModel(Qwen2ForCausalLM(config), MtpLayer(config)).save(folder)
    return folder


if __name__ == "__main__":
    main()
