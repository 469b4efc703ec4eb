"""Exactly once: a run that is killed (SIGKILL, the whole session) at ten random moments, and started again each time.

    scripts/bench/kill_and_resume.py [--kills 10] [--steps 40] [--seed 0] [--folder runs/bench]

Every second start is killed up to `--longest` seconds after it began, wherever it then is; the others up to 15 seconds
after their first step, between and during steps, syncs and checkpoints. At the end the ledger is audited: every task
trained on once, or dropped with a reason.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path

from common import TrainProcess, machine, read_metrics

from rlvr.ledger import audit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds a start may live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = options.folder.absolute() / "killed"
    overrides = (f"run.num_steps={options.steps}", "run.checkpoint_every=2", "eval.num_tasks=32", "eval.every=1000")
    for number in range(options.kills):
        process = TrainProcess(folder, *overrides, fresh=number == 0)
        if number % 2:
            wait_for_step(process, folder)
            time.sleep(rng.uniform(0.0, 15.0))
        else:
            time.sleep(rng.uniform(1.0, options.longest))
        moment = time.monotonic() - process.started
        ended = process.process.poll() is not None
        if not ended:
            process.kill()
        checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-??????"))
        print(
            f"start {number + 1}: {'had ended' if ended else 'killed'} after {moment:.1f} s, latest checkpoint "
            f"{checkpoints[-1] if checkpoints else 'none'}",
            flush=True,
        )
    TrainProcess(folder, *overrides, fresh=False).lines()
    steps, _ = read_metrics(folder)
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    fates = Counter(line.get("reason", "trained") for line in ledger)
    problems = audit(folder / "ledger.jsonl")
    in_order = [step["step"] for step in steps] == list(range(1, options.steps + 1))
    verdict = f"audit: {problems}" if problems else "every task was trained on once or dropped with a reason"
    print(f"\n{machine()}\n")
    print(
        f"{options.kills} kills, {options.steps} steps {'each there once' if in_order else 'NOT in order'}; "
        f"{len(ledger)} tasks: {dict(fates)}; {verdict}"
    )


def wait_for_step(process: TrainProcess, folder: Path) -> None:
    """Until this start has written metrics of a step."""
    metrics = folder / "metrics.jsonl"
    before = metrics.read_bytes() if metrics.exists() else b""
    while process.process.poll() is None:
        # A resumed start first cuts the file back, so growing is not enough to look at.
        now = metrics.read_bytes() if metrics.exists() else b""
        if now and now != before and not before.startswith(now):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()
