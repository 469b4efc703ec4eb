"""Publishes a version to every engine, and believes it only when it is seen.

Each engine replaces policy and draft in one update while its requests wait. Then two independent checks: the checksums
that the engine's worker process computed over the bytes it loaded, policy and draft apart; and the log-probabilities of
a fixed prompt, computed by the engine with the weights it now holds, against the learner's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol, TypeVar

from rlvr.errors import ComponentDied, UpdateFailed, WeightSyncError
from rlvr.inference.engine import UpdateReport
from rlvr.weights import Checksums, Part

# How long engines have to end, when one has failed, before they count as stuck.
GRACE_SECONDS = 10.0
_T = TypeVar("_T")


class SyncTarget(Protocol):
    """An engine, wherever it lives."""

    name: str

    async def update(self) -> UpdateReport:
        """Take the version that is being published."""
        ...

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """As `Engine.logprobs`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fixed prompt, the learner's log-probabilities of its tokens from the second on, and the tolerance."""

    token_ids: tuple[int, ...]
    expected: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """The worst over all engines."""

    paused_seconds: float
    total_seconds: float
    probe_error: float
    phases: dict[str, float]  # of the engine that was slowest
    loading: dict[Part, str]  # as well
    draft_depths: dict[int, float] = field(default_factory=dict)  # by running requests, the mean over engines
    num_restarted: int = 0  # engines that had to be replaced before all held the version

    @property
    def metrics(self) -> dict[str, float]:
        """As they stand in the metrics file."""
        return {
            "sync/paused_seconds": self.paused_seconds,
            "sync/total_seconds": self.total_seconds,
            "sync/probe_error": self.probe_error,
            "sync/restarted_engines": self.num_restarted,
            "sync/in_place": float(set(self.loading.values()) == {"in place"}),
            **{f"draft/depth/{size}": depth for size, depth in self.draft_depths.items()},
        }


async def publish(
    version: int, sent: Awaitable[Checksums], targets: Sequence[SyncTarget], probe: Awaitable[Probe]
) -> SyncReport:
    """Replace the weights of all engines at once. Raises `WeightSyncError`, which names the engine and the figures.

    All is waited for together: over NCCL the learner sends while the engines receive. `UpdateFailed` is raised for
    engines that failed, and for those that had not ended `GRACE_SECONDS` later: they wait for what no longer comes.
    """
    updates = [asyncio.ensure_future(target.update()) for target in targets]
    others = (asyncio.ensure_future(sent), asyncio.ensure_future(probe))
    await _end_together(updates, others)
    failures = [failure for other in others if not other.cancelled() and (failure := other.exception())]
    # A learner that is gone is the cause; one that waited in vain did so for an engine, if one failed.
    for failure in failures:
        if isinstance(failure, ComponentDied):
            raise failure
    reports = _results(version, targets, updates)
    for failure in failures:
        raise failure
    checksums, expected = others[0].result(), others[1].result()
    for target, report in zip(targets, reports, strict=True):
        for part in ("policy", "draft"):
            published, received = getattr(checksums, part), getattr(report.checksums, part)
            if published != received:
                raise WeightSyncError(
                    f"{target.name} loaded other {part} weights than version {version}: checksum {received:08x}, "
                    f"published {published:08x}"
                )
    error = await check(version, targets, expected)
    slowest = max(reports, key=lambda report: report.total_seconds)
    return SyncReport(
        paused_seconds=max(report.paused_seconds for report in reports),
        total_seconds=max(report.total_seconds for report in reports),
        probe_error=error,
        phases=slowest.phases,
        loading=slowest.loading,
        draft_depths={
            size: fmean(report.draft_depths.get(size, depth) for report in reports)
            for size, depth in reports[0].draft_depths.items()
        },
    )


async def check(version: int, targets: Sequence[SyncTarget], probe: Probe) -> float:
    """The largest log-probability difference to the learner over the probe's tokens. Raises `WeightSyncError`."""
    worst = 0.0
    asked = [asyncio.ensure_future(target.logprobs(probe.token_ids)) for target in targets]
    await _end_together(asked)
    answers = _results(version, targets, asked)
    for target, answer in zip(targets, answers, strict=True):
        errors = [abs(a - b) for a, b in zip(answer, probe.expected, strict=True)]
        # `max` alone passes over a NaN that does not stand first.
        error = math.nan if any(map(math.isnan, errors)) else max(errors)
        if not error <= probe.tolerance:
            raise WeightSyncError(
                f"{target.name} disagrees with the learner on version {version}: a log-probability of the fixed prompt "
                f"is off by {error:.2e}, allowed are {probe.tolerance:.0e} (inference.probe_tolerance)"
            )
        worst = max(worst, error)
    return worst


async def _end_together(engines: Sequence[asyncio.Future[Any]], others: Sequence[asyncio.Future[Any]] = ()) -> None:
    """Until all have a result, or some time after the first has failed; then none is under way any more."""
    try:
        await asyncio.wait([*engines, *others], return_when=asyncio.FIRST_EXCEPTION)
        if unfinished := [engine for engine in engines if not engine.done()]:
            await asyncio.wait(unfinished, timeout=GRACE_SECONDS)
    finally:
        for future in (*engines, *others):
            future.cancel()
        await asyncio.gather(*engines, *others, return_exceptions=True)


def _results(version: int, targets: Sequence[SyncTarget], futures: Sequence[asyncio.Future[_T]]) -> list[_T]:
    """Raises `UpdateFailed`."""
    failed = {}
    for target, future in zip(targets, futures, strict=True):
        if future.cancelled():
            failed[target.name] = f"no answer {GRACE_SECONDS:.0f} s after another had failed"
        elif error := future.exception():
            failed[target.name] = f"{type(error).__name__}: {error}"
    if failed:
        raise UpdateFailed(version, failed)
    return [future.result() for future in futures]
