"""What a person reads at the end: counts, times and reasons. Memory does not grow with the number of records."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from array import array
from collections import Counter
from typing import IO

from rlvr.errors import ConfigError
from verifiers.scoring import Result, from_line

MAX_REASONS = 200  # kinds of reason that are told apart
SHOWN = 10
_STEP = math.log(1.02)  # times are kept to 2 %


class Summary:
    """Counts by verifier."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._times: dict[str, Counter[int]] = {}
        self._reasons: Counter[tuple[str, ...]] = Counter()
        self.online: Counter[bool] = Counter()
        self._otherwise: list[str] = []

    def add(self, result: Result) -> None:
        self.outcomes[result.verifier, result.outcome] += 1
        if result.outcome == "error":
            return
        bucket = round(math.log(max(result.seconds, 1e-7)) / _STEP)
        self._times.setdefault(result.verifier, Counter())[bucket] += 1
        if result.outcome == "invalid":
            count(self._reasons, (result.verifier, kind_of(result.reason)))
        if result.as_online is not None:
            self.online[result.as_online] += 1
            if not result.as_online and len(self._otherwise) < SHOWN:
                self._otherwise.append(f"{result.key}: now {result.outcome}: {result.reason[:100]}")

    def total(self, outcome: str) -> int:
        """Records of this outcome; "error" are the lines that could not be read."""
        return sum(number for (_, each), number in self.outcomes.items() if each == outcome)

    def table(self) -> str:
        """See the module."""
        header = ("verifier", "records", "correct", "incorrect", "invalid", "median", "99 %")
        rows: list[tuple[str, ...]] = [header]
        verifiers = sorted({verifier for verifier, outcome in self.outcomes if outcome != "error"})
        for verifier in verifiers + (["all"] if len(verifiers) != 1 else []):
            wanted = verifiers if verifier == "all" else [verifier]
            counts = [sum(self.outcomes[v, outcome] for v in wanted) for outcome in ("correct", "incorrect", "invalid")]
            times: Counter[int] = Counter()
            for each in wanted:
                times.update(self._times[each])
            spans = [_span(_quantile(times, 0.5)), _span(_quantile(times, 0.99))]
            rows.append((verifier, f"{sum(counts):,}", *(f"{number:,}" for number in counts), *spans))
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if not i else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        if self._reasons:
            lines += ["", "invalid, by reason:"]
            lines += [
                f"{number:9,}  {verifier}: {reason}" for (verifier, reason), number in self._reasons.most_common(SHOWN)
            ]
        if self.total("error"):
            lines += ["", f"{self.total('error'):,} lines could not be read"]
        if self.online:
            lines += ["", f"as judged online: {self.online[True]:,} of {sum(self.online.values()):,}", *self._otherwise]
        return "\n".join(lines)


class Difference:
    """The verdicts that are not those of an earlier output, grouped by what they flipped from and to, and why.

    Records are matched by id, or by file and line; ids that repeat, in their order. In memory an old verdict is its
    place in the file: about a hundred bytes.
    """

    def __init__(self, path: str) -> None:
        try:
            self._old = open(path, "rb")  # noqa: SIM115, PTH123 - read from until the end
        except OSError as error:
            raise ConfigError(f"--diff {path}: {error.strerror}") from None
        self._places: dict[int, int | array[int]] = {}
        self._flips: Counter[tuple[str, ...]] = Counter()
        self._examples: dict[tuple[str, ...], list[str]] = {}
        self.unmatched = 0
        place = 0
        for number, line in enumerate(self._old, 1):
            try:
                key = hash(from_line(json.loads(line)).key)
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"--diff {path}:{number}: no line of `rlvr verify --out`") from None
            before = self._places.get(key)
            if before is None:
                self._places[key] = place
            else:
                self._places[key] = array("q", [*([before] if isinstance(before, int) else before), place])
            place += len(line)

    def add(self, result: Result) -> None:
        """Compare with the old verdict, if there is one."""
        key = hash(result.key)
        place = self._places.pop(key, None)
        if isinstance(place, array):
            first, rest = place[0], place[1:]
            self._places[key] = rest if len(rest) > 1 else rest[0]
            place = first
        if place is None:
            self.unmatched += 1
            return
        self._old.seek(place)
        old = from_line(json.loads(self._old.readline()))
        if old.outcome != result.outcome:
            flip = (old.outcome, result.outcome, f"was: {kind_of(old.reason)}; now: {kind_of(result.reason)}")
            if count(self._flips, flip):
                examples = self._examples.setdefault(flip, [])
                examples += [result.key] if len(examples) < SHOWN else []

    def table(self) -> str:
        """One block a kind of flip, the most frequent first."""
        lines = [f"flipped: {sum(self._flips.values()):,}"]
        for flip, number in self._flips.most_common():
            old, new, reason = flip
            lines.append(f"{number:9,}  {old} -> {new}  {reason}")
            lines.append(f"{'':11}{', '.join(self._examples.get(flip, []))}{', ...' if number > SHOWN else ''}")
        if self.unmatched or self._places:
            lines.append(f"without a counterpart: {self.unmatched:,} now, {len(self._places):,} before")
        return "\n".join(lines)


class Progress:
    """One line on standard error, rewritten a few times a second; silent where that is no terminal."""

    def __init__(self, total_bytes: int, *, show: bool | None = None) -> None:
        self._total = total_bytes
        self._show = sys.stderr.isatty() if show is None else show
        self._started = self._last = time.monotonic()
        self._file: IO[str] = sys.stderr

    def update(self, records: int, bytes_read: int) -> None:
        now = time.monotonic()
        if not self._show or now - self._last < 0.2:
            return
        self._last = now
        rate = records / (now - self._started)
        share = min(1.0, bytes_read / self._total) if self._total else 0.0
        bar = f"[{'#' * round(30 * share):30}] {share:4.0%}  " if self._total else ""
        print(f"\r{bar}{records:,} records, {rate:,.0f} a second \x1b[K", end="", file=self._file, flush=True)

    def close(self) -> None:
        if self._show:
            print("\r\x1b[K", end="", file=self._file, flush=True)


def kind_of(reason: str) -> str:
    """A reason without what differs from record to record, so that like ones are counted together."""
    return re.sub(r"\d+", "#", reason[:400])[:160]


def count(counter: Counter[tuple[str, ...]], key: tuple[str, ...]) -> bool:
    """Count `key`, or a common "other" once there are too many kinds; whether it was counted as itself."""
    itself = key in counter or len(counter) < MAX_REASONS
    counter[key if itself else (*key[:-1], "(other reasons)")] += 1
    return itself


def _quantile(times: Counter[int], share: float) -> float:
    """Seconds."""
    wanted, seen = share * sum(times.values()), 0
    for bucket in sorted(times):
        seen += times[bucket]
        if seen >= wanted:
            return math.exp(bucket * _STEP)
    return 0.0


def _span(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
