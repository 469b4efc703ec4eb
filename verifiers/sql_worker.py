"""The processes in which queries run, and the pool of them.

    parent                                   child (`main`)
    request, one JSON line           ->      prepares the reference
                                     <-      {"stage": "query"}: from here on it is the model's query that runs
                                     <-      the answer

SQLite's own limits stop most hostile queries in the child. Some spend their time where SQLite looks at no limit (while
it compiles them, inside one long function call): the parent kills the child at its deadline and starts another.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

MEMORY = 2 << 30  # bytes of address space of a child
HEAP = 512 << 20  # bytes that SQLite may allocate in it
IDLE = 8  # children kept for the next query
_ROOT = str(Path(__file__).resolve().parent.parent)
_START = "import sys; sys.path.insert(0, sys.argv[1]); from verifiers.sql_worker import main; main()"


class Reply(NamedTuple):
    """`answer` is None where the child died or was killed; `stage` tells whose work it was at."""

    answer: dict[str, Any] | None
    stage: Literal["reference", "query"]
    timed_out: bool


class Worker:
    """One child. Used by one thread at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"TZ": "UTC", "LC_ALL": "C.UTF-8"},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children itself
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._unread = b""

    def ask(self, request: dict[str, Any], reference_seconds: float, query_seconds: float) -> Reply:
        """The child's answer. After a reply without one the child is dead: `close` it."""
        stage: Literal["reference", "query"] = "reference"
        try:
            self._in.write(json.dumps(request).encode() + b"\n")
            self._in.flush()
            line = self._line(monotonic() + reference_seconds)
            if line is not None and line.get("stage") == "query":
                stage = "query"
                line = self._line(monotonic() + query_seconds)
        except TimeoutError:
            return Reply(None, stage, timed_out=True)
        except (OSError, ValueError):
            return Reply(None, stage, timed_out=False)
        return Reply(line, stage, timed_out=False)

    def _line(self, deadline: float) -> dict[str, Any] | None:
        """The next line; `None` at the end of the pipe. Raises `TimeoutError`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = deadline - monotonic()
                if left <= 0:
                    raise TimeoutError
                if selector.select(left):
                    some = os.read(self._out.fileno(), 1 << 16)
                    if not some:
                        return None
                    self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def close(self) -> None:
        """Ends the child at once and waits for it."""
        self.process.kill()
        with suppress(OSError):
            self._in.close()
        self._out.close()
        self.process.wait()


class Pool:
    """As many children as are asked at once; idle ones are kept. A fork of the parent starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._pid = os.getpid()

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A child of one's own for a while. It goes back to the pool if it still lives, unless the block raises."""
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid = [], os.getpid()  # the parent's children: not ours to talk to or to end
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = Worker()
        kept = False
        try:
            yield worker
            with self._lock:
                kept = worker.process.poll() is None and len(self._idle) < IDLE
                if kept:
                    self._idle.append(worker)
        finally:
            if not kept:
                worker.close()

    def close(self) -> None:
        """Ends the idle children; the next use starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle if self._pid == os.getpid() else []:
            worker.close()


def main() -> None:
    """The child: answers requests from standard input until it ends."""
    import resource

    from verifiers.sql_judge import Judge
    from verifiers.sql_run import Database

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # One limit for all connections of the process; later it could be set higher only by a PRAGMA, which is denied.
    Database("2000-01-01").connection.execute(f"PRAGMA hard_heap_limit = {HEAP}")

    def write(value: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
        sys.stdout.buffer.flush()

    judge = Judge()
    for line in sys.stdin.buffer:
        write(judge.judge(json.loads(line), lambda: write({"stage": "query"})))
