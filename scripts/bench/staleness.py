"""The staleness bound, with two engines of which one runs at a tenth of its speed.

    scripts/bench/staleness.py [--steps 20] [--folder runs/bench]

Prints, for max_staleness 0, 1 and 2, the largest staleness at which a sample was consumed, over the whole run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import QUICKSTART, TrainProcess, machine, read_metrics

from rlvr.inference.engine import Engine
from rlvr.types import Completion, SamplingParams


class SlowedEngine(Engine):
    """Engine 0 takes ten times as long for every completion as it would."""

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        began = time.perf_counter()
        completion = await super().sample(prompt_ids, params)
        if self.settings.index == 0:
            await asyncio.sleep(9 * (time.perf_counter() - began))
        return completion


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    rows = []
    for bound in (0, 1, 2):
        folder = options.folder.absolute() / f"staleness-{bound}"
        TrainProcess(
            folder,
            f"rollout.max_staleness={bound}",
            f"run.num_steps={options.steps}",
            "inference.num_engines=2",
            "eval.num_tasks=64",
            program=(sys.executable, __file__, "--run"),
        ).lines()
        steps, _ = read_metrics(folder)
        staleness = [step["staleness/max"] for step in steps]
        seconds = sum(step["time/step_seconds"] for step in steps)
        rows.append(f"| {bound} | {max(staleness)} | {len(steps)} | {seconds:.0f} s |")
    print(f"\n{machine()}\n\nTwo engines, one slowed to a tenth of its speed:\n")
    print("| max_staleness | largest staleness at consumption | steps | time |\n|---|---|---|---|")
    print("\n".join(rows))


def run(overrides: Sequence[str]) -> None:
    from rlvr.config import load
    from rlvr.train import train

    train(load(QUICKSTART, overrides), engine_class=SlowedEngine)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[3:])
    else:
        main()
