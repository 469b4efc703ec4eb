"""The quickstart's program on CUDA: on one shared GPU (weights over CUDA IPC), and on two (over NCCL)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.runs import Run, write_config
from tests.tiny import add_vision, write_checkpoint, write_qwen35

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SHARED = ("inference.gpus_per_engine=0.4", "learner.gpus_per_rank=0.6")
SEPARATE = ("inference.gpus_per_engine=1", "learner.gpus_per_rank=1")


@pytest.mark.parametrize(
    ("placement", "transport"), [(SHARED, "ipc"), (SEPARATE, "nccl"), (SHARED, "memory")],
    ids=["ipc", "nccl", "memory"],
)  # fmt: skip
def test_every_version_reaches_policy_and_draft_of_the_engine(
    placement: tuple[str, ...], transport: str, tmp_path: Path
) -> None:
    """The run itself compares checksums of both and the probe after each sync, and ends where they differ."""
    if transport == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    config = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    run = Run(config, tmp_path, "learner.zero_stage=2", f"inference.weight_transfer={transport}", *placement)
    assert run.wait(400) == 0, run.output()
    assert {step["sync/in_place"] for step in run.metrics() if "sync/in_place" in step and step["step"] > 2} == {1.0}
    errors = [step["sync/probe_error"] for step in run.metrics() if "sync/probe_error" in step]
    assert len(errors) == 5
    assert max(errors) < 0.5


def test_a_published_qwen35_with_delta_net_layers_trains(tmp_path: Path) -> None:
    """Those layers run in vLLM on GPUs alone. Compared by the run itself, as above."""
    published = add_vision(write_qwen35(tmp_path / "text", hybrid=True), tmp_path / "published")
    run = Run(write_config(tmp_path, published), tmp_path, "run.num_steps=3", "learner.zero_stage=2", *SHARED)
    assert run.wait(400) == 0, run.output()
    assert max(step["sync/probe_error"] for step in run.metrics() if "sync/probe_error" in step) < 0.5
