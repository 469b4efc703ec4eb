"""An interim backend: a plain process with limits, killed as a group. **Not a security boundary.**

It keeps honest mistakes (endless loops, memory, output, stray children) off the machine, and no more: the program can
read what this user can read, fill the disk, and reach the network. The Docker and bubblewrap backends replace it behind
the same seam. A limit that it does not keep: `processes` (the kernel
counts them by user, and this user has many). It never reports `out_of_memory` or `too_many_processes`: a program that
meets its address-space limit gets a MemoryError of its own.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sandbox.base import Execution, Program, Status, Talk

# Runs in the child before the program. It dies with its supervisor, gains no privileges, and gives up the capabilities
# and the dumpable flag that would let one run read the memory or the open files of another run of the same user. A
# seccomp filter (x86-64) lets it signal nobody but itself and its group, or it could kill its supervisor and pass for a
# failure of ours; and keeps it from leaving its group, trace others, or reach into their memory.
_BOOT = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
libc.prctl(1, 9)
libc.prctl(38, 1, 0, 0, 0)
libc.capset(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), ctypes.byref((ctypes.c_uint32 * 6)()))
libc.prctl(4, 0)
if os.uname().machine == "x86_64":
    # setpgid, setsid, ptrace, tkill, process_vm_readv and _writev, pidfd_send_signal and _getfd
    # kill, tgkill, prlimit64: what they aim at comes first
    refused, aimed = (109, 112, 101, 200, 310, 311, 424, 438), (62, 234, 302)
    LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
    allow = 4 + len(refused) + len(aimed)
    refuse = allow + 4
    program = [(LOAD, 0, 0, 4), (EQUAL, 0, refuse - 2, 0xC000003E), (LOAD, 0, 0, 0)]
    program += [(AT_LEAST, refuse - 4, 0, 0x40000000)]
    program += [(EQUAL, refuse - 5 - i, 0, number) for i, number in enumerate(refused)]
    program += [(EQUAL, allow - 4 - len(refused) - i, 0, number) for i, number in enumerate(aimed)]
    program += [(RETURN, 0, 0, 0x7FFF0000), (LOAD, 0, 0, 16), (EQUAL, 2, 0, os.getpid()), (EQUAL, 1, 0, 0)]
    program += [(RETURN, 0, 0, 0x00050001), (RETURN, 0, 0, 0x7FFF0000)]
    filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    libc.prctl(22, 2, ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(filter))), 0, 0)
del ctypes, libc
sys.argv = ["main.py"]
with open("main.py", encoding="utf-8", errors="surrogatepass") as file:
    text = file.read()
del file
exec(compile(text, "main.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
"""


class ProcessSandbox:
    """See the module. `python` runs the sources."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python

    async def run(self, program: Program, talk: Talk | None = None) -> Execution:
        """See `sandbox.base.Sandbox`."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="rlvr-run-"))
        except OSError as error:
            return Execution(status="sandbox_failure", detail=f"no working folder: {error}")
        try:
            try:
                run = _Run(program, folder, self._python)
            except OSError as error:
                return Execution(status="sandbox_failure", detail=f"the program did not start: {error}")
            try:
                return await run.until_gone(talk)
            finally:
                run.kill()
        finally:
            _remove(folder)


class _Run:
    """One child process and its group, from spawn to reaping."""

    def __init__(self, program: Program, folder: Path, python: str) -> None:
        self.limits = program.limits
        self.stdin = program.stdin
        self.status: Status = "finished"
        self.cut = {"stdout": False, "stderr": False}
        for name, content in program.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        argv = program.argv
        if program.source is not None:
            (folder / "main.py").write_bytes(program.source.encode("utf-8", "surrogatepass"))
            # As `-I`, but the hash seed counts: the same program does the same thing twice.
            argv = (python, "-P", "-s", "-B", "-c", _BOOT)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder)}
        self.started = time.monotonic()
        self.child = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment | {"TMPDIR": str(folder), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.usage: resource.struct_rusage | None = None
        try:
            self._limit()
        except OSError as error:
            self.kill()
            raise OSError(f"limits cannot be set: {error}") from error

    def _limit(self) -> None:
        # From outside and not in the child: code between fork and exec is unsafe in a process with threads. The
        # program has not got past the start of its interpreter by now.
        limits, cpu = self.limits, max(1, round(self.limits.cpu_seconds))
        for kind, soft, hard in (
            (resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
            (resource.RLIMIT_CPU, cpu, cpu + 1),
            (resource.RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes),
            (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
            (resource.RLIMIT_CORE, 0, 0),
        ):
            with suppress(ProcessLookupError):
                resource.prlimit(self.child.pid, kind, (soft, hard))

    def kill(self) -> None:
        """Kill the whole group, and reap its leader. Safe to repeat."""
        if self.usage is not None:
            return
        # The leader is not reaped yet, so its id cannot have become somebody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        try:
            _, wait_status, self.usage = os.wait4(self.child.pid, 0)
        except ChildProcessError:  # someone in this process waits for every child
            wait_status, self.usage = 0, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.child.returncode = os.waitstatus_to_exitcode(wait_status)

    async def until_gone(self, talk: Talk | None) -> Execution:
        loop = asyncio.get_running_loop()
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        gone = asyncio.Event()
        stop = asyncio.Event()  # set by whoever decides that the program must end
        pidfd = os.pidfd_open(self.child.pid)
        transports: list[asyncio.BaseTransport] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            loop.add_reader(pidfd, gone.set)
            streams = {}
            for name, pipe in (("stdout", self.child.stdout), ("stderr", self.child.stderr)):
                reader = asyncio.StreamReader(limit=1 << 16)
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.connect_read_pipe(lambda protocol=protocol: protocol, pipe)  # type: ignore[misc]
                transports.append(transport)
                streams[name] = reader
            write_transport, write_protocol = await loop.connect_write_pipe(
                lambda: asyncio.streams.FlowControlMixin(loop), self.child.stdin
            )
            transports.append(write_transport)
            writer = asyncio.StreamWriter(write_transport, write_protocol, None, loop)
            output = {"stdout": bytearray(), "stderr": bytearray()}

            async def collect(name: str) -> None:
                while chunk := await streams[name].read(1 << 16):
                    if not self._add(name, output[name], chunk):
                        stop.set()
                        return

            async def feed() -> None:
                with suppress(ConnectionError):
                    writer.write(self.stdin)
                    await writer.drain()
                with suppress(ConnectionError):
                    writer.close()

            async def converse(talk: Talk) -> None:
                try:
                    await talk(_Pipes(self, streams["stdout"], writer, stop))
                finally:
                    with suppress(ConnectionError):
                        writer.close()
                    stop.set()

            collectors = [loop.create_task(collect("stderr"))]
            if talk is None:
                collectors.append(loop.create_task(collect("stdout")))
                tasks.append(loop.create_task(feed()))
                talking: list[asyncio.Task[None]] = []
            else:
                talking = [loop.create_task(converse(talk))]
            tasks += collectors + talking
            left = self.started + self.limits.wall_seconds - time.monotonic()
            waits = [loop.create_task(_wait(event)) for event in (gone, stop)]
            tasks += waits
            done, _ = await asyncio.wait(waits, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self.status = "wall_timeout"
            elif talking and not gone.is_set() and self.status == "finished":
                # The talk is over: a program that reads the end of its stdin ends by itself, and has an exit code.
                await asyncio.wait(waits[:1], timeout=0.25)
            wall = time.monotonic() - self.started
            by_itself = gone.is_set()
            self.kill()
            # What was written before the end is still in the pipes; a descendant that fled may hold them open.
            await asyncio.wait(collectors + talking, timeout=0.5)
            for task in talking:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            for task in tasks:
                task.cancel()
            # The transports own the pipes: closing those first could take a number that another run has by now.
            for each in transports:
                with suppress(AttributeError):  # raised by one that has closed already
                    each.abort() if isinstance(each, asyncio.WriteTransport) else each.close()
            self.kill()
            await asyncio.gather(*tasks, return_exceptions=True)
        if by_itself and self.child.returncode is not None:
            code = self.child.returncode
            self.exit_code, self.signal = (code, None) if code >= 0 else (None, -code)
        assert self.usage is not None
        return Execution(
            status=self.status,
            exit_code=self.exit_code,
            signal=self.signal,
            stdout=bytes(output["stdout"]),
            stderr=bytes(output["stderr"]),
            stdout_cut=self.cut["stdout"],
            stderr_cut=self.cut["stderr"],
            wall_seconds=wall,
            cpu_seconds=self.usage.ru_utime + self.usage.ru_stime,
            peak_memory_bytes=self.usage.ru_maxrss * 1024,
        )

    def _add(self, name: str, output: bytearray, chunk: bytes) -> bool:
        """Whether there was room for it all."""
        room = self.limits.output_bytes - len(output)
        output += chunk[:room]
        if len(chunk) > room:
            self.cut[name] = True
            self.status = "output_limit"
        return len(chunk) <= room


class _Pipes:
    """A `Conversation` over a child's pipes."""

    def __init__(self, run: _Run, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event):
        self._run, self._reader, self._writer, self._stop = run, reader, writer, stop
        self._buffer = bytearray()
        self._received = 0

    async def send(self, line: bytes) -> None:
        with suppress(ConnectionError):
            self._writer.write(line + b"\n")
            await self._writer.drain()

    async def receive(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            chunk = await self._reader.read(1 << 16)
            self._received += len(chunk)
            if not chunk:
                return b""
            if self._received > self._run.limits.output_bytes:
                self._run.cut["stdout"] = True
                self._run.status = "output_limit"
                self._stop.set()
                return b""
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # A program can nest folders deeper than Python recurses, or take its own rights away.
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False, stderr=subprocess.DEVNULL)
