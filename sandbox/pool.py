"""The pool: a clean box for every run, a bound on how many live at once, and the verdict on whose fault a loss was.

    run --wait for a slot, in order--> idle box of the same spec, or a new one --> Execution
                                              |                     |
                                    thrown away after N runs,       lost: a canary in a fresh box, and the run again
                                    or at any doubt

A program cannot kill pid 1 of its box, so a lost box is nearly always ours. But nearly is not enough: a program that
ends one box after another while canaries live in boxes of the same kind is charged with it, or a way out of the box
would be worth a verdict of *invalid*. What no program can do (its container removed, its engine gone) never counts.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlvr.errors import RlvrError
from sandbox.base import Execution, Program, Talk
from sandbox.box import Box, BoxLost, BoxSpec

TRIES = 3  # boxes that a program must end before it is charged with that
TRIES_FROM_OUTSIDE = 5
START_PATIENCE_SECONDS = 30.0  # for an engine that restarts
PARTNER_SECONDS = 1.0
SETTLE_SECONDS = 5.0
CANARY = "print(6 * 7)"

logger = logging.getLogger(__name__)


class SandboxUnavailable(RlvrError):
    """A backend cannot run here; says what is missing and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """One promise of a backend on this machine: kept or not, and by what (or why not). `by_design`: never kept."""

    name: str
    kept: bool
    how: str
    by_design: bool = False


class Backend(Protocol):
    """Makes boxes. `name` is "docker" or "bubblewrap"."""

    name: str

    async def start(self, spec: BoxSpec) -> Box:
        """A new box, ready. Raises `BoxLost`; or `SandboxUnavailable`, where trying again is no use."""
        ...

    def guarantees(self) -> tuple[Guarantee, ...]: ...

    async def close(self) -> None:
        """Let go of what the backend shares between boxes. They are closed before."""
        ...


class Pool:
    """A `Sandbox` over one backend. Belongs to the event loop it is used in."""

    def __init__(self, backend: Backend, *, max_boxes: int | None = None, runs_per_box: int = 500) -> None:
        self.backend = backend
        self.max_boxes = max_boxes or 2 * (os.cpu_count() or 2)
        self._runs_per_box = runs_per_box
        self._slots = _Slots(self.max_boxes)
        self._idle: deque[Box] = deque()  # the one used last is at the right: its memory is warm
        self._busy: set[Box] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False
        for guarantee in backend.guarantees():
            level = logging.INFO if guarantee.kept or guarantee.by_design else logging.WARNING
            word = "kept" if guarantee.kept else "NOT kept"
            logger.log(level, "%s sandbox: %s: %s (%s)", backend.name, guarantee.name, word, guarantee.how)

    async def run(self, program: Program, talk: Talk | None = None) -> Execution:
        """See `sandbox.base.Sandbox`."""
        async with self._slots.take(1):
            return await self._attributed(program, talk)

    async def run_together(self, *parts: tuple[Program, Talk]) -> list[Execution]:
        """See `sandbox.base.Sandbox`."""
        async with self._slots.take(len(parts)):
            # All boxes are there before the first program starts, or its clock would run while it waits for the others.
            boxes = await self._boxes([BoxSpec.of(program) for program, _ in parts])
            tasks = [
                asyncio.ensure_future(self._in_box(box, program, talk))
                for box, (program, talk) in zip(boxes, parts, strict=True)
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                # Who waits for a program whose box is lost would do so until its own time is over.
                await asyncio.wait(tasks, timeout=PARTNER_SECONDS)
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            return [_execution(end) for end in ends]

    async def healthy(self, program: Program) -> bool:
        """See `sandbox.base.Sandbox`."""
        async with self._slots.take(1):
            return await self._healthy(program)

    async def close(self, patience_seconds: float = 5.0) -> None:
        """Take no more runs, wait for those under way, then end whatever is left."""
        self._closed = True
        await self._slots.drained(patience_seconds)
        await asyncio.gather(*(box.close() for box in (*self._idle, *self._busy)))
        self._idle.clear()
        await self._slots.drained(SETTLE_SECONDS)  # whose boxes were closed under them have yet to say so
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.backend.close()

    # ---- whose fault

    async def _attributed(self, program: Program, talk: Talk | None) -> Execution:
        losses, from_outside = 0, 0
        while True:
            try:
                execution = await self._once(await self._box(BoxSpec.of(program)), program, talk)
                return await self._timely(program, execution)
            except BoxLost as lost:
                if lost.by_memory:
                    return Execution(status="out_of_memory", detail=str(lost))
                if talk is not None or isinstance(lost, _NoBox):
                    return Execution(status="sandbox_failure", detail=str(lost))
                logger.warning("%s sandbox: %s", self.backend.name, lost)
                if lost.from_outside:
                    from_outside += 1
                else:
                    losses += 1
                if from_outside == TRIES_FROM_OUTSIDE or not await self._healthy(program):
                    return Execution(status="sandbox_failure", detail=str(lost))
                if losses == TRIES:
                    return Execution(
                        status="finished", detail=f"it ended {TRIES} boxes while canaries lived, the last time: {lost}"
                    )

    async def _in_box(self, box: Box | BoxLost, program: Program, talk: Talk) -> Execution:
        if isinstance(box, BoxLost):
            raise box
        return await self._timely(program, await self._once(box, program, talk))

    async def _timely(self, program: Program, execution: Execution) -> Execution:
        """A program that ran out of time without using it may have been kept from it: a canary tells whether it was."""
        if execution.status != "wall_timeout" or execution.cpu_seconds >= 0.5 * execution.wall_seconds:
            return execution
        try:
            canary = await self._canary(await self._box(BoxSpec.of(program)), program)
        except BoxLost:
            canary = False
        if canary:
            return execution
        return replace(execution, status="sandbox_failure", detail="out of time, on a machine too slow for a canary")

    async def _healthy(self, program: Program) -> bool:
        try:
            return await self._canary(await self._new_box(BoxSpec.of(program)), program)
        except BoxLost:
            return False

    async def _canary(self, box: Box, program: Program) -> bool:
        """Raises `BoxLost`."""
        canary = Program(source=CANARY, language=program.language, limits=program.limits)
        execution = await self._once(box, canary, None)
        in_time = execution.wall_seconds < 0.5 * program.limits.wall_seconds
        return execution.status == "finished" and execution.stdout == b"42\n" and in_time

    # ---- boxes

    async def _once(self, box: Box, program: Program, talk: Talk | None) -> Execution:
        self._busy.add(box)
        try:
            return await box.run(program, talk)
        finally:
            self._busy.discard(box)
            if box.sound and box.runs < self._runs_per_box and not self._closed:
                self._idle.append(box)
            else:
                self._in_background(box.close())

    async def _boxes(self, specs: list[BoxSpec]) -> list[Box | BoxLost]:
        async def one(spec: BoxSpec) -> Box | BoxLost:
            try:
                return await self._box(spec)
            except BoxLost as lost:
                return lost

        tasks = [asyncio.ensure_future(one(spec)) for spec in specs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for box in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(box, Box):
                    self._in_background(box.close())
            raise

    async def _box(self, spec: BoxSpec) -> Box:
        for box in reversed(self._idle):
            if box.spec == spec:
                self._idle.remove(box)
                return box
        return await self._new_box(spec)

    async def _new_box(self, spec: BoxSpec) -> Box:
        if self._closed:
            raise _NoBox("the pool is closed")
        # Slots in use and idle boxes together stay within the bound: this one takes the place of the longest idle.
        while self._idle and len(self._idle) + self._slots.taken > self.max_boxes:
            self._in_background(self._idle.popleft().close())
        deadline = asyncio.get_running_loop().time() + START_PATIENCE_SECONDS
        pause = 0.1
        while True:
            try:
                return await self.backend.start(spec)
            except SandboxUnavailable as error:
                raise _NoBox(str(error)) from error
            except BoxLost as error:
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise _NoBox(f"no box in {START_PATIENCE_SECONDS:g} s: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2.0, 2 * pause)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _NoBox(BoxLost):
    """No box could be made: nothing of the program has run."""


def _execution(end: Execution | BaseException) -> Execution:
    """Of one of several programs that ran together: how it ended, or why it could not go on."""
    if isinstance(end, Execution):
        return end
    if isinstance(end, BoxLost):
        return Execution(status="out_of_memory" if end.by_memory else "sandbox_failure", detail=str(end))
    if isinstance(end, asyncio.CancelledError):
        return Execution(status="sandbox_failure", detail="the box of a program that it ran together with was lost")
    raise end


class _Slots:
    """A semaphore that is taken n at a time, strictly in the order of asking: a pair is not overtaken by singles."""

    def __init__(self, count: int) -> None:
        self._count, self.taken = count, 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, number: int) -> AsyncIterator[None]:
        if number > self._count:
            raise ValueError(f"{number} boxes at once are asked for, and the pool has {self._count}: raise max_boxes")
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((number, ticket))
        self._serve()
        try:
            await ticket
            yield
        finally:
            if ticket.done() and not ticket.cancelled():
                self.taken -= number
            else:
                with suppress(ValueError):
                    self._queue.remove((number, ticket))
            self._serve()

    async def drained(self, seconds: float) -> None:
        """Wait until nothing is taken, at most so long."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.taken and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - it has a deadline
            await asyncio.sleep(0.02)

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self._count - self.taken:
            number, ticket = self._queue.popleft()
            if ticket.cancelled():
                continue
            self.taken += number
            ticket.set_result(None)
