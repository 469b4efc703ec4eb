"""An engine that an update breaks is replaced, once a version, and nothing of the run is lost or counted twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from rlvr import config
from rlvr.errors import UpdateFailed
from rlvr.ledger import audit
from rlvr.report import Reporter
from rlvr.train import train
from rlvr.types import episode_from_json
from tests.integration.runs import write_config
from tests.tiny import write_checkpoint
from tests.tiny_engine import scripted

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One Ray for all runs, each of which would take ten seconds to start its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8})
    yield cluster.address
    cluster.shutdown()


class Outcome:
    """A run of two engines that follow a script, to its end or its error."""

    def __init__(self, address: str, policy: Path, folder: Path, *script: str) -> None:
        self.script = folder / "script"
        self.script.mkdir()
        for name in script:
            (self.script / name).touch()
        self.folder = folder / "run"
        self.config = config.load(
            write_config(folder, policy),
            [
                f"ray.address={address}", f"run.folder={folder}", f"run.num_steps={STEPS}", "run.deadline_seconds=60",
                "eval.every=1000", "eval.num_tasks=2", "inference.num_engines=2", "inference.num_draft_tokens=0",
                "learner.mtp.train=false", "rollout.num_workers=1", "rollout.groups_per_batch=2",
                "inference.cpus_per_engine=0.5", "learner.cpus_per_rank=0.5", "rollout.cpus_per_worker=0.5",
            ],
        )  # fmt: skip

    def run(self) -> None:
        train(self.config, reporter=Reporter(), engine_class=scripted(self.script))

    def metrics(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "staleness/max" in line]

    def check_whole(self) -> None:
        """Every step was taken, every ticket settled once, every trained group played by one whole group in the log."""
        assert [line["step"] for line in self.metrics()] == list(range(1, STEPS + 1))
        assert audit(self.folder / "ledger.jsonl") == []
        fates = [json.loads(line) for line in (self.folder / "ledger.jsonl").read_text().splitlines()]
        assert sum(fate["fate"] == "trained" for fate in fates) == STEPS * 2
        lines = (self.folder / "episodes" / "train-000.jsonl").read_text().splitlines()
        episodes = Counter(episode_from_json(line).id for line in lines)
        assert set(episodes.values()) == {1}
        assert list(self.script.iterdir()) == [], "not all of the script was played"


def test_a_run_goes_on_when_updates_break_engines_once_a_version(address: str, policy: Path, tmp_path: Path) -> None:
    outcome = Outcome(address, policy, tmp_path, "1-2-refuse", "0-3-die")
    outcome.run()
    outcome.check_whole()
    restarted = {line["step"]: line.get("sync/restarted_engines") for line in outcome.metrics()}
    assert restarted == {1: None, 2: 0, 3: 1, 4: 1}, "the line of a step tells of the version before"


def test_a_run_ends_when_the_update_fails_again(address: str, policy: Path, tmp_path: Path) -> None:
    outcome = Outcome(address, policy, tmp_path, "0-1-die", "0-1-refuse")
    with pytest.raises(UpdateFailed, match=r"version 1 did not reach every engine:\nengine 0: .* is torn"):
        outcome.run()
    assert list(outcome.script.iterdir()) == []
