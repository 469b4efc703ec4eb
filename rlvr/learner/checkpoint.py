"""The learner's state on disk: DeepSpeed's partitions, random number generators, and what they belong to.

<folder>/learner.json           world size, ZeRO stage, dtype: checked before anything is read; written last
<folder>/state/...              DeepSpeed: weights, optimizer, one file a rank
<folder>/rng-<rank>.pt          torch's generators
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlvr.errors import CheckpointError

TAG = "state"


def save_state(engine: Any, folder: Path, *, layout: dict[str, Any], progress: dict[str, Any]) -> None:
    """Every rank calls it. `layout` is what a resume must agree on; `progress` comes back from `load_state`."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=TAG, client_state={"progress": progress}, save_latest=False)
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    torch.save(generators, _generators_file(folder, engine.global_rank))
    dist.barrier()  # so that learner.json says: every rank's files are there
    if engine.global_rank == 0:
        (folder / "learner.json").write_text(json.dumps(layout, indent=2) + "\n")


def load_state(engine: Any, folder: Path, *, layout: dict[str, Any]) -> dict[str, Any]:
    """Every rank calls it; afterwards training goes on bit for bit. Returns `progress`.

    Raises `CheckpointError` where there is no complete checkpoint or where it was written under another layout.
    """
    try:
        saved = json.loads((folder / "learner.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no complete learner checkpoint: learner.json is missing") from error
    for name, value in layout.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{folder} was written with learner.{name} = {saved.get(name)}, this run has {value}: the optimizer's "
                f"partitions do not fit. Resume with learner.{name} = {saved.get(name)}, or start a new run from an "
                "export of that checkpoint (policy.path), which begins with a fresh optimizer"
            )
    path, client_state = engine.load_checkpoint(str(folder), tag=TAG)
    if path is None:
        raise CheckpointError(f"{folder} is damaged: DeepSpeed found no state in {folder / TAG}")
    generators = torch.load(_generators_file(folder, engine.global_rank), weights_only=True)
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
    progress: dict[str, Any] = client_state["progress"]
    return progress


def _generators_file(folder: Path, rank: int) -> Path:
    return folder / f"rng-{rank}.pt"
