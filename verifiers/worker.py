"""A pool of worker processes for work on hostile input: a call has a time limit, and past it the process is killed.

    WorkerPool("verifiers.sql_worker").call({"query": ...}, seconds=20) -> the worker's JSON reply

    parent                                 worker: `main` of the module, which calls `serve(function)`
    request, one JSON line         ->
                                   <-      {"next": seconds}      the work goes on to its next stage, with its own limit
                                   <-      {"reply": ...}

Limits are seconds of the worker's *processor* time: on a busy machine nobody loses a verdict to his neighbours. A
worker that neither computes nor answers (stopped, swapped out) is lost, which is our fault, after `STALLED` times as
long. A worker ends when its standard input closes, so none outlives its parent. Calls are safe from any thread, also
after a fork; no signals are used.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MAX_IDLE = 8  # workers that are kept for later; more may run at once
MAX_REPLY = 1_000_000
START_SECONDS = 20.0  # a worker's imports
STALLED = 20
MEMORY_BYTES = 2 << 30
_ROOT = str(Path(__file__).resolve().parents[1])
_START = "import sys, importlib; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
_TICK = os.sysconf("SC_CLK_TCK")


class WorkerError(Exception):
    """No reply. `stage` counts the stages that the worker had gone on to: whose work it was at."""

    def __init__(self, text: str, stage: int = 0) -> None:
        self.stage = stage
        super().__init__(text)


class WorkerTimeoutError(WorkerError):
    """The call took longer than its limit; its worker was killed."""


class WorkerLostError(WorkerError):
    """The worker ended, stalled, or could not be started."""


class WorkerPool:
    """Workers are started when they are needed and reused until one is late or dies."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._pid = os.getpid()
        atexit.register(self.close)

    def call(self, request: dict[str, Any], seconds: float) -> Any:
        """The reply to `request`. Raises `WorkerTimeoutError` or `WorkerLostError`; the worker is then gone."""
        worker = self._take()
        try:
            reply = worker.call(request, seconds)
        except BaseException:
            worker.kill()
            raise
        self._give(worker)
        return reply

    def close(self) -> None:
        """Ends the idle workers; the next call starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            for worker in idle:
                worker.kill()

    def _take(self) -> _Worker:
        with self._lock:
            if self._pid != os.getpid():  # after a fork the pipes belong to the parent
                self._pid, self._idle = os.getpid(), []
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.kill()
        return _Worker(self.module)

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(worker)
                return
        worker.kill()


class _Worker:
    def __init__(self, module: str) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, _ROOT, module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            )
        except OSError as error:
            raise WorkerLostError(f"a worker could not be started: {error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._unread = b""
        try:
            self._read(START_SECONDS)
        except WorkerError as error:
            self.kill()
            raise WorkerLostError(f"a worker did not come up: {error}") from error

    def call(self, request: dict[str, Any], seconds: float) -> Any:
        stage = 0
        try:
            self._in.write(json.dumps(request).encode() + b"\n")
            self._in.flush()
            while "next" in (message := self._read(seconds)):
                stage, seconds = stage + 1, message["next"]
        except OSError as error:
            raise WorkerLostError(f"the worker is gone: {error}", stage) from error
        except WorkerError as error:
            error.stage = stage
            raise
        return message["reply"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self._in, self._out):
            try:
                stream.close()
            except OSError:
                continue

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next message."""
        begin, begin_used = time.monotonic(), self._used()
        poll = select.poll()
        poll.register(self._out.fileno(), select.POLLIN)
        while b"\n" not in self._unread:
            left = seconds - (self._used() - begin_used)
            if left <= 0:
                raise WorkerTimeoutError(f"no reply within {seconds:g} s")
            if time.monotonic() - begin > STALLED * (seconds + 1):
                raise WorkerLostError(f"it stood still for {STALLED * (seconds + 1):g} s")
            if poll.poll(max(left, 0.01) * 1000):
                part = os.read(self._out.fileno(), 1 << 16)
                self._unread += part
                if not part or len(self._unread) > MAX_REPLY:
                    raise WorkerLostError("the worker ended")
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _used(self) -> float:
        """Seconds of processor time that the process has taken; what a dead one had taken, until it is waited for."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICK


def serve(function: Callable[[dict[str, Any], Callable[[float], None]], Any]) -> NoReturn:
    """The worker's side: answers requests until standard input closes. Memory is bounded.

    `function(request, go_on)` returns the reply; `go_on(seconds)` says that a new stage begins, and its limit.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def write(message: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
        sys.stdout.buffer.flush()

    write({"reply": "ready"})
    for line in sys.stdin.buffer:
        write({"reply": function(json.loads(line), lambda seconds: write({"next": seconds}))})
    raise SystemExit
