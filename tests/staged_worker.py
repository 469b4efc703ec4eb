"""A worker for tests: does what it is told, in two stages."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from verifiers.worker import serve


def work(request: dict[str, Any], go_on: Callable[[float], None]) -> int:
    do(request["first"])
    if "second" in request:
        go_on(request["limit"])
        do(request["second"])
    return os.getpid()


def do(what: str) -> None:
    """`spin 0.3`, `sleep 0.3`, `stop`, `die`."""
    kind, _, seconds = what.partition(" ")
    if kind == "sleep":
        time.sleep(float(seconds))
    elif kind == "spin":
        end = time.process_time() + float(seconds)
        while time.process_time() < end:
            pass
    elif kind:
        os.kill(os.getpid(), {"stop": signal.SIGSTOP, "die": signal.SIGKILL}[kind])


def main() -> None:
    serve(work)
