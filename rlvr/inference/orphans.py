"""vLLM's processes end with the process that started them.

An engine host that is killed (with its driver, or by Ray's memory monitor) cannot end its children, and vLLM's would go
on holding the device's memory. The host claims them before it starts them; a worker watches it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress

_OWNER = "RLVR_ENGINE_OWNER"


def claim() -> None:
    """In the host, before vLLM starts: this process is the owner of what it starts."""
    os.environ[_OWNER] = str(os.getpid())


def end_with_owner() -> None:
    """In a process of vLLM's: end it, and its parent where that is not the owner itself, once the owner is gone."""
    owner, parent = int(os.environ.get(_OWNER, "0")), os.getppid()
    if owner in (0, os.getpid()):
        return
    try:
        pidfd = os.pidfd_open(owner)
    except ProcessLookupError:
        _end(owner, parent)
    threading.Thread(target=_watch, args=(pidfd, owner, parent), name="rlvr-owner", daemon=True).start()


def _watch(pidfd: int, owner: int, parent: int) -> None:
    # A pidfd is readable once its process has ended.
    select.select([pidfd], [], [])
    _end(owner, parent)


def _end(owner: int, parent: int) -> None:
    if parent not in (owner, 1):
        with suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    os._exit(1)
