"""`rlvr verify` over the episodes of a real run: the offline verdict is the online one, to the last field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvr.cli import main
from rlvr.types import Episode, episode_from_json
from tests.integration.runs import CONFIG, Run
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow
# A setting that is not the default, and that the offline side has to find.
MATH = """
[[environments]]
name = "math_solver"
completion_tokens = 24
[environments.settings]
levels = [1, 2]
[rollout]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    coin = Path(__file__).parents[1] / "coin.py"
    config = folder / "config.toml"
    text = CONFIG.format(policy=write_checkpoint(folder / "policy"), coin=coin)
    config.write_text(text.replace("[rollout]\n", MATH))
    run = Run(config, folder, "run.num_steps=3", "eval.every=2")
    assert run.wait() == 0, run.output()
    return run


def episodes(run: Run) -> list[Episode]:
    lines = [line for file in sorted((run.folder / "episodes").iterdir()) for line in file.read_text().splitlines()]
    found = [episode_from_json(line) for line in lines]
    assert {episode.task.environment for episode in found} == {"coin", "math_solver"}
    assert {episode.verdict.outcome for episode in found} >= {"correct", "incorrect"}
    return found


def verify(*arguments: object) -> int:
    return main(["verify", "--workers", "2", *map(str, arguments)])


def verdicts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_online_verdict_is_reproduced_exactly(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "verdicts.jsonl"
    assert verify(run.folder, "--out", out) == 0
    online = episodes(run)
    offline = verdicts(out)
    fields = ("outcome", "reward", "reason", "checks", "verifier", "version")
    assert [(line["id"], line["as_online"], *(line[field] for field in fields)) for line in offline] == [
        (episode.id, True, *(getattr(episode.verdict, field) for field in fields)) for episode in online
    ]
    assert f"as judged online: {len(online)} of {len(online)}" in capsys.readouterr().out


def test_a_cut_off_output_is_resumed_to_the_same_lines(run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert verify(run.folder, "--out", whole) == 0
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert verify(run.folder, "--out", cut, "--resume") == 0
    without_time = [[line | {"seconds": 0} for line in verdicts(path)] for path in (whole, cut)]
    assert without_time[0] == without_time[1]


def test_an_audit_of_the_run_finds_no_verdict_that_changes(run: Run) -> None:
    assert verify(run.folder, "--audit") == 0


def test_the_difference_to_an_altered_output_is_what_was_altered(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.jsonl"
    assert verify(run.folder, "--out", old) == 0
    capsys.readouterr()
    assert verify(run.folder, "--diff", old) == 0
    assert "flipped: 0" in capsys.readouterr().out
    lines = verdicts(old)
    was = "incorrect" if lines[3]["outcome"] == "correct" else "correct"
    altered = lines[3] | {"outcome": was, "reward": {"correct": 1.0, "incorrect": -1.0}[was]}
    old.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:3], altered, *lines[4:]]))
    assert verify(run.folder, "--diff", old) == 0
    printed = capsys.readouterr().out
    assert "flipped: 1" in printed
    assert f"{was} -> {lines[3]['outcome']}" in printed
    assert lines[3]["id"] in printed


def test_the_references_of_the_run_earn_a_reward(run: Run) -> None:
    mine = run.folder / "some" / "math.jsonl"
    mine.parent.mkdir()
    lines = (run.folder / "episodes" / "train-000.jsonl").read_text().splitlines()
    mine.write_text("".join(line + "\n" for line in lines if '"environment":"math_solver"' in line))
    assert mine.stat().st_size
    assert verify(mine, "--gold") == 0
