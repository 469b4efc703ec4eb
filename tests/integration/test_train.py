"""`rlvr train` on the real stack (Ray, vLLM, DeepSpeed): the promises that only the whole can keep."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from rlvr.ledger import audit
from rlvr.types import episode_from_json
from tests.integration.runs import Run, write_config
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def config(tmp_path: Path, policy: Path) -> Path:
    return write_config(tmp_path, policy)


def test_a_run_interrupted_and_then_robbed_of_a_part_goes_on_to_its_end_and_leaves_everything_it_promises(
    config: Path, tmp_path: Path
) -> None:
    config.write_text(config.read_text().replace("[rollout]", "[rollout]\nmax_staleness = 2"))
    run = Run(config, tmp_path)
    run.wait_for_step(1)
    # As a terminal does: Ray's processes and the engines get it too.
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output()
    assert "SIGINT: ending the step" in run.output()
    assert run.last_step() < 6
    stopped_at = run.last_step()
    assert (run.folder / "checkpoints" / f"step-{stopped_at:06d}" / "run.json").exists()

    run = Run(config, tmp_path, "run.num_steps=1000")
    run.wait_for_step(stopped_at + 3)
    below = psutil.Process(run.process.pid).children(recursive=True)
    # Not an engine: one that dies in an update is replaced (test_recovery.py).
    workers = [process for process in below if "_WorkerActor" in " ".join(process.cmdline())]
    assert workers, [process.cmdline() for process in below]
    for process in workers:
        process.kill()
    assert run.wait(120) == 1
    assert "ComponentDied" in run.output()
    assert "rollout worker 0 died" in run.output()
    last = max(int(path.name[-6:]) for path in (run.folder / "checkpoints").glob("step-??????")) + 6

    run = Run(config, tmp_path, f"run.num_steps={last}")
    assert run.wait() == 0, run.output()
    assert "resumed from" in run.output()
    metrics = run.metrics()
    assert [line["step"] for line in metrics] == list(range(1, last + 1))
    assert max(line["staleness/max"] for line in metrics) <= 2
    assert any(line["staleness/max"] > 0 for line in metrics), "the rollouts waited for the learner"
    # The first step of each start comes before its first sync.
    unsynced = [line["step"] for line in metrics if "sync/probe_error" not in line]
    assert unsynced == [1, stopped_at + 1, last - 5]
    assert all(line["sync/probe_error"] < 1e-4 for line in metrics if line["step"] not in unsynced)
    assert audit(run.folder / "ledger.jsonl") == []
    trained = [line for line in run.ledger() if line["fate"] == "trained"]
    assert sorted(line["step"] for line in trained) == sorted(4 * list(range(1, last + 1)))
    lines = [line for log in (run.folder / "episodes").glob("train-*.jsonl") for line in log.read_text().splitlines()]
    episodes = [episode_from_json(line) for line in lines]
    assert {line["task"] for line in trained} <= {episode.task.id for episode in episodes}
    assert any(0 in turn.completion.loss_mask for episode in episodes for turn in episode.turns), "no forced token"
    assert sum(turn.completion.num_draft_tokens for episode in episodes for turn in episode.turns) > 0
    assert re.search(r"held-out accuracy \(32 tasks, greedy\)", run.output())
    assert re.search(rf"step {last}/{last} +held-out \d", run.output())


def test_two_of_everything_train_together(config: Path, tmp_path: Path) -> None:
    run = Run(
        config,
        tmp_path,
        "learner.num_ranks=2",
        "learner.zero_stage=2",
        "inference.num_engines=2",
        "rollout.num_workers=2",
        "inference.cpus_per_engine=0.2",
        "learner.cpus_per_rank=0.2",
        "learner.updates_per_batch=2",
        "inference.sleep=pause",
        "run.num_steps=3",
    )
    assert run.wait() == 0, run.output()
    assert audit(run.folder / "ledger.jsonl") == []
    assert len(run.metrics()) == 3
