"""A pool of worker processes for work on hostile input: a call has a time limit, and past it the process is killed.

    WorkerPool("verifiers.math_worker").call({"reference": ..., "answer": ...}, seconds=1.0) -> the worker's JSON reply

A worker is `python -m MODULE` that calls `serve(function)`: one JSON line in, one out. It ends when its standard input
closes, so none outlives its parent. Calls are safe from any thread, also after a fork; no signals are used.
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
from typing import Any

MAX_IDLE = 4  # workers that are kept for later; more may run at once
MAX_REPLY = 1_000_000
START_SECONDS = 20.0  # a worker's imports, on a loaded machine
MEMORY_BYTES = 2 << 30


class WorkerTimeoutError(Exception):
    """The call took longer than its limit; its worker was killed."""


class WorkerLostError(Exception):
    """The worker ended, or could not be started."""


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
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerLostError(f"a worker could not be started: {error}") from error
        try:
            self._read(START_SECONDS)
        except (WorkerTimeoutError, WorkerLostError) as error:
            self.kill()
            raise WorkerLostError(f"a worker did not come up: {error}") from error

    def call(self, request: dict[str, Any], seconds: float) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerLostError(f"the worker is gone: {error}") from error
        return self._read(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue

    def _read(self, seconds: float) -> Any:
        assert self.process.stdout is not None
        descriptor, end, line = self.process.stdout.fileno(), time.monotonic() + seconds, b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise WorkerTimeoutError(f"no reply within {seconds:g} s")
            part = os.read(descriptor, 65536)
            if not part or len(line) > MAX_REPLY:
                raise WorkerLostError("the worker ended")
            line += part
        return json.loads(line)


def serve(function: Callable[[dict[str, Any]], Any]) -> None:
    """The worker's side: answers requests until standard input closes. Memory is bounded."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(function(json.loads(line))), flush=True)
