"""What became of every ticket: trained on once, or dropped with a reason. One JSON line a ticket, in the run folder.

A checkpoint remembers how long the file was; a resumed run cuts it back to there, since the steps after the checkpoint
are gone with their weights. So the file always tells the history of the weights that exist.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from rlvr.errors import CheckpointError
from rlvr.tasks import Ticket


class Ledger:
    """Append-only, flushed at every line."""

    def __init__(self, path: Path, *, length: int = 0) -> None:
        """Open `path`, cut back to `length` bytes; the counts go on from what stands there.

        Raises `CheckpointError` for a file that is shorter.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        on_disk = path.stat().st_size if path.exists() else 0
        if on_disk < length:
            raise CheckpointError(
                f"{path} has {on_disk} bytes, the checkpoint remembers {length}: it was changed or deleted since; "
                "put it back, or start a new run from the checkpoint's model folder (policy.path)"
            )
        self._file = path.open("ab")
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)  # `truncate` leaves the position past the new end
        self.num_trained = 0
        self.dropped: Counter[str] = Counter()
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["fate"] == "trained":
                self.num_trained += 1
            else:
                self.dropped[entry["reason"]] += 1

    @property
    def length(self) -> int:
        """Bytes on disk: what a checkpoint remembers."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def trained(self, ticket: Ticket, *, step: int) -> None:
        """The group of this ticket went into optimizer step `step`."""
        self.num_trained += 1
        self._write(ticket, {"fate": "trained", "step": step})

    def drop(self, ticket: Ticket, reason: str) -> None:
        """The group of this ticket will never be trained on; `reason` is one of few, for counting."""
        self.dropped[reason] += 1
        self._write(ticket, {"fate": "dropped", "reason": reason})

    def close(self) -> None:
        """Nothing more is coming."""
        self._file.close()

    def _write(self, ticket: Ticket, what: dict[str, Any]) -> None:
        self._file.write(json.dumps({"ticket": ticket.number, "task": ticket.task.id} | what).encode() + b"\n")
        self._file.flush()


def audit(path: Path) -> list[str]:
    """What is wrong with a finished run's ledger: every ticket from 0 on must stand in it once."""
    fates: Counter[int] = Counter()
    problems = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        fates[entry["ticket"]] += 1
        if entry["fate"] == "dropped" and not entry["reason"]:
            problems.append(f"ticket {entry['ticket']} was dropped without a reason")
    problems += [f"ticket {number} is settled {count} times" for number, count in fates.items() if count > 1]
    missing = sorted(set(range(max(fates, default=-1) + 1)) - set(fates))
    return problems + [f"ticket {number} is settled nowhere" for number in missing]
