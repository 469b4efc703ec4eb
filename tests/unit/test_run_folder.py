"""A kill at any moment leaves a run folder that a later run goes on from, and never two runs at once in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr.config import RunConfig, parse
from rlvr.errors import CheckpointError
from rlvr.evaluation import Evaluation
from rlvr.run_folder import RunFolder, RunState
from rlvr.tasks import Position
from rlvr.types import episode_from_json
from tests.fakes import make_episode, make_ticket

STATE = RunState(
    step=3,
    version=3,
    position=Position(next_number=9, taken={"e": 9}),
    pending=(make_ticket(7), make_ticket(8)),
    ledger_length=10,
    metrics_length=20,
    trained_seconds=1.5,
    before=Evaluation(accuracy=0.25, by_environment={"e": 0.25}, draft_acceptance=0.9, num_judged=4),
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return parse(
        {"run": {"name": "r", "folder": str(tmp_path), "keep_checkpoints": 2}, "environments": [{"name": "coin"}]}
    )


@pytest.fixture
def folder(config: RunConfig) -> Iterator[RunFolder]:
    folder = RunFolder(config)
    yield folder
    folder.close()


def save(folder: RunFolder, step: int, content: str = "weights") -> Path:
    unfinished = folder.new_checkpoint(step)
    (unfinished / "model").mkdir()
    (unfinished / "model" / "weights").write_text(content)
    return folder.commit(unfinished, dataclasses.replace(STATE, step=step))


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir())


def test_a_second_process_is_refused_until_the_first_one_lets_go(config: RunConfig, folder: RunFolder) -> None:
    opening = (
        "import sys; from rlvr.config import RunConfig; from rlvr.run_folder import RunFolder;"
        "RunFolder(RunConfig.model_validate_json(sys.argv[1])); print('opened')"
    )
    command = [sys.executable, "-c", opening, config.model_dump_json()]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is in use by another process; give this run another run.name" in refused.stderr
    folder.close()
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "opened\n"


def test_a_refused_process_changes_nothing(config: RunConfig, folder: RunFolder) -> None:
    unfinished = folder.new_checkpoint(1)
    before = sorted((folder.path / "episodes").iterdir())
    with pytest.raises(CheckpointError, match="in use"):
        RunFolder(config)
    assert unfinished.is_dir(), "the first process is still writing it"
    assert sorted((folder.path / "episodes").iterdir()) == before


def test_a_checkpoint_reads_back_equal(folder: RunFolder) -> None:
    final = save(folder, 3)
    assert final == folder.latest() == folder.path / "checkpoints" / "step-000003"
    assert folder.load_state(final) == STATE
    assert (final / "model" / "weights").read_text() == "weights"


def test_an_unfinished_checkpoint_is_invisible_and_removed_by_the_next_start(
    config: RunConfig, folder: RunFolder
) -> None:
    assert folder.latest() is None
    save(folder, 1)
    unfinished = folder.new_checkpoint(2)
    # Killed after the state was written, just before the rename.
    (unfinished / "run.json").write_text("{}")
    assert folder.latest() == folder.path / "checkpoints" / "step-000001"
    folder.close()
    again = RunFolder(config)
    assert names(again) == ["step-000001"]
    again.close()


def test_a_folder_without_state_is_no_checkpoint(folder: RunFolder) -> None:
    save(folder, 1)
    (folder.path / "checkpoints" / "step-000009").mkdir()
    assert folder.latest() == folder.path / "checkpoints" / "step-000001"


def test_a_checkpoint_that_is_begun_again_starts_empty(folder: RunFolder) -> None:
    (folder.new_checkpoint(1) / "left_over").write_text("x")
    assert list(folder.new_checkpoint(1).iterdir()) == []


def test_the_newest_checkpoints_are_kept_and_older_ones_deleted(folder: RunFolder) -> None:
    for step in (8, 9, 10, 100):
        save(folder, step)
    assert names(folder) == ["step-000010", "step-000100"]
    assert folder.latest() == folder.path / "checkpoints" / "step-000100"


def test_the_checkpoint_that_a_start_goes_on_from_stays_until_the_next_start(
    config: RunConfig, folder: RunFolder
) -> None:
    for step in (1, 2):
        save(folder, step)
    folder.close()
    resumed = RunFolder(config)
    for step in (3, 4, 5):
        save(resumed, step)
    assert names(resumed) == ["step-000002", "step-000004", "step-000005"]
    resumed.close()
    again = RunFolder(config)
    save(again, 6)
    assert names(again) == ["step-000005", "step-000006"]
    again.close()


def test_saving_a_step_again_replaces_its_checkpoint(folder: RunFolder) -> None:
    save(folder, 4, "old")
    final = save(folder, 4, "new")
    assert names(folder) == ["step-000004"]
    assert (final / "model" / "weights").read_text() == "new"


def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 4, "old")
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 4, "new")
    folder.close()
    again = RunFolder(config)
    assert names(again) == ["step-000004"]
    latest = again.latest()
    assert latest is not None
    assert (latest / "model" / "weights").read_text() == "old"
    again.close()


def test_a_replaced_checkpoint_that_a_kill_left_behind_is_removed(config: RunConfig, folder: RunFolder) -> None:
    final = save(folder, 4, "new")
    final.with_suffix(".replaced").mkdir()
    folder.close()
    again = RunFolder(config)
    assert names(again) == ["step-000004"]
    assert (final / "model" / "weights").read_text() == "new"
    again.close()


def test_a_damaged_state_says_how_to_resume_from_the_one_before(folder: RunFolder) -> None:
    final = save(folder, 1)
    (final / "run.json").write_text('{"step": 1}')
    with pytest.raises(CheckpointError, match=r"(?s)run\.json cannot be read .*delete that folder to resume"):
        folder.load_state(final)


def test_metrics_are_cut_back_to_the_checkpoint(config: RunConfig, folder: RunFolder) -> None:
    folder.open_metrics(0)
    folder.write_metrics({"step": 1})
    length = folder.metrics_length
    folder.write_metrics({"step": 2, "from": "a future that is gone"})
    folder.close()

    again = RunFolder(config)
    again.open_metrics(length)
    assert again.metrics_length == length, "a checkpoint right after a resume remembers the cut"
    again.write_metrics({"step": 2})
    lines = (again.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2}]
    assert again.metrics_length == (again.path / "metrics.jsonl").stat().st_size
    again.close()


def test_every_start_has_episode_logs_of_its_own_and_one_line_is_one_episode(
    config: RunConfig, folder: RunFolder
) -> None:
    episodes = (make_episode(), make_episode("invalid", number=1))
    folder.write_episodes("train", episodes)
    folder.write_episodes("eval", episodes[:1])
    read = (folder.path / "episodes" / "train-000.jsonl").read_text().splitlines()
    assert tuple(map(episode_from_json, read)) == episodes, "before the folder is closed"
    folder.close()
    again = RunFolder(config)
    again.write_episodes("train", episodes[1:])
    again.close()
    counts = {path.name: len(path.read_text().splitlines()) for path in (again.path / "episodes").iterdir()}
    assert counts == {"train-000.jsonl": 2, "eval-000.jsonl": 1, "train-001.jsonl": 1, "eval-001.jsonl": 0}


def test_the_resolved_config_stands_in_the_folder(config: RunConfig, folder: RunFolder) -> None:
    assert parse(json.loads((folder.path / "config.json").read_text())) == config


def start_again(config: RunConfig, seed: int) -> None:
    again = RunFolder(config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})}))
    again.close()


def test_no_two_series_of_a_run_have_one_name(config: RunConfig, folder: RunFolder) -> None:
    names = [folder.train_series, folder.next_eval_series(), folder.next_eval_series()]
    assert names == ["train-000", "eval-000.0", "eval-000.1"]
    folder.close()
    again = RunFolder(config)
    assert {again.train_series, again.next_eval_series()} == {"train-001", "eval-001.0"}
    again.close()


def seeds(folder: Path) -> dict[str, int]:
    files = [folder / "config.json", *sorted((folder / "configs").iterdir())]
    return {file.stem: json.loads(file.read_text())["run"]["seed"] for file in files}


def test_every_start_keeps_the_config_that_its_episodes_were_played_under(config: RunConfig, folder: RunFolder) -> None:
    folder.close()
    start_again(config, 7)
    # Compressed logs count as starts, and other files do not.
    (folder.path / "episodes" / "train-merged.jsonl").write_text("")
    (folder.path / "episodes" / "train-001.jsonl").rename(folder.path / "episodes" / "train-001.jsonl.gz")
    start_again(config, 9)
    assert seeds(folder.path) == {"config": 9, "000": 0, "001": 7, "002": 9}
    assert (folder.path / "episodes" / "train-002.jsonl").is_file()


def test_starts_from_before_configs_were_kept_take_the_last_one_that_there_is(
    config: RunConfig, folder: RunFolder
) -> None:
    folder.close()
    start_again(config, 7)
    shutil.rmtree(folder.path / "configs")
    start_again(config, 9)
    assert seeds(folder.path) == {"config": 9, "000": 7, "001": 7, "002": 9}
