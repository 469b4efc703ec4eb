"""Rollout tokens/s with MTP drafting against without, by the number of running requests.

    scripts/bench/gpu_mtp.py FOLDER|0.5b|1.5b [--drafts 0 1 auto] [--acceptance 0.8] [--schedule 1-128:1,129-512:0]
    scripts/bench/gpu_mtp.py tiny --cpu

FOLDER is a checkpoint with an MTP layer, whose real acceptance is measured; a size is random weights, for which
`--acceptance` sets the share of drafts that vLLM accepts (`rejection_sample_method = "synthetic"`, for measuring only).
Each of `--drafts` is an engine of its own: so many tokens at once, by `--schedule` where one is given, or `auto`, at
most `--most`, by the schedule that the engine measures (`inference.draft_schedule = "auto"`). Each has a process and,
while there are as many, a GPU of its own; they take turns round by round, so that one is measured at a time and all of
them in the same minutes. Every request draws 256 tokens, past the end of its turn too, so that as many run to the last;
its prompt is one of the math environment, or 64 random tokens. A round counts from its first request to its last token,
after a short one of the same size to warm up, behind which `auto` chooses as it does after an update of the weights.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rlvr.inference.draft_schedule import DraftSchedule, as_schedule
from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.types import Completion, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy")
    parser.add_argument("--drafts", nargs="+", default=["0", "1", "auto"])
    parser.add_argument("--most", type=int, help="tokens that auto may draft; default: the most of the fixed depths")
    parser.add_argument("--acceptance", type=float, help="of each draft whose forerunners were accepted")
    parser.add_argument("--schedule", default="")
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 16 64 256 512; on the CPU 1 4 16")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--graph-tokens", type=int, help="as inference.cuda_graph_tokens; 512 is vLLM's own border")
    parser.add_argument("--cache-gib", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="to try the program: float32, eager, a small cache")
    arguments = parser.parse_args()
    if arguments.cpu and arguments.acceptance is not None:
        parser.error("--acceptance: vLLM cannot set it on the CPU; leave it out, and the policy's own is measured")
    arguments.most = arguments.most or max([1, *(int(drafts) for drafts in arguments.drafts if drafts != "auto")])
    arguments.batches = arguments.batches or ([1, 4, 16] if arguments.cpu else [1, 16, 64, 256, 512])
    os.environ.update(environment_variables(num_threads=1, on_gpu=not arguments.cpu))
    import torch
    from gpu_common import SHAPES, random_policy

    folder = random_policy(arguments.policy) if arguments.policy in SHAPES else Path(arguments.policy)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    engines: dict[str, EngineProcess] = {}  # by --drafts
    with contextlib.ExitStack() as stack:
        for first in range(0, len(arguments.drafts), len(gpus)):  # one at a time starts on a GPU
            together = arguments.drafts[first : first + len(gpus)]
            for drafts, gpu in zip(together, gpus, strict=False):
                engines[drafts] = EngineProcess(arguments, folder, drafts, gpu)
                stack.callback(engines[drafts].stop)
            for drafts in together:
                print(f"--drafts {drafts}: engine started in {engines[drafts].answer():.0f} s", flush=True)
        speeds = measure(arguments, folder, engines)
    print(f"\ntokens/s, as a ratio to --drafts {arguments.drafts[0]}, by running requests")
    print("".join(f"{title:>10}" for title in ("", *arguments.batches)))
    for drafts, found in speeds.items():
        ratios = [found[batch] / speeds[arguments.drafts[0]][batch] for batch in arguments.batches]
        print(f"{drafts:>10}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
    fixed = {int(drafts): found for drafts, found in speeds.items() if drafts != "auto"}
    if len(fixed) > 1:
        best = {batch: max(fixed, key=lambda drafts: fixed[drafts][batch]) for batch in arguments.batches}
        print(f"fastest of the fixed depths: draft_schedule = {[list(entry) for entry in as_schedule(best)]}")


def parse_schedule(text: str) -> DraftSchedule:
    entries = []
    for entry in filter(None, text.split(",")):
        span, depth = entry.split(":")
        first, last = span.split("-")
        entries.append((int(first), int(last), int(depth)))
    return tuple(entries)


class EngineProcess:
    """An engine in a process of its own, which answers one question after the other."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, drafts: str, gpu: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(arguments, folder, drafts, gpu, theirs))
        self._process.start()
        theirs.close()  # so that its end is heard of

    def ask(self, what: str, batch: int) -> Any:
        self._pipe.send((what, batch))
        return self.answer()

    def answer(self, deadline_seconds: float = 400) -> Any:
        if not self._pipe.poll(deadline_seconds):
            raise TimeoutError(f"no answer in {deadline_seconds:.0f} s from the engine in process {self._process.pid}")
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(60)
        self._process.kill()


def measure(
    arguments: argparse.Namespace, folder: Path, engines: dict[str, EngineProcess]
) -> dict[str, dict[int, float]]:
    """Tokens/s by --drafts and number of requests, medians over rounds in turns."""
    from gpu_common import device, report

    speeds: dict[str, dict[int, float]] = {drafts: {} for drafts in engines}
    for batch in arguments.batches:
        prepared = {drafts: engine.ask("prepare", batch) for drafts, engine in engines.items()}
        rounds: dict[str, list[dict[str, Any]]] = {drafts: [] for drafts in engines}
        for _ in range(arguments.rounds):
            for drafts, engine in engines.items():
                rounds[drafts].append(engine.ask("round", batch))
        for drafts, measured in rounds.items():
            each = [one["produced"] / one["seconds"] for one in measured]
            speeds[drafts][batch] = speed = median(each)
            drafted, accepted = (sum(one[key] for one in measured) for key in ("drafted", "accepted"))
            report(
                program="gpu_mtp", policy=folder.name, drafts=drafts, batch=batch, eager=arguments.eager,
                **prepared[drafts], tokens_per_second=speed, rounds=[round(one) for one in each],
                against_first=speed / speeds[arguments.drafts[0]][batch], acceptance=accepted / max(drafted, 1),
                by_position=engines[drafts].ask("positions", batch), device=device(),
            )  # fmt: skip
    return speeds


def serve(arguments: argparse.Namespace, folder: Path, drafts: str, gpu: str, pipe: Connection) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is looked for
    asyncio.run(engine_on_request(arguments, folder, drafts, pipe))


async def engine_on_request(arguments: argparse.Namespace, folder: Path, drafts: str, pipe: Connection) -> None:
    """Starts the engine, answers with the seconds that took, and then does what `pipe` asks for, until it is closed."""
    from gpu_common import prompts

    num_draft_tokens = arguments.most
    schedule: DraftSchedule | Literal["auto"] = "auto"
    if drafts != "auto":
        num_draft_tokens = int(drafts)
        schedule = parse_schedule(arguments.schedule) if num_draft_tokens else ()

    class Measured(Engine):
        def speculation(self) -> dict[str, Any]:
            if arguments.acceptance is None:
                return super().speculation()
            rates = [arguments.acceptance ** (position + 1) for position in range(num_draft_tokens)]
            synthetic = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
            return super().speculation() | synthetic

        async def _generate(self, prompt_ids: Sequence[int], **params: Any) -> Any:
            return await super()._generate(prompt_ids, **params | {"ignore_eos": True, "stop_token_ids": []})

    engine = Measured(
        EngineSettings(
            index=0,
            model_folder=str(folder),
            dtype="float32" if arguments.cpu else "bfloat16",
            enforce_eager=arguments.eager or arguments.cpu,
            num_draft_tokens=num_draft_tokens,
            draft_schedule=schedule,
            max_num_seqs=max(arguments.batches),
            max_model_len=1024,
            max_num_batched_tokens=8192,
            kv_cache_bytes=2**28 if arguments.cpu else arguments.cache_gib * 2**30,
            gpu_memory_utilization=0.2,
            transport="memory",
            seed=0,
            deadline_seconds=400,
            cuda_graph_tokens=arguments.graph_tokens,
        )
    )
    started = time.perf_counter()
    await engine.start()
    pipe.send(time.perf_counter() - started)
    auto = engine.depth_by_load
    costs = {size: [float(f"{cost:.4g}") for cost in of_size] for size, of_size in auto.costs.items()} if auto else {}
    while True:
        try:
            what, batch = await asyncio.to_thread(pipe.recv)
        except EOFError:
            break
        asked = prompts(folder, batch)
        if what == "prepare":
            await one_round(engine, asked, 16)
            if auto is not None:
                await auto.choose()
            engine.acceptance_by_position()  # counts from here on
            pipe.send({"schedule": as_schedule(auto.depths) if auto else arguments.schedule, "step_seconds": costs})
        elif what == "round":
            completions, seconds = await one_round(engine, asked, arguments.tokens)
            pipe.send(
                {
                    "seconds": seconds,
                    "produced": sum(len(completion.token_ids) for completion in completions),
                    "drafted": sum(completion.num_draft_tokens for completion in completions),
                    "accepted": sum(completion.num_accepted_tokens for completion in completions),
                }
            )
        else:
            pipe.send([round(share, 4) for share in engine.acceptance_by_position()])
    await engine.stop()


async def one_round(engine: Engine, asked: Sequence[tuple[int, ...]], tokens: int) -> tuple[list[Completion], float]:
    began = time.perf_counter()
    completions = await asyncio.gather(*(engine.sample(ids, SamplingParams(max_tokens=tokens)) for ids in asked))
    return completions, time.perf_counter() - began


if __name__ == "__main__":
    main()
