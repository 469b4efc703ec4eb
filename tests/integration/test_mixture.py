"""A mixture on the real stack: every environment under its own settings, shares that move, an evaluation after."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlvr.cli import main
from rlvr.ledger import audit
from rlvr.train import train
from rlvr.types import Episode, episode_from_json
from tests.integration.runs import Run, write_config
from tests.tiny import write_checkpoint
from tests.tiny_engine import scripted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = """
group_size = 6
[environments.algorithm]
clip_high = 0.5
[[environments]]
name = "{root}/scripts/bench/dialogue.py:Dialogue"
turns = 3
tool_calls = 4
completion_tokens = 60
thinking_tokens = [{{ tokens = 6, weight = 2 }}, "unlimited"]
closing = "So: "
answer_tokens = 6
tell_budget = true
over_budget = "incorrect"
temperature = 0.7
[[environments]]
name = "{root}/tests/leveled.py:Leveled"
completion_tokens = 16
curriculum = {{ window = 8 }}
[mixture]
by = "tokens"
[rollout]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    mixed = path.read_text().replace("[rollout]\n", ENVIRONMENTS.format(root=ROOT), 1)
    path.write_text(mixed.replace("max_model_len = 128", "max_model_len = 256"))
    return path


def episodes_of(run: Run, start: int) -> list[Episode]:
    """Those that one start of the run recorded."""
    lines = (run.folder / "episodes" / f"train-{start:03d}.jsonl").read_text().splitlines()
    return [episode_from_json(line) for line in lines]


def position_of(run: Run) -> dict[str, Any]:
    newest = max((run.folder / "checkpoints").glob("step-*"))
    position: dict[str, Any] = json.loads((newest / "run.json").read_text())["position"]
    return position


def test_a_mixture_trains_each_environment_under_its_own_settings_killed_in_between_and_is_evaluated(
    config: Path, tmp_path: Path
) -> None:
    run = Run(config, tmp_path, "run.num_steps=40")
    run.wait_for_step(3)
    below = psutil.Process(run.process.pid).children(recursive=True)
    run.kill()
    assert psutil.wait_procs(below, timeout=30)[1] == []
    run = Run(config, tmp_path, "run.num_steps=7")
    assert run.wait() == 0, run.output()
    assert "resumed from" in run.output()
    assert audit(run.folder / "ledger.jsonl") == []
    assert [line["step"] for line in run.metrics()] == list(range(1, 8))
    assert {line["step"] for line in run.ledger() if line["fate"] == "trained"} == set(range(1, 8))
    episodes = episodes_of(run, 1)
    groups = Counter((episode.task.environment, episode.id.rpartition("#")[0]) for episode in episodes)
    sizes = {name: {count for (each, _), count in groups.items() if each == name} for name in ("coin", "dialogue")}
    assert sizes == {"coin": {6}, "dialogue": {4}}

    dialogues = [episode for episode in episodes if episode.task.environment == "dialogue"]
    for episode in dialogues:
        if episode.task.budget.thinking_tokens is not None:
            assert sum(turn.completion.num_thinking_tokens for turn in episode.turns) <= 6
        assert episode.stop == "answered" or episode.verdict.outcome == "incorrect"
    assert {episode.task.budget.thinking_tokens for episode in dialogues} <= {6, None}
    assert any(len(episode.turns) > 1 for episode in dialogues)
    levels = {episode.task.level for episode in episodes if episode.task.environment == "leveled"}
    assert levels
    assert levels <= {"1", "2", "3"}
    position = position_of(run)
    assert sum(position["tokens"]["coin"]) > 0
    assert any(position["passed"].values())
    assert set(position["passed"]["leveled/1"]) <= {1.0}
    assert set(position["passed"]["leveled/3"]) <= {0.0}

    names = {name for line in run.metrics() for name in line}
    wanted = {"reward/mean", "forced_fraction", "tool_calls/mean", "invalid_fraction", "completion_tokens/mean"}
    assert {f"env/dialogue/{name}" for name in wanted} <= names
    assert any(name.startswith("env/leveled/level/") for name in names)
    assert {"env/coin/staleness/mean", "env/coin/trained_tokens", "env/coin/eval/accuracy"} <= names
    assert "dialogue" in run.output(), "the table at the end has a row for each"

    output = tmp_path / "evaluated"
    settings = [f"run.folder={tmp_path}", "eval.num_tasks=24"]
    options = ["--thinking-tokens", "0,6", "--samples", "2", "--output", str(output)]
    command = [sys.executable, "-m", "rlvr.cli", "eval", str(run.folder), str(config), *settings, *options]
    subprocess.run(command, check=True, timeout=200)
    record = json.loads((output / "accuracy.json").read_text())
    assert record["policy"].endswith("step-000007/model")
    cells = {(cell["environment"], cell["thinking_tokens"]): cell for cell in record["cells"]}
    assert set(cells) == {(name, tokens) for name in ("coin", "dialogue", "leveled") for tokens in (0, 6)}
    assert all(cell["num_judged"] == 16 and cell["num_invalid"] == 0 for cell in cells.values())
    assert cells["coin", 0]["thinking_tokens_mean"] == 0 < cells["coin", 6]["thinking_tokens_mean"] <= 6


def test_synchronous_runs_with_one_seed_are_the_same_run_though_shares_move(config: Path, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        run = Run(config, folder, "rollout.max_staleness=0", "run.num_steps=4")
        assert run.wait() == 0, run.output()
        assert all(line["staleness/max"] == 0 for line in run.metrics())
        trained = [line for line in run.ledger() if line["fate"] == "trained"]
        ledger = sorted((line["step"], line["ticket"], line["task"]) for line in trained)
        newest = max((run.folder / "checkpoints").glob("step-*"))
        weights = load_file(newest / "model" / "model.safetensors")
        found.append((ledger, [line["loss/policy"] for line in run.metrics()], weights))
    assert found[0][:2] == found[1][:2]
    assert found[0][2].keys() == found[1][2].keys()
    assert all(torch.equal(found[0][2][name], found[1][2][name]) for name in found[0][2])


def test_an_environment_that_only_yields_invalid_episodes_stops_the_run_with_its_name(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from tests.coin import Coin\n\n\nclass Broken(Coin):\n    name = 'broken'\n\n"
        "    def verifier(self):\n        raise RuntimeError('the judge is out')\n"
    )
    path = tmp_path / "with_broken.toml"
    member = f'[[environments]]\nname = "{broken}:Broken"\ncompletion_tokens = 16\n[mixture]'
    path.write_text(config.read_text().replace("[mixture]", member))
    # What samples does not matter, and vLLM takes long to start.
    monkeypatch.setattr("rlvr.train.train", partial(train, engine_class=scripted(tmp_path)))
    settings = ["run.num_steps=1000", "inference.num_draft_tokens=0", "learner.mtp.train=false"]
    assert main(["train", str(path), f"run.folder={tmp_path}", *settings]) == 1
    output = capfd.readouterr().err
    assert "TooManyInvalid: environment 'broken': " in output
    assert "the judge is out" in output
