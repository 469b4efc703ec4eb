"""`runs/<name>/`: what a run leaves on disk, and how a later one finds its way back.

    config.json            the resolved configuration, of the newest start
    configs/*.json         that of each start, by its number: 002.json is what train-002.jsonl was played under
    metrics.jsonl          one line a step
    ledger.jsonl           one line a ticket: trained on, or dropped with a reason
    episodes/*-002.jsonl   one line an episode, as it was judged, before any filter; two files each start of the run
    checkpoints/step-000040/
        run.json           step, mixture position, pending tickets, lengths of the logs   (written last, in a rename)
        learner/           DeepSpeed's state and random states
        model/             Hugging Face export with the MTP layer, which vLLM loads

A checkpoint is written under a name that nobody reads and renamed when it is whole, so a kill at any moment leaves the
one before. A resumed run cuts the logs back to the checkpoint.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlvr import types
from rlvr.config import RunConfig, dump
from rlvr.errors import CheckpointError
from rlvr.evaluation import Evaluation
from rlvr.tasks import Position, Ticket
from rlvr.types import Episode

STATE_FILE = "run.json"
_LOG = re.compile(r"train-(\d+)\.jsonl")  # or compressed since


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All of a run that is not in the learner. `version` is the policy's: one more after every step.

    `before` is the evaluation before the first step.
    """

    step: int
    version: int
    position: Position
    pending: tuple[Ticket, ...]
    ledger_length: int
    metrics_length: int
    trained_seconds: float
    before: Evaluation


FRESH = RunState(
    step=0,
    version=0,
    position=Position(),
    pending=(),
    ledger_length=0,
    metrics_length=0,
    trained_seconds=0.0,
    before=Evaluation(),
)


class RunFolder:
    """One process at a time owns a run folder; a second one is refused. `start` counts the starts of the run from 0."""

    def __init__(self, config: RunConfig) -> None:
        self.path = config.run_folder
        self._keep = config.run.keep_checkpoints
        for folder in (self.path, self.path / "episodes", self.path / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise CheckpointError(
                f"run folder {self.path} is in use by another process; give this run another run.name, or stop that one"
            ) from None
        for unfinished in (self.path / "checkpoints").glob("*.tmp"):
            shutil.rmtree(unfinished)
        for replaced in (self.path / "checkpoints").glob("*.replaced"):
            # A kill came between the two renames of `commit`, or after them.
            whole = replaced.with_suffix("")
            if whole.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(whole)
        logs = (_LOG.match(file.name) for file in (self.path / "episodes").iterdir())
        self.start = max((int(log[1]) for log in logs if log), default=-1) + 1
        self._origin = self.latest()
        self._write_config(dump(config))
        self._episodes: dict[str, IO[str]] = {
            kind: (self.path / "episodes" / f"{kind}-{self.start:03d}.jsonl").open("a") for kind in ("train", "eval")
        }
        self._evaluations = itertools.count()
        self._metrics: IO[bytes] | None = None

    def _write_config(self, text: str) -> None:
        newest, each = self.path / "config.json", self.path / "configs"
        each.mkdir(exist_ok=True)
        for number in range(self.start if newest.is_file() else 0):
            own = each / f"{number:03d}.json"
            if not own.exists():  # a start from before they were kept: the newest is all there is
                shutil.copyfile(newest, own)
        for file in (each / f"{self.start:03d}.json", newest):
            file.write_text(text)

    @property
    def ledger_path(self) -> Path:
        """See `rlvr.ledger`."""
        return self.path / "ledger.jsonl"

    @property
    def train_series(self) -> str:
        """What tickets are numbered in, for ids of episodes: a start that a kill cut off had the same tickets."""
        return f"train-{self.start:03d}"

    def next_eval_series(self) -> str:
        """The same for one evaluation: the next will play the same tasks."""
        return f"eval-{self.start:03d}.{next(self._evaluations)}"

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return latest_checkpoint(self.path)

    def load_state(self, checkpoint: Path) -> RunState:
        """Raises `CheckpointError`."""
        try:
            state: RunState = types.from_json(RunState, (checkpoint / STATE_FILE).read_bytes())
        except ValueError as error:
            raise CheckpointError(
                f"{checkpoint / STATE_FILE} cannot be read ({error}); delete that folder to resume from the checkpoint "
                "before it"
            ) from error
        return state

    def open_metrics(self, length: int) -> None:
        """Go on with metrics.jsonl, cut back to `length` bytes."""
        self._metrics = (self.path / "metrics.jsonl").open("ab")
        self._metrics.truncate(length)
        self._metrics.seek(0, os.SEEK_END)  # `truncate` leaves the position past the new end

    @property
    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl."""
        assert self._metrics is not None
        return self._metrics.tell()

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """One line, flushed."""
        assert self._metrics is not None
        self._metrics.write(json.dumps(metrics).encode() + b"\n")
        self._metrics.flush()

    def write_episodes(self, kind: str, episodes: tuple[Episode, ...]) -> None:
        """`kind` is "train" or "eval"."""
        file = self._episodes[kind]
        file.writelines(types.to_json_line(episode) + "\n" for episode in episodes)
        file.flush()

    def new_checkpoint(self, step: int) -> Path:
        """A folder to write a checkpoint into, invisible until `commit`."""
        folder = self.path / "checkpoints" / f"step-{step:06d}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def commit(self, folder: Path, state: RunState) -> Path:
        """Make a written checkpoint the latest, and delete those past `run.keep_checkpoints`.

        The one that this start goes on from stays besides: an engine that is replaced starts from its weights.
        """
        with (folder / STATE_FILE).open("w") as file:
            file.write(types.to_json_line(state) + "\n")
            file.flush()
            os.fsync(file.fileno())
        final, replaced = folder.with_suffix(""), folder.with_suffix(".replaced")
        if final.exists():
            final.rename(replaced)
        folder.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        whole = sorted(final.parent.glob("step-??????"))
        for old in whole[: -self._keep]:
            if old != self._origin:
                shutil.rmtree(old)
        return final

    def close(self) -> None:
        """Give the folder free."""
        closers: list[Callable[[], None]] = [file.close for file in self._episodes.values()]
        if self._metrics is not None:
            closers.append(self._metrics.close)
        for close in [*closers, self._lock.close]:
            close()


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    whole = [folder for folder in (run / "checkpoints").glob("step-??????") if (folder / STATE_FILE).is_file()]
    return max(whole, default=None)
