"""Engine against learner in bfloat16: how far apart their log-probabilities of the same sampled tokens are.

    scripts/bench/gpu_mismatch.py FOLDER|0.5b|1.5b [--eager] [--drafts 1]

Both on one GPU. 128 completions of up to 256 tokens at temperature 1; mean, 99.9th percentile and largest absolute
difference in nats, and the share of tokens that the importance mask (ratio outside 0.5 to 2) would leave out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.types import Completion, SamplingParams

NUM_REQUESTS = 128
Pair = tuple[tuple[int, ...], Completion]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--drafts", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.update(environment_variables(num_threads=1, on_gpu=True))
    from gpu_common import SHAPES, device, random_policy, report

    folder = random_policy(arguments.policy) if arguments.policy in SHAPES else Path(arguments.policy)
    pairs = asyncio.run(sample(folder, arguments))
    report(program="gpu_mismatch", policy=folder.name, eager=arguments.eager, drafts=arguments.drafts,
           **compare(folder, pairs), device=device())  # fmt: skip


async def sample(folder: Path, arguments: Any) -> list[Pair]:
    engine = Engine(
        EngineSettings(
            index=0,
            model_folder=str(folder),
            dtype="bfloat16",
            enforce_eager=arguments.eager,
            num_draft_tokens=arguments.drafts,
            draft_schedule=(),
            max_num_seqs=NUM_REQUESTS,
            max_model_len=512,
            max_num_batched_tokens=8192,
            kv_cache_bytes=2**32,
            gpu_memory_utilization=0.2,
            transport="memory",
            seed=0,
            deadline_seconds=400,
        )
    )
    await engine.start()
    from gpu_common import prompts

    asked = prompts(folder, NUM_REQUESTS)
    completions = await asyncio.gather(*(engine.sample(prompt, SamplingParams(max_tokens=256)) for prompt in asked))
    await engine.stop()
    return list(zip(asked, completions, strict=True))


def compare(folder: Path, pairs: list[Pair]) -> dict[str, float]:
    import torch
    from gpu_common import run_config

    from rlvr.learner.learner import Learner

    config = run_config(folder, max_model_len=512, learner={"gpus_per_rank": 1.0, "compile": False})
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    learner = Learner(
        config=config, model_folder=str(folder), rank=0, world_size=1, master_addr="localhost", master_port=port
    )
    differences = []
    for prompt, completion in pairs:
        values = learner.logprobs([*prompt, *completion.token_ids])[len(prompt) :]
        differences += [ours - theirs for ours, theirs in zip(values, completion.logprobs, strict=True)]
    learner.close()
    diff = torch.tensor(differences, dtype=torch.float64)
    return {
        "num_tokens": len(diff),
        "mean_abs": float(diff.abs().mean()),
        "p999_abs": float(diff.abs().quantile(0.999)),
        "max_abs": float(diff.abs().max()),
        "mean": float(diff.mean()),
        "importance_masked": float(((diff.exp() < 0.5) | (diff.exp() > 2.0)).double().mean()),
    }


if __name__ == "__main__":
    main()
