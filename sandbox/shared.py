"""The sandbox of a process: which backend runs here, and one pool for everybody who asks.

open_sandbox("auto")    Docker where an engine answers and has the image, bubblewrap otherwise
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from typing import Literal, get_args

from sandbox.blocking import run_blocking
from sandbox.bubblewrap import Bubblewrap
from sandbox.docker import Docker
from sandbox.pool import Backend, Pool, SandboxUnavailable

Kind = Literal["auto", "docker", "bubblewrap"]

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_pools: dict[tuple[int, str], Pool] = {}


def open_backend(kind: Kind = "auto") -> Backend:
    """The backend, tried on this machine. Raises `SandboxUnavailable`: there is no third, unsafe way."""
    if kind not in get_args(Kind):
        raise SandboxUnavailable(f"sandbox {kind!r}: it is one of {', '.join(get_args(Kind))}")
    if kind == "docker":
        return Docker()
    if kind == "bubblewrap":
        return Bubblewrap()
    try:
        return Docker()
    except SandboxUnavailable as no_docker:
        try:
            backend = Bubblewrap()
        except SandboxUnavailable as no_bubblewrap:
            raise SandboxUnavailable(
                f"no sandbox can run here, and code of a model runs nowhere else. Docker: {no_docker}. "
                f"bubblewrap: {no_bubblewrap}"
            ) from no_bubblewrap
        logger.info("the sandbox is bubblewrap's; Docker: %s", no_docker)
        return backend


def open_sandbox(kind: Kind = "auto", *, max_boxes: int | None = None) -> Pool:
    """A pool of one's own, to be closed. Raises `SandboxUnavailable`."""
    return Pool(open_backend(kind), max_boxes=max_boxes)


def shared_sandbox(kind: Kind = "auto") -> Pool:
    """This process's pool of a kind, for use by `run_blocking` alone; closed at exit. Raises `SandboxUnavailable`."""
    with _lock:
        key = (os.getpid(), kind)  # a forked child has the variable, but not the boxes
        if key not in _pools:
            _pools[key] = open_sandbox(kind)
            atexit.register(_close, key)
        return _pools[key]


def _close(key: tuple[int, str]) -> None:
    pool = _pools.pop(key, None)
    if pool is not None and key[0] == os.getpid():
        run_blocking(asyncio.wait_for(pool.close(patience_seconds=0.5), timeout=20))
