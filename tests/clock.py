"""A clock that the machine's other work does not move."""

from __future__ import annotations

import resource
import time

from verifiers.worker import WorkerPool


def processor_seconds(*pools: WorkerPool) -> float:
    """Processor time of this process, of its children that have ended, and of the idle workers of `pools`."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    idle = sum(worker._used() for pool in pools for worker in pool._idle)
    return time.process_time() + ended.ru_utime + ended.ru_stime + idle
