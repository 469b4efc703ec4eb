"""It learns, in time, and the MTP layer keeps up.

    scripts/bench/learning.py [--seeds 0 1 2] [--frozen-mtp] [--folder runs/bench] [section.key=value ...]

Trains configs/quickstart.toml for each seed and prints held-out accuracy (greedy) before and after, the time of the
whole command, of its first line of progress, and the acceptance of drafts over the first and the last five steps.
`--frozen-mtp` adds a run of the first seed whose MTP layer is not trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from common import TrainProcess, first, machine, read_metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frozen-mtp", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()

    runs = [(f"seed {seed}", f"learning-{seed}", [f"run.seed={seed}"]) for seed in options.seeds]
    if options.frozen_mtp:
        seed = options.seeds[0]
        runs.append(
            (f"seed {seed}, MTP frozen", f"learning-{seed}-frozen", [f"run.seed={seed}", "learner.mtp.train=false"])
        )
    rows = []
    for name, folder_name, overrides in runs:
        folder = options.folder.absolute() / folder_name
        lines = TrainProcess(folder, *overrides, *options.overrides).lines()
        steps, last = read_metrics(folder)
        before, after = last["eval/accuracy/before"], last["eval/accuracy/after"]
        acceptance = [step["draft/acceptance"] for step in steps if "draft/acceptance" in step]
        rows.append(
            f"| {name} | {before:.3f} | {after:.3f} | {after - before:+.3f} | {len(steps)} | "
            f"{fmean(acceptance[:5]):.3f} | {fmean(acceptance[-5:]):.3f} | {lines[-1][0]:.0f} s | "
            f"{first(lines, lambda line: True):.0f} s |"
        )
    print(f"\n{machine()}\n")
    print("| run | before | after | rise | steps | accepted, first 5 | last 5 | whole command | first line |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
