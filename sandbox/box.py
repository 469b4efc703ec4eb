"""One warm box from outside: sends programs to its fork server, and learns from it and the kernel what became of them.

A box runs one program at a time. When anything is not as it must be, the box is lost (`BoxLost`): whoever owns it
throws it away, and decides whether that was the program's doing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox.base import Execution, Language, Limits, Program, Status, Talk
from sandbox.inside.server import CHUNK, HEADER, ORDER

START_SECONDS = 30.0
# What the fork server may need beyond the program's wall limit, on a machine that is busy, before the box is given up.
GRACE_SECONDS = 5.0
# A program whose conversation is over may end by itself, and then has an exit code.
FAREWELL_SECONDS = 0.25


class BoxLost(Exception):
    """The box cannot be talked with any more. `by_memory`: the kernel killed in it for its memory limit.

    `from_outside`: something that no program in it can do, such as the removal of its container.
    """

    def __init__(self, detail: str, *, by_memory: bool = False, from_outside: bool = False) -> None:
        self.by_memory, self.from_outside = by_memory, from_outside
        super().__init__(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSpec:
    """What is fixed when a box is made. Programs of the same needs share boxes, one after another."""

    language: Language
    memory_bytes: int
    processes: int

    @staticmethod
    def of(program: Program) -> BoxSpec:
        limits = program.limits
        return BoxSpec(language=program.language, memory_bytes=limits.memory_bytes, processes=limits.processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What the kernel counted in a box: processes killed for memory, and forks refused."""

    oom: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallbacks:
    """Limits a process of its own where the box has no control group for them."""

    memory: bool = False
    processes: bool = False


class Wire(Protocol):
    """The channel to a fork server, as bytes."""

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises EOFError (IncompleteReadError) or OSError when it is gone."""
        ...

    async def write(self, *parts: bytes) -> None: ...

    def close(self) -> None: ...


class Holder(Protocol):
    """What holds a box in place: a process or a container."""

    def counted(self) -> Counted:
        """The counters that can be read from outside; zeros where the fork server reports them."""
        ...

    async def autopsy(self) -> tuple[str, bool, bool]:
        """Of a lost box: what is known of its end, whether memory was the cause, whether it came from outside."""
        ...

    async def destroy(self) -> None:
        """End the box and all that is in it. Safe to repeat; never raises."""
        ...


class Box:
    """See the module. `sound` is whether it may take another program."""

    def __init__(self, spec: BoxSpec, wire: Wire, holder: Holder, fallbacks: Fallbacks) -> None:
        self.spec, self.runs, self.sound = spec, 0, False
        self.hello: dict[str, Any] = {}
        self._wire, self._holder, self._fallbacks = wire, holder, fallbacks

    async def greet(self) -> None:
        """Wait until the fork server is ready. Raises `BoxLost`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                kind, payload = await self._frame()
        except (OSError, EOFError, TimeoutError) as error:
            detail, by_memory, from_outside = await self._holder.autopsy()
            raise BoxLost(
                f"the box did not start: {detail or error!r}", by_memory=by_memory, from_outside=from_outside
            ) from error
        if kind != b"H":
            raise BoxLost(f"the box said {kind!r} instead of hello")
        self.hello = json.loads(payload)
        self.sound = True

    def require(self, *, own_kernel: bool = False) -> None:
        """That the fork server, and so its programs, has no rights to lose. Raises `BoxLost`.

        A runtime with a kernel of its own, such as gVisor, filters elsewhere and tells less.
        """
        wanted = {"CapEff": 0, "CapPrm": 0, "CapAmb": 0, "NoNewPrivs": 1, "Seccomp": 2}
        if own_kernel:
            wanted = {key: value for key, value in wanted.items() if key in self.hello and key != "Seccomp"}
        told = {key: int(self.hello.get(key, "-1"), 16) for key in wanted}
        wrong = [f"{key} {told[key]}" for key, value in wanted.items() if told[key] != value]
        if wrong:
            raise BoxLost(f"the box is not shut: {', '.join(wrong)}", from_outside=True)

    async def run(self, program: Program, talk: Talk | None) -> Execution:
        """Raises `BoxLost`. A run that is cancelled, or whose `talk` raises, leaves the box unsound."""
        if not self.sound:
            raise BoxLost("the box is used up")
        self.sound = False
        self.runs += 1
        before = self._holder.counted()
        run = _Run(program, talk, self._wire)
        try:
            told = await run.follow(self._frame, _order(program, talk is not None, self._fallbacks))
            await run.hang_up()
        except (OSError, EOFError, TimeoutError) as error:
            why = "it did not answer in time" if isinstance(error, TimeoutError) else "its channel ended"
            detail, by_memory, from_outside = await self._holder.autopsy()
            by_memory |= self._holder.counted().oom > before.oom
            await self._abandon(run)
            text = f"the box was lost, {why}{': ' if detail else ''}{detail}"
            raise BoxLost(text, by_memory=by_memory, from_outside=from_outside) from error
        except BaseException:  # cancelled, or the talk raised
            await self._abandon(run)
            raise
        after = self._holder.counted()
        counted = Counted(
            oom=told.get("oom", after.oom - before.oom), refused=told.get("refused", after.refused - before.refused)
        )
        self.sound = not told["doubt"]
        return run.execution(told, counted)

    async def _abandon(self, run: _Run) -> None:
        """First nothing of the program may live on; then its conversation ends."""
        await self.close()
        with suppress(Exception):  # a talk that raises has been heard, or has lost its box
            await run.hang_up()

    async def close(self) -> None:
        """End it and all that is in it, at once. Safe to repeat."""
        self.sound = False
        self._wire.close()
        await self._holder.destroy()

    async def _frame(self) -> tuple[bytes, bytes]:
        kind, length = HEADER.unpack(await self._wire.read(HEADER.size))
        return kind, await self._wire.read(length)


class _Run:
    """One program in a box, with the conversation that somebody may have with it."""

    def __init__(self, program: Program, talk: Talk | None, wire: Wire) -> None:
        self._program, self._talk, self._wire = program, talk, wire
        self._output: dict[bytes, bytearray] = {b"O": bytearray(), b"X": bytearray()}
        self._conversation = _Conversation(wire)
        self._talking: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def follow(self, frame: Callable[[], Awaitable[tuple[bytes, bytes]]], order: list[bytes]) -> dict[str, Any]:
        """From the order to the fork server's last word. Raises OSError, EOFError or TimeoutError."""
        async with asyncio.timeout(START_SECONDS + GRACE_SECONDS) as deadline:
            await self._wire.write(*order)
            while True:
                kind, payload = await frame()
                if kind == b"S":
                    wall = self._program.limits.wall_seconds
                    deadline.reschedule(asyncio.get_running_loop().time() + wall + GRACE_SECONDS)
                    if self._talk is not None:
                        self._talking = asyncio.ensure_future(self._converse(self._talk))
                elif kind == b"D":
                    told: dict[str, Any] = json.loads(payload)
                    return told
                elif kind == b"A":
                    self._conversation.passed_on.set()
                elif kind == b"O" and self._talk is not None:
                    self._conversation.feed(payload)
                else:
                    self._output[kind] += payload

    async def _converse(self, talk: Talk) -> None:
        try:
            await talk(self._conversation)
        finally:
            with suppress(OSError):
                await self._wire.write(HEADER.pack(b"E", 0))
                await asyncio.wait([self._gone], timeout=FAREWELL_SECONDS)
                if not self._gone.done():
                    await self._wire.write(HEADER.pack(b"K", 0))

    async def hang_up(self) -> None:
        """The program is gone: let the conversation read what is left, and raise what it raised."""
        self._conversation.end()
        if not self._gone.done():
            self._gone.set_result(None)
        if self._talking is None:
            return
        await asyncio.wait([self._talking], timeout=FAREWELL_SECONDS + 0.5)
        self._talking.cancel()
        with suppress(asyncio.CancelledError):
            await self._talking

    def execution(self, told: dict[str, Any], counted: Counted) -> Execution:
        cause, wait_status = told["cause"], told["status"]
        status: Status = "finished"
        if cause == "setup":
            status = "sandbox_failure"
        elif counted.oom > 0:
            status = "out_of_memory"
        elif counted.refused > 0:
            status = "too_many_processes"
        elif cause == "output":
            status = "output_limit"
        elif cause == "wall":
            status = "wall_timeout"
        code = None
        if wait_status is not None:
            code = -(wait_status & 0x7F) if wait_status & 0x7F else wait_status >> 8
        return Execution(
            status=status,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            stdout=bytes(self._output[b"O"]),
            stderr=bytes(self._output[b"X"]),
            stdout_cut=told["cut"][0],
            stderr_cut=told["cut"][1],
            wall_seconds=told["wall"],
            cpu_seconds=told["cpu"],
            peak_memory_bytes=told["peak"],
            detail=f"the program did not start; {told['detail']}" if cause == "setup" else "",
        )


class _Conversation:
    """A `Conversation` over frames."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lines = bytearray()
        self._searched = 0
        self._news = asyncio.Event()
        self._over = False
        self.passed_on = asyncio.Event()

    def feed(self, data: bytes) -> None:
        self._lines += data
        self._news.set()

    def end(self) -> None:
        self._over = True
        self._news.set()
        self.passed_on.set()

    async def send(self, line: bytes) -> None:
        data = line + b"\n"
        for start in range(0, len(data), CHUNK):
            if self._over:
                return
            part = data[start : start + CHUNK]
            self.passed_on.clear()
            with suppress(OSError):
                await self._wire.write(HEADER.pack(b"I", len(part)), part)
                # One piece at a time: a program that does not read must not keep the fork server from reading.
                await self.passed_on.wait()

    async def receive(self) -> bytes:
        while (end := self._lines.find(b"\n", self._searched)) < 0:
            self._searched = len(self._lines)
            if self._over:
                return b""
            self._news.clear()
            await self._news.wait()
        line = bytes(self._lines[:end])
        del self._lines[: end + 1]
        self._searched = 0
        return line


def _order(program: Program, talk: bool, fallbacks: Fallbacks) -> list[bytes]:
    files = dict(program.files)
    if program.source is not None:
        files["main.py"] = program.source.encode("utf-8", "surrogatepass")
    about = json.dumps(
        {"argv": program.argv, "files": [[name, len(content)] for name, content in files.items()]}
    ).encode()
    body = [len(about).to_bytes(4, "big"), about, *files.values(), b"" if talk else program.stdin]
    limits: Limits = program.limits
    order = ORDER.pack(
        limits.wall_seconds,
        limits.cpu_seconds,
        limits.memory_bytes if fallbacks.memory else 0,
        limits.processes if fallbacks.processes else 0,
        limits.file_bytes,
        limits.output_bytes,
        limits.open_files,
        talk,
        sum(map(len, body)),
    )
    return [HEADER.pack(b"R", len(order)), order, *body]


class StreamWire:
    """A `Wire` over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def write(self, *parts: bytes) -> None:
        self._writer.writelines(parts)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
