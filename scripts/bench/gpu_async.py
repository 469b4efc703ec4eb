"""Asynchronous against synchronous: the same run at several `max_staleness`, trained tokens/s and time to an accuracy.

    scripts/bench/gpu_async.py configs/quickstart.toml --accuracy 0.85 --staleness 0 1 2 4 [section.key=value ...]

Trained tokens/s counts prompt and completion tokens of all samples that a step learned from, by the clock from the end
of the fifth step on, evaluations included; the accuracy is the held-out one that the run measures on its way
(`eval.every`), and the time to it includes the first steps, where an asynchronous run starts with one of staleness 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_common import device, report

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--accuracy", type=float, required=True)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/async"))
    arguments = parser.parse_intermixed_args()  # settings may stand behind options
    first: float | None = None
    for staleness in arguments.staleness:
        name = f"staleness-{staleness}"
        shutil.rmtree(arguments.folder / name, ignore_errors=True)
        command = [
            sys.executable, "-m", "rlvr.cli", "train", arguments.config, f"run.folder={arguments.folder.absolute()}",
            f"run.name={name}", f"rollout.max_staleness={staleness}", *arguments.settings,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        lines = [json.loads(line) for line in (arguments.folder / name / "metrics.jsonl").read_text().splitlines()]
        steps, last = [line for line in lines if "staleness/max" in line], lines[-1]
        counted = steps[WARM_UP:]
        seconds = steps[-1]["time/elapsed_seconds"] - steps[WARM_UP - 1]["time/elapsed_seconds"]
        speed = sum(step["learner/num_tokens"] for step in counted) / seconds
        first = first or speed
        accurate = (step for step in steps if step.get("eval/accuracy", 0.0) >= arguments.accuracy)
        reached = next((step["time/elapsed_seconds"] for step in accurate), None)
        report(
            program="gpu_async", config=Path(arguments.config).name, settings=arguments.settings, staleness=staleness,
            steps=len(steps), trained_tokens_per_second=speed, against_first=speed / first,
            accuracy=arguments.accuracy, seconds_to_accuracy=reached, accuracy_after=last.get("eval/accuracy/after"),
            learner_share=sum(step["learner/step_seconds"] for step in counted) / seconds,
            waiting_share=sum(step["time/wait_seconds"] for step in counted) / seconds, device=device(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
