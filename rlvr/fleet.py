"""Engines and workers as one: brings a version to every engine, and plays groups on them, whatever an update breaks.

    publish --- every engine took it ---------------------------------------------------------------> live
       |  one failed, stood still past its deadline, or died
       v
    the learner leaves its group: what it was sending ends
    those engines are ended, with all their processes, and started anew from the run's first weights
    learner and all engines meet again, the version is sent whole to all ----------------------------> live
       |  one failed again
       v
    the run ends

No engine samples with half of a version: workers call the one in its place only when that holds the whole. The
learner's weights are the version's all the while, because its optimizer waits for it to be live (`LearnerHandle.step`).
What was being sampled on an engine that ended is lost with it: those groups are played again from their tickets, and
reach episode log, buffer and ledger once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rlvr.actors import EngineHandle, LearnerHandle, WorkerHandle
from rlvr.errors import EngineLost, UpdateFailed
from rlvr.rollout.worker import Order
from rlvr.types import Group
from rlvr.weight_sync import Probe, SyncReport, check, publish

logger = logging.getLogger(__name__)


class Fleet:
    """Lives on the controller's event loop."""

    def __init__(
        self,
        engines: Sequence[EngineHandle],
        workers: Sequence[WorkerHandle],
        learner: LearnerHandle,
        *,
        probe_ids: tuple[int, ...],
        probe_tolerance: float,
        sleep: bool = False,
    ) -> None:
        """`probe_ids`: the fixed prompt on which learner and engines must agree; `sleep`: engines do, in `asleep`."""
        self.engines = engines
        self.workers = workers
        self.learner = learner
        self._probe_ids = probe_ids
        self._tolerance = probe_tolerance
        self._sleep = sleep
        self._publishing: asyncio.Task[Any] | None = None
        self._num_restarted = 0

    async def meet(self, version: int) -> None:
        """Let started parts meet, and see that they agree on the version they were started with."""
        await self.learner.connect(self.engines)
        await check(version, self.engines, await self._probe(self.learner.logprobs(self._probe_ids)))

    async def publish(self, version: int) -> SyncReport:
        """Bring the weights that the learner has now to every engine. Raises what `rlvr.weight_sync.publish` raises.

        References to them are made before anything is awaited. One update at a time.
        """
        self._publishing = asyncio.current_task()
        try:
            try:
                return await self._attempt(version)
            except UpdateFailed as failure:
                logger.warning("%s\nThese engines are started anew, once; then the version is sent again", failure)
                return await self._recover(version, failure)
        finally:
            self._publishing = None

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Where engines are to sleep, they leave the learner what they share; a version under way goes first."""
        if not self._sleep:
            yield
            return
        if self._publishing is not None:
            await asyncio.wait([self._publishing])
        await asyncio.gather(*(engine.fall_asleep() for engine in self.engines))
        try:
            yield
        finally:
            await asyncio.gather(*(engine.wake_up() for engine in self.engines))

    async def play(self, order: Order) -> Group:
        """By the least busy worker; again from the start when an update replaced the engine it was playing on."""
        while True:
            restarted = self._num_restarted
            worker = min(self.workers, key=lambda worker: worker.num_playing)
            try:
                return await worker.play(order)
            except EngineLost:
                if self._publishing is not None:
                    await asyncio.wait([self._publishing])
                if self._num_restarted == restarted:
                    raise

    async def _recover(self, version: int, failure: UpdateFailed) -> SyncReport:
        failed = {index: engine for index, engine in enumerate(self.engines) if engine.name in failure.engines}
        await self.learner.abandon()
        await asyncio.gather(*(engine.restart() for engine in failed.values()))
        await self.learner.connect(self.engines)
        report = await self._attempt(version)
        await asyncio.gather(
            *(worker.replace(index, engine) for worker in self.workers for index, engine in failed.items())
        )
        self._num_restarted += len(failed)
        return dataclasses.replace(report, num_restarted=len(failed))

    async def _attempt(self, version: int) -> SyncReport:
        weights, checksums = self.learner.weights(version)
        probe = self._probe(self.learner.logprobs(self._probe_ids))
        for engine in self.engines:
            engine.to_publish(weights)
        return await publish(version, self.learner.checksums(checksums), self.engines, probe)

    async def _probe(self, reference: Any) -> Probe:
        expected = await self.learner.value(reference)
        return Probe(token_ids=self._probe_ids, expected=tuple(expected[1:]), tolerance=self._tolerance)
