"""Weight sync as a run does it: learner ranks and an engine in their Ray actors, requests running meanwhile.

    scripts/bench/gpu_sync.py 1.5b nccl|ipc|memory [--zero 2] [--rounds 6] [--learner-idle]

The first version goes through vLLM's reload, the later ones in place where they can. For both it says: how long
requests stood still; how long the transfer took (receiving and loading, policy and draft), as GB/s, and as a share of
what a plain copy of as many bytes over the same link makes; and how long preparing and finishing took. Versions whose
checksums or probe disagree end the program. `ipc` shares one GPU between learner and engine; `nccl` needs two.

As in a run the learner scores the probe meanwhile, on a shared GPU in turns with the transfer; with `--learner-idle` it
has done so before.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
import torch
from gpu_common import SHAPES, device, num_parameters, random_policy, report, run_config

from rlvr.actors import EngineHandle, LearnerHandle
from rlvr.placement import Placement
from rlvr.types import SamplingParams
from rlvr.weight_sync import Probe, SyncReport, publish

PROBE = tuple(range(20, 52))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("transport", choices=("nccl", "ipc", "memory"))
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--learner-idle", action="store_true")
    arguments = parser.parse_args()
    folder = random_policy(arguments.size)
    shared = arguments.transport == "ipc"
    config = run_config(
        folder, max_model_len=2048,
        inference={"gpus_per_engine": 0.4 if shared else 1.0, "weight_transfer": arguments.transport,
                   "gpu_memory_utilization": 0.2, "enforce_eager": True, "kv_cache_bytes": 2**33},
        learner={"gpus_per_rank": 0.6 if shared else 1.0, "zero_stage": arguments.zero, "compile": False},
    )  # fmt: skip
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        asyncio.run(measure(arguments, config, str(folder)))
    finally:
        ray.shutdown()


async def measure(arguments: Any, config: Any, folder: str) -> None:
    placement = Placement(config)
    engine, learner = EngineHandle(0, config, folder, placement), LearnerHandle(config, folder, placement)
    began = time.perf_counter()
    for part, starting in (
        ("engine", engine.start(0)),
        ("learner", learner.start(None)),
        ("connection", learner.connect([engine])),
    ):
        await starting
        print(f"{part} there after {time.perf_counter() - began:.1f} s", flush=True)

    async def probe(expected: Awaitable[list[float]]) -> Probe:
        return Probe(token_ids=PROBE, expected=tuple((await expected)[1:]), tolerance=1.0)

    rounds = []
    for version in range(1, arguments.rounds + 1):
        running = [
            engine.actor.sample.remote(PROBE, SamplingParams(max_tokens=200, seed=None))
            for _ in range(arguments.requests)
        ]
        await asyncio.sleep(0.3)
        weights, checksums = learner.weights(version)
        engine.to_publish(weights)
        expected = asyncio.ensure_future(learner.value(learner.logprobs(PROBE)))
        if arguments.learner_idle:
            await asyncio.wait([expected])
        began = time.perf_counter()
        sent = asyncio.create_task(learner.checksums(checksums))
        sent.add_done_callback(lambda _, began=began: learner_seconds.append(time.perf_counter() - began))
        outcome = await publish(version, sent, [engine], probe(expected))
        completions = await asyncio.gather(*running)
        across = sum(len(completion.weight_spans) > 1 for completion in completions)
        rounds.append(outcome)
        print(f"version {version}: {outcome}, {across} of {arguments.requests} requests went across", flush=True)
    await asyncio.gather(engine.stop(), learner.stop())
    policy, draft, _ = num_parameters(random_policy(arguments.size))
    num_bytes = 2 * (policy + draft)
    link = link_rate(arguments.transport, num_bytes)
    report(
        program="gpu_sync", size=arguments.size, transport=arguments.transport, zero=arguments.zero,
        learner_idle=arguments.learner_idle,
        gigabytes=num_bytes / 1e9, link_gigabytes_per_second=link, device=device(),
        learner_seconds=statistics.median(learner_seconds[1:]),
        probe_error=max(outcome.probe_error for outcome in rounds),
        first=figures(rounds[:1], num_bytes, link), later=figures(rounds[1:], num_bytes, link),
    )  # fmt: skip


def figures(rounds: Sequence[SyncReport], num_bytes: int, link: float) -> dict[str, Any]:
    """Medians over some versions; `worst` is the longest standstill among them."""

    def median(phase: str) -> float:
        of_parts = [sum(s for name, s in each.phases.items() if name.startswith(f"to {phase} its")) for each in rounds]
        return statistics.median(of_parts)

    rate = num_bytes / 1e9 / median("load")
    return {
        "loading": rounds[-1].loading,
        "standstill_seconds": statistics.median(each.paused_seconds for each in rounds),
        "worst_standstill_seconds": max(each.paused_seconds for each in rounds),
        "transfer_seconds": median("load"),
        "transfer_gigabytes_per_second": rate,
        "share_of_link": rate / link,
        "prepare_seconds": median("prepare"),
        "finish_seconds": median("finish"),
        # Requests have resumed by then, and steps go on beside it.
        "summing_seconds": statistics.median(each.phases["to sum what it loaded"] for each in rounds),
        "total_seconds": statistics.median(each.total_seconds for each in rounds),
        "phases": {name: round(seconds, 5) for name, seconds in rounds[-1].phases.items()},
    }


learner_seconds: list[float] = []


def link_rate(transport: str, num_bytes: int) -> float:
    """GB/s of plain copies of as many bytes: between two GPUs, within one, or from host memory."""
    here, there = {"nccl": ("cuda:0", "cuda:1"), "ipc": ("cuda:0", "cuda:0"), "memory": ("cpu", "cuda:0")}[transport]
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=here)
    target = torch.zeros(num_bytes, dtype=torch.uint8, device=there)
    seconds = []
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(there)
        seconds.append(time.perf_counter() - began)
    return num_bytes / 1e9 / min(seconds)


if __name__ == "__main__":
    main()
