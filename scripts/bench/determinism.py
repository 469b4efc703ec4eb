"""Two synchronous runs with one seed: are their losses and weights the same, bit for bit?

scripts/bench/determinism.py [--steps 10] [--folder runs/bench]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import TrainProcess, machine, read_metrics
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    losses, weights = [], []
    for name in ("sync-a", "sync-b"):
        folder = options.folder.absolute() / name
        TrainProcess(folder, "rollout.max_staleness=0", f"run.num_steps={options.steps}", "eval.num_tasks=64").lines()
        steps, _ = read_metrics(folder)
        losses.append([step["loss/policy"] for step in steps])
        newest = max((folder / "checkpoints").glob("step-*"))
        weights.append(load_file(newest / "model" / "model.safetensors"))
    same = sum(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    furthest = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    print(f"\n{machine()}\n")
    print(
        f"{options.steps} steps at max_staleness = 0, twice: losses {'equal' if losses[0] == losses[1] else 'DIFFER'}, "
        f"{same} of {len(weights[0])} tensors equal bit for bit, largest weight difference {furthest:g}"
    )


if __name__ == "__main__":
    main()
