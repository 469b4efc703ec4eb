"""An environment that another process serves is played by URL: by the kit, and in a training run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr.cli import main
from rlvr.types import episode_from_json
from tests.integration.runs import Run, write_config
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the environment that the test names."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr.cli", "env", "serve", request.param, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    found = re.search(r"served at (http://\S+) ", process.stdout.readline())
    assert found is not None
    yield found[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)
    process.stdout.close()


@pytest.mark.parametrize("served", ["math_solver"], indirect=True)
def test_a_served_environment_passes_every_check(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", served, "--tasks", "6"]) == 0, capsys.readouterr().out
    assert "20 passed, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("served", [f"{ROOT / 'tests' / 'coin.py'}:Coin"], indirect=True)
def test_a_run_trains_on_an_environment_by_its_url(served: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    run = Run(config, tmp_path, f"environments.0.name={served}", "run.num_steps=2")
    assert run.wait() == 0, run.output()
    assert [line["step"] for line in run.metrics()] == [1, 2]
    lines = (run.folder / "episodes" / "train-000.jsonl").read_text().splitlines()
    episodes = [episode_from_json(line) for line in lines]
    assert {episode.task.environment for episode in episodes} == {"coin"}
    assert {episode.verdict.verifier for episode in episodes} == {"coin"}, "judged by the server"
    assert {episode.verdict.outcome for episode in episodes} == {"correct", "incorrect"}
