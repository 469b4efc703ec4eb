"""Many processes score, one orders: `Workers.map` gives results in the order of the jobs, and holds few of either.

A worker that dies or hangs is replaced. The jobs it had are given out again one at a time, so that only the one that
brings a worker down a second time is lost. The time limit of one record holds for a chunk as well: a chunk is made to
take far less, and one that does not is given out again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from verifiers.scoring import Job, Result, Scorer, lost

CHUNK_SECONDS = 0.2  # of work given out at once
MAX_CHUNK = 256  # jobs
MAX_CHUNK_BYTES = 1 << 20
WINDOW = 4_096  # jobs between the first without a result and the last that was read


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    connection: Connection
    chunk: list[tuple[int, Job]] = field(default_factory=list)
    given: float = 0.0


class Workers:
    """`record_seconds` is a guard over the verifiers' own limits. Close it, or use it as a context."""

    def __init__(self, count: int, *, record_seconds: float = 300.0) -> None:
        # Forked, so that each starts in no time; this process has no threads of its own that a fork would lose.
        self._context = multiprocessing.get_context("fork")
        self._record_seconds = record_seconds
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._workers.append(self._start())
        self.interrupted = False

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        # A child that kept our ends of the others' pipes would keep them from seeing that we are gone.
        not_its_own = [ours, *(worker.connection for worker in self._workers)]
        process = self._context.Process(target=_work, args=(theirs, not_its_own), daemon=False)
        process.start()
        theirs.close()
        return _Worker(process=process, connection=ours)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker: idle ones by themselves, busy ones after a second at most."""
        for worker in self._workers:
            if worker.chunk:
                worker.process.terminate()
            worker.connection.close()
        deadline = time.monotonic() + 2.0
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def map(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Results in the order of `jobs`. Raises `KeyboardInterrupt` soon after `interrupted` was set."""
        results: dict[int, Result] = {}
        again: deque[tuple[int, Job]] = deque()
        read = given = 0
        more, pace = True, CHUNK_SECONDS  # seconds a job, as seen lately
        while more or given < read or again:
            for worker in self._workers:
                while not worker.chunk and (again or (more and read - given < WINDOW)):
                    if again:
                        chunk = [again.popleft()]
                    else:
                        chunk, size = [], 0
                        while len(chunk) < max(1, min(MAX_CHUNK, int(CHUNK_SECONDS / pace))) and size < MAX_CHUNK_BYTES:
                            job = next(jobs, None)
                            if job is None:
                                more = False
                                break
                            chunk.append((read, job))
                            read, size = read + 1, size + len(job.data)
                    if not chunk:
                        break
                    self._give(worker, chunk)
            if self.interrupted:
                raise KeyboardInterrupt
            busy = {worker.connection: worker for worker in self._workers if worker.chunk}
            now = time.monotonic()
            for connection in wait(list(busy), timeout=0.2) if busy else []:
                worker = busy[connection]  # type: ignore[index]
                try:
                    answers: list[Result] = worker.connection.recv()
                except (EOFError, OSError):
                    self._replace(worker, results, again, "its worker died")
                    continue
                for (number, _), result in zip(worker.chunk, answers, strict=True):
                    results[number] = result
                spent = max(1e-6, (time.monotonic() - worker.given) / len(answers))
                pace = 0.7 * pace + 0.3 * spent
                worker.chunk = []
            for worker in busy.values():
                if worker.chunk and now > worker.given + self._record_seconds:
                    worker.process.kill()
                    self._replace(worker, results, again, f"its worker took over {self._record_seconds:g} s")
            while given in results:
                yield results.pop(given)
                given += 1

    def _give(self, worker: _Worker, chunk: list[tuple[int, Job]]) -> None:
        worker.chunk = chunk
        worker.given = time.monotonic()
        try:
            worker.connection.send([job for _, job in chunk])
        except OSError:
            return  # it is dead: seen at the next wait

    def _replace(self, worker: _Worker, results: dict[int, Result], again: deque[tuple[int, Job]], reason: str) -> None:
        if len(worker.chunk) == 1:
            number, job = worker.chunk[0]
            results[number] = lost(job, f"{reason}: the verifier has a fault")
        else:
            again.extend(worker.chunk)
        worker.connection.close()
        worker.process.join()
        self._workers[self._workers.index(worker)] = self._start()


def _work(connection: Connection, not_its_own: list[Connection]) -> None:
    """A worker's life: a chunk in, its results out, until the other end is closed."""
    for other in not_its_own:
        if not other.closed:
            other.close()
    # Ctrl-C reaches the whole group, and the parent decides; an order to end unwinds, so that programs end as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _leave())
    scorer = Scorer()
    try:
        while True:
            connection.send([scorer.score(job) for job in connection.recv()])
    except (EOFError, OSError):
        pass
    finally:
        scorer.close()


def _leave() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(os.EX_OK)
