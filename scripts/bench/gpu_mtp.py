"""Rollout tokens/s with MTP drafting against without, by the number of running requests: one engine on one GPU.

    scripts/bench/gpu_mtp.py FOLDER|0.5b|1.5b [--drafts 0 1] [--acceptance 0.8] [--schedule 1-128:1,129-512:0]

FOLDER is a checkpoint with an MTP layer, whose real acceptance is measured; a size is random weights, for which
`--acceptance` sets the share of drafts that vLLM accepts (`rejection_sample_method = "synthetic"`, for measuring only).
Every request draws 256 tokens, past the end of its turn too, so that as many run to the last; its prompt is one of the
math environment, or 64 random tokens. A round counts from its first request to its last token, after a short one of the
same size to warm up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.types import SamplingParams

BATCHES = (1, 16, 64, 256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy")
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--acceptance", type=float)
    parser.add_argument("--schedule", default="")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--cache-gib", type=int, default=8)
    arguments = parser.parse_args()
    os.environ.update(environment_variables(num_threads=1, on_gpu=True))
    from gpu_common import SHAPES, random_policy

    folder = random_policy(arguments.policy) if arguments.policy in SHAPES else Path(arguments.policy)
    speeds: dict[int, dict[int, float]] = {}  # by depth and number of requests
    for drafts in arguments.drafts:
        speeds[drafts] = asyncio.run(measure(arguments, folder, drafts, speeds))
    best = [max(speeds, key=lambda drafts: speeds[drafts][batch]) for batch in arguments.batches]
    print(f"fastest here: draft_schedule = {schedule_of(arguments.batches, best)}")


def schedule_of(batches: Sequence[int], depths: Sequence[int]) -> list[list[int]]:
    """`inference.draft_schedule`: each depth up to half way (by ratio) to the first batch size that wants another."""
    entries: list[list[int]] = []
    for batch, depth in zip(batches, depths, strict=True):
        if entries and entries[-1][2] != depth:
            entries[-1][1] = round((entries[-1][1] * batch) ** 0.5)
            entries.append([entries[-1][1] + 1, batch, depth])
        elif entries:
            entries[-1][1] = batch
        else:
            entries.append([1, batch, depth])
    return entries


def parse_schedule(text: str) -> tuple[tuple[int, int, int], ...]:
    entries = []
    for entry in filter(None, text.split(",")):
        span, depth = entry.split(":")
        first, last = span.split("-")
        entries.append((int(first), int(last), int(depth)))
    return tuple(entries)


async def measure(arguments: Any, folder: Path, drafts: int, before: dict[int, dict[int, float]]) -> dict[int, float]:
    from gpu_common import device, prompts, report

    class Measured(Engine):
        def speculation(self) -> dict[str, Any]:
            if arguments.acceptance is None:
                return super().speculation()
            rates = [arguments.acceptance ** (position + 1) for position in range(drafts)]
            synthetic = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
            return super().speculation() | synthetic

        async def _generate(self, prompt_ids: Sequence[int], **params: Any) -> Any:
            return await super()._generate(prompt_ids, **params | {"ignore_eos": True, "stop_token_ids": []})

    engine = Measured(
        EngineSettings(
            index=0,
            model_folder=str(folder),
            dtype="bfloat16",
            enforce_eager=arguments.eager,
            num_draft_tokens=drafts,
            draft_schedule=parse_schedule(arguments.schedule) if drafts else (),
            max_num_seqs=max(arguments.batches),
            max_model_len=1024,
            max_num_batched_tokens=8192,
            kv_cache_bytes=arguments.cache_gib * 2**30,
            gpu_memory_utilization=0.2,
            transport="memory",
            seed=0,
            deadline_seconds=400,
        )
    )
    started = time.perf_counter()
    await engine.start()
    start_seconds = time.perf_counter() - started
    found: dict[int, float] = {}
    for batch in arguments.batches:
        for warm in (True, False):
            tokens = 16 if warm else arguments.tokens
            asked = prompts(folder, batch)
            began = time.perf_counter()
            completions = await asyncio.gather(
                *(engine.sample(ids, SamplingParams(max_tokens=tokens)) for ids in asked)
            )
            seconds = time.perf_counter() - began
            by_position = engine.acceptance_by_position()
        produced = sum(len(completion.token_ids) for completion in completions)
        drafted = sum(completion.num_draft_tokens for completion in completions)
        accepted = sum(completion.num_accepted_tokens for completion in completions)
        speed = produced / seconds
        found[batch] = speed
        first = next(iter(before.values()), found)[batch]
        report(
            program="gpu_mtp", policy=folder.name, drafts=drafts, schedule=arguments.schedule, batch=batch,
            eager=arguments.eager, tokens_per_second=speed, against_first=speed / first, tokens=produced,
            acceptance=accepted / drafted if drafted else 0.0,
            by_position=[round(share, 4) for share in by_position], start_seconds=start_seconds, device=device(),
        )  # fmt: skip
    await engine.stop()
    return found


if __name__ == "__main__":
    main()
