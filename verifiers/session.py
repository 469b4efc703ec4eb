"""One `rlvr verify`: lines in, verdict lines out, and the summary.

    input lines -> jobs -> Workers.map -> results, in order -> output, summary, difference

The output has exactly one line for each line of input that holds something, in the same order, also for those that
could not be read. So `--resume` counts the whole lines of the output and skips as many of the input.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rlvr.errors import ConfigError
from verifiers.records import Lines, RecordError, input_files
from verifiers.scoring import Job, Mode, Result, Scorer, from_line
from verifiers.summary import Difference, Progress, Summary
from verifiers.workers import Workers

AUDIT_BLOCK = 2_048  # records that are shuffled together
AUDIT_BYTES = 64 << 20


class Session:
    """The state of one command. Its options are those of `verifiers.cli`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._files = input_files(options.inputs)
        self._summary = Summary()
        self._difference: Difference | None = None
        # Failures are what makes the exit code 1 besides invalid verdicts and lines that cannot be read.
        self._num_printed = self._num_failures = self._done = 0
        self._bytes_before = self._total_bytes = 0
        self._lines: Lines | None = None
        self._reading = False

    # ---- the commands

    def score(self) -> int:
        """Score everything; the exit code."""
        options = self._options
        self._total_bytes = 0 if "-" in self._files else sum(Path(name).stat().st_size for name in self._files)
        progress = Progress(self._total_bytes, show=False if options.no_progress else None)
        count = options.workers or len(os.sched_getaffinity(0))
        with Workers(count, record_seconds=options.record_seconds) as workers:
            # After the fork: the index of the old verdicts is large, and no worker needs a copy.
            self._difference = Difference(options.diff) if options.diff else None
            out, skip, last = self._open_out()
            before = signal.signal(signal.SIGINT, lambda *_: self._interrupt(workers))
            flushed = time.monotonic()
            try:
                jobs = self._left("gold" if options.gold else "score", skip, last)
                for result in self._audited(workers, jobs) if options.audit else workers.map(jobs):
                    self._take(result)
                    if out is not None:
                        out.write(result.text)
                        if time.monotonic() - flushed > 0.5:
                            out.flush()
                            flushed = time.monotonic()
                    lines = self._lines
                    progress.update(self._done, self._bytes_before + (lines.position if lines is not None else 0))
            finally:
                signal.signal(signal.SIGINT, before)
                progress.close()
                if out is not None:
                    out.flush()
                    if out is not sys.stdout.buffer:
                        out.close()
        return self._report()

    def explain(self) -> int:
        """Print one record's way to its verdict."""
        which, seen = self._options.explain, 0
        for job in self._jobs("score"):
            seen += 1
            if which and which != str(job.line) and not self._has_id(job.data, which):
                continue
            scorer = Scorer()
            try:
                print(scorer.explain(job))
            except RecordError as error:
                print(f"{job.file}:{job.line}: {error}", file=sys.stderr)
                return 1
            finally:
                scorer.close()
            return 0
        raise ConfigError(f"--explain {which}: none of {seen} records has this id or line number")

    # ---- input

    def _jobs(self, mode: Mode) -> Iterator[Job]:
        for name in self._files:
            self._lines = lines = Lines(name)
            each = iter(lines)
            while True:
                self._reading = name == "-"
                try:
                    number, data = next(each)
                except StopIteration:
                    break
                except RecordError as error:
                    yield Job(name, error.line, b"", mode, str(error))
                    break
                finally:
                    self._reading = False
                yield Job(name, number, data, mode)
            self._bytes_before += lines.size
            self._lines = None

    def _left(self, mode: Mode, skip: int, last: str) -> Iterator[Job]:
        """The jobs after the first `skip`, which an output holds that ends with the record at `last`."""
        jobs = self._jobs(mode)
        job = next(islice(jobs, skip - 1, None), None) if skip else None
        if skip and (job is None or f"{job.file}:{job.line}" != last):
            raise ConfigError(
                f"--resume: {self._options.out} ends with {last}, which is not record {skip} of the input"
            )
        yield from jobs

    def _has_id(self, data: bytes, which: str) -> bool:
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and str(record.get("id")) == which

    def _interrupt(self, workers: Workers) -> None:
        # An exception at any moment could cut a line of the output in two; only waiting for input is safe to break.
        workers.interrupted = True
        if self._reading:
            raise KeyboardInterrupt

    # ---- output

    def _open_out(self) -> tuple[IO[bytes] | None, int, str]:
        """The output, how many records it holds already, and the place of the last of them."""
        options = self._options
        if options.out in (None, "-"):
            if options.resume:
                raise ConfigError("--resume goes on with a file: name it with --out")
            return (None if options.out is None else sys.stdout.buffer), 0, ""
        path = Path(options.out)
        for other in [*self._files, options.diff or ""]:
            if other not in ("", "-") and path.exists() and path.samefile(other):
                raise ConfigError(f"--out {path} is also read from; name another file")
        if not options.resume or not path.exists():
            return path.open("wb", buffering=1 << 18), 0, ""
        whole, length, last = 0, 0, ""
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    result = from_line(old := json.loads(line))
                    last = f"{old['file']}:{old['line']}"
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(f"--resume: {path}:{whole + 1} is no line of `rlvr verify --out`") from None
                whole, length = whole + 1, length + len(line)
                self._take(result)
        os.truncate(path, length)
        return path.open("ab", buffering=1 << 18), whole, last

    def _take(self, result: Result) -> None:
        self._done += 1
        self._summary.add(result)
        if result.outcome == "error":
            self._complain(f"{result.key}: {result.reason}")
        elif self._options.gold and result.outcome != "correct":
            self._complain(f"{result.key}: gold is {result.outcome}: {result.reason[:300]}", fails=True)
        if self._difference is not None:
            self._difference.add(result)

    def _complain(self, text: str, *, fails: bool = False) -> None:
        self._num_failures += fails
        self._num_printed += 1
        if self._num_printed <= 100:
            print(f"{text}", file=sys.stderr)
        elif self._num_printed == 101:
            print("(more of these are not printed)", file=sys.stderr)

    def _audited(self, workers: Workers, jobs: Iterator[Job]) -> Iterator[Result]:
        """The results, each compared with those of two more runs, in shuffled order within a block."""
        shuffle = random.Random(0).shuffle
        while block := _block(jobs):
            first = list(workers.map(iter(block)))
            order = [number for number in range(len(block)) for _ in range(2)]
            shuffle(order)
            changed: Counter[int] = Counter()
            for number, result in zip(order, workers.map(block[i] for i in order), strict=True):
                if (result.outcome, result.checks) != (first[number].outcome, first[number].checks):
                    changed[number] += 1
                    if changed[number] == 1:
                        was = f"{first[number].outcome} ({first[number].reason[:100]})"
                        now = f"{result.outcome} ({result.reason[:100]})"
                        self._complain(f"{result.key}: changed from {was} to {now}", fails=True)
            yield from first

    def _report(self) -> int:
        """Print the summary; the exit code."""
        options, summary = self._options, self._summary
        file: Any = sys.stderr if options.out == "-" else sys.stdout
        print(summary.table(), file=file)
        if self._difference is not None:
            print(f"\n{self._difference.table()}", file=file)
        invalid, unreadable = summary.total("invalid"), summary.total("error")
        allowed = options.max_invalid if options.max_invalid >= 0 else -options.max_invalid * (self._done - unreadable)
        failures = []
        if invalid > allowed:
            failures.append(f"{invalid:,} invalid, more than --max-invalid")
        if unreadable:
            failures.append(f"{unreadable:,} lines that could not be read")
        if self._num_failures:
            failures.append(f"--{'gold' if options.gold else 'audit'} failed on {self._num_failures:,}")
        if failures:
            print(f"rlvr verify: {'; '.join(failures)}", file=sys.stderr)
        return 1 if failures else 0


def _block(jobs: Iterator[Job]) -> list[Job]:
    block: list[Job] = []
    size = 0
    for job in jobs:
        block.append(job)
        size += len(job.data)
        if len(block) == AUDIT_BLOCK or size > AUDIT_BYTES:
            break
    return block
