"""Pid 1 of a box: takes programs from its supervisor, forks a child for each, and leaves nothing of it behind.

The standard library only: its text is handed to the box's Python (`sandbox.inside.text`). It runs no program itself
and keeps no byte of one: the child reads its own program from the channel, and what is relayed passes through two
buffers that are wiped after each run. As pid 1 it gets no signal from inside; not dumpable, it cannot be traced, nor
its files opened through /proc. A child has nothing but its three streams.

    supervisor -> server    R order + body    I stdin, answered by A    E end of stdin    K kill
    server -> supervisor    H hello    S started    O stdout    X stderr    A stdin was passed on    D done

Every frame is HEADER (kind, length) and a payload. The numbers in D are what the server saw and the kernel counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import select
import signal
import struct
import time
from typing import Any

if __name__ != "__main__":  # in the box, both are one text
    from sandbox.inside.program import WORK, Order, become_program, open_streams, run_program

HEADER = struct.Struct("!cI")
ORDER = struct.Struct("!ddQQQQQ?Q")  # of `Order`
CHUNK = 1 << 16
BODY_SECONDS = 30.0
CLEAR_SECONDS = 2.0
MAX_LEFTOVERS = 20_000  # files; wiping more takes longer than a new box
SCRATCH = "/tmp"
COUNTERS = {
    "oom": ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events", b"oom_kill "),
    "refused": ("/sys/fs/cgroup/pids/pids.events", "/sys/fs/cgroup/pids.events", b"max "),
}
# Done once here, so that no program waits for it.
WARM = (
    "ast bisect collections copy dataclasses datetime decimal fractions functools heapq importlib.util itertools math"
)
WARM += " operator random re statistics string textwrap threading typing"


class Doubt(Exception):
    """The box may not be as clean as a new one; the supervisor throws it away."""


class Server:
    def __init__(self) -> None:
        # Private, or a child would share them. Never copied into objects, whose memory could be read by a later child.
        self.inbox, self.outbox = (memoryview(mmap.mmap(-1, CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANON)) for _ in range(2))
        self.header, self.blank = memoryview(bytearray(HEADER.size)), bytes(CHUNK)
        self.scratch = os.open(SCRATCH, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.scratch_mode = os.fstat(self.scratch).st_mode & 0o7777
        self.empty_size = self.size_of_empty()
        self.counters: dict[str, tuple[int, bytes]] = {}
        for name, (first, second, label) in COUNTERS.items():
            for path in (first, second):
                if name not in self.counters:
                    with contextlib.suppress(OSError):
                        self.counters[name] = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), label)
        self.wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    # ---- the channel

    def send(self, kind: bytes, *parts: bytes | memoryview) -> None:
        left = [memoryview(part) for part in (HEADER.pack(kind, sum(map(len, parts))), *parts)]
        while left:
            written = os.writev(1, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left and written:
                left[0] = left[0][written:]

    def receive(self, space: memoryview) -> memoryview:
        """Fill `space`. The supervisor's end of the channel is the end of the box."""
        have = 0
        while have < len(space):
            got = os.readv(0, [space[have:]])
            if not got:
                os._exit(0)
            have += got
        return space

    def receive_frame(self) -> tuple[bytes, int]:
        """Kind and length; the content of an I lies in the inbox then."""
        # Not in the inbox: there may be content that the program has not read yet.
        kind, length = HEADER.unpack(self.receive(self.header))
        if kind == b"I":
            self.receive(self.inbox[:length])
        return kind, length

    # ---- runs

    def serve(self) -> dict[str, Any]:
        """Returns in a child only, with its program to run."""
        with open("/proc/self/status") as file:
            hello = {line.split(":")[0]: line.split()[1] for line in file if line[:3] in ("Cap", "NoN", "Sec")}
        self.send(b"H", json.dumps(hello).encode())
        while True:
            kind, _ = self.receive_frame()
            if kind != b"R":  # belongs to a run that ended while it was on its way
                continue
            run = Run(Order(*ORDER.unpack(self.receive(self.inbox[: ORDER.size]))))
            before = self.count()
            run.pid = os.fork()
            if not run.pid:
                return become_program(run.order, (run.stdin_read, run.out_write, run.err_write), run.ready_write)
            run.close_childs_ends()
            doubt = ""
            try:
                self.follow(run)
                self.clear(run)
            except Doubt as error:
                doubt = str(error)
            self.inbox[:] = self.outbox[:] = self.blank
            counted = {name: value - before[name] for name, value in self.count().items()}
            self.send(b"D", json.dumps(run.told() | counted | {"doubt": doubt}).encode())
            if doubt:
                os._exit(0)

    def count(self) -> dict[str, int]:
        """The kernel's counters of the box's control group, where they can be read from here."""
        counts = {}
        for name, (fd, label) in self.counters.items():
            lines = os.pread(fd, 4096, 0).splitlines()
            counts[name] = sum(int(line.split()[1]) for line in lines if line.startswith(label))
        return counts

    def follow(self, run: Run) -> None:
        """From the fork to the moment when the program must not live any longer; `run.cause` says why."""
        if not select.select([run.ready], [], [], BODY_SECONDS)[0]:
            os._exit(3)  # the channel is somewhere inside a body
        word = os.read(run.ready, 256)
        if word != b"+":
            if not word:
                os._exit(3)
            run.cause = "setup"
            run.detail = word.decode(errors="replace")
            return
        run.begin()
        self.send(b"S")
        poller = select.poll()
        for fd in (0, run.out, run.err, self.wake):
            poller.register(fd, select.POLLIN)
        while not run.cause:
            left = run.deadline - time.monotonic()
            if left <= 0:
                run.cause = "wall"
                break
            for fd, _ in poller.poll(left * 1000 + 1):
                if fd == self.wake:
                    os.read(self.wake, 512)
                    run.reap()
                elif fd == 0:
                    self.obey(run, poller)
                elif fd == run.stdin:
                    self.pass_on(run, poller)
                else:
                    with contextlib.suppress(BlockingIOError):
                        if not self.relay(run, fd):
                            poller.unregister(fd)
        run.end()

    def obey(self, run: Run, poller: select.poll) -> None:
        kind, length = self.receive_frame()
        if kind == b"I" and run.stdin >= 0:
            run.pending = self.inbox[:length]
            poller.register(run.stdin, select.POLLOUT)
        elif kind == b"I":
            self.send(b"A")
        elif kind == b"E":
            run.no_more = True
            if not run.pending:
                run.close_stdin()
        elif kind == b"K":
            run.cause = "killed"

    def pass_on(self, run: Run, poller: select.poll) -> None:
        try:
            run.pending = run.pending[os.writev(run.stdin, [run.pending]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read any more
            run.pending, run.no_more = run.pending[:0], True
        if not run.pending:
            poller.unregister(run.stdin)
            if run.no_more:
                run.close_stdin()
            self.send(b"A")

    def relay(self, run: Run, fd: int) -> bool:
        """Pass on what the program wrote, up to its limit; whether there may be more. Raises BlockingIOError."""
        size = os.readv(fd, [self.outbox])
        passed = min(size, run.room[fd])
        run.room[fd] -= passed
        if passed:
            self.send(b"O" if fd == run.out else b"X", self.outbox[:passed])
        if passed < size:
            run.cut[fd] = True
            run.cause = "output"
        return size > 0 and passed == size

    def clear(self, run: Run) -> None:
        """Leave no process and no file. Raises `Doubt`."""
        deadline = time.monotonic() + CLEAR_SECONDS
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            try:
                run.reap(everyone=True)
            except ChildProcessError:
                break
            if time.monotonic() > deadline:
                raise Doubt("a process outlived SIGKILL")
            time.sleep(0.0002)
        others = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        if others:
            raise Doubt(f"processes {others[:5]} are in the box")
        for fd in (run.out, run.err):  # nobody can write any more: what is there is all
            with contextlib.suppress(BlockingIOError):
                while self.relay(run, fd):
                    pass
        run.close()
        try:
            self.wipe()
            for name in ("shm", "sem", "msg"):
                with contextlib.suppress(FileNotFoundError), open("/proc/sysvipc/" + name) as file:
                    if len(file.readlines()) > 1:
                        raise Doubt("System V objects are left")
        except OSError as error:
            raise Doubt(f"wiping failed: {error.strerror}") from None

    def wipe(self) -> None:
        """Empty the scratch folder and look at it. Raises `Doubt` and OSError.

        Names are a program's words too: where there is more than its own file, a child reads them, and forgets them.
        """
        with contextlib.suppress(OSError):
            os.unlink(WORK + "/main.py")
        with contextlib.suppress(OSError):
            os.rmdir(WORK)
        if self.empty_size is None or os.fstat(self.scratch).st_size != self.empty_size:
            pid = os.fork()
            if not pid:
                try:
                    wipe(self.scratch)
                    os._exit(1 if os.listdir(self.scratch) else 0)
                except BaseException:
                    os._exit(1)
            if os.waitpid(pid, 0)[1]:
                raise Doubt("the scratch folder cannot be emptied, or takes longer than a new box")
        # In a box of one user the folder itself is the program's too.
        if os.fstat(self.scratch).st_uid == os.getuid():
            os.chmod(self.scratch, self.scratch_mode)
            os.utime(self.scratch, (0, 0))
        if os.listxattr(self.scratch):
            raise Doubt("an attribute is left")

    def size_of_empty(self) -> int | None:
        """The scratch folder's size while it is empty, if its size tells."""
        sizes = [os.fstat(self.scratch).st_size]
        for change in (os.mkdir, os.rmdir):
            change(WORK)
            sizes.append(os.fstat(self.scratch).st_size)
        return sizes[0] if sizes[0] == sizes[2] != sizes[1] else None


class Run:
    """One program: its pipes (plain numbers, which no destructor closes in the child), and what is known of it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.ready, self.ready_write = os.pipe2(os.O_CLOEXEC)
        self.out, self.out_write = os.pipe2(os.O_CLOEXEC)
        self.err, self.err_write = os.pipe2(os.O_CLOEXEC)
        self.stdin_read, self.stdin = os.pipe2(os.O_CLOEXEC) if order.talk else (-1, -1)
        self.room = {self.out: order.output_bytes, self.err: order.output_bytes}
        self.cut = {self.out: False, self.err: False}
        self.pending, self.no_more = memoryview(b""), False
        self.pid, self.cause, self.detail = 0, "", ""
        self.status: int | None = None
        self.started = self.wall_seconds = self.cpu_seconds = 0.0
        self.peak = 0

    def close_childs_ends(self) -> None:
        for fd in (self.ready_write, self.out_write, self.err_write, self.stdin_read):
            if fd >= 0:
                os.close(fd)
        for fd in (self.out, self.err, self.stdin):
            if fd >= 0:
                os.set_blocking(fd, False)

    def begin(self) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + self.order.wall_seconds

    def end(self) -> None:
        self.wall_seconds = time.monotonic() - self.started

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        self.close_stdin()
        for fd in (self.ready, self.out, self.err):
            os.close(fd)

    def reap(self, everyone: bool = False) -> None:
        """Collect who has died. With `everyone`, raises ChildProcessError when there is nobody left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                if everyone:
                    raise
                return
            if not pid:
                return
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            self.peak = max(self.peak, usage.ru_maxrss * 1024)
            if pid == self.pid and not self.cause:
                self.cause, self.status = "exit", status

    def told(self) -> dict[str, Any]:
        return {
            "cause": self.cause,
            "status": self.status,
            "wall": self.wall_seconds,
            "cpu": self.cpu_seconds,
            "peak": self.peak,
            "cut": list(self.cut.values()),
            "detail": self.detail,
        }


def wipe(top: int) -> None:
    """Empty the folder `top`, however deep or locked what it holds. Nobody else is there to change it meanwhile.

    A folder in a folder is first moved to the top, so that no depth needs a deep recursion or a long path.
    """
    token, moved, count = os.urandom(8).hex(), 0, 0
    while names := os.listdir(top):
        for name in names:
            count += 1
            if count > MAX_LEFTOVERS:
                raise Doubt("too many files are left")
            with contextlib.suppress(IsADirectoryError):
                os.unlink(name, dir_fd=top)
                continue
            os.chmod(name, 0o700, dir_fd=top)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                for inner in os.listdir(folder):
                    count += 1
                    if count > MAX_LEFTOVERS:
                        raise Doubt("too many files are left")
                    try:
                        os.unlink(inner, dir_fd=folder)
                    except IsADirectoryError:
                        os.chmod(inner, 0o700, dir_fd=folder)
                        moved += 1
                        os.rename(inner, f"{token}-{moved}", src_dir_fd=folder, dst_dir_fd=top)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def start() -> dict[str, Any]:
    if os.getpid() != 1:
        raise SystemExit("the fork server must be pid 1 of its box, or a program could kill it")
    if ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        raise SystemExit("the fork server cannot be made untraceable")
    # With a handler, pid 1 would get this one from inside as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in WARM.split():
        with contextlib.suppress(ImportError):  # the distribution's minimal Python lacks some
            __import__(name)
    open_streams()
    server = Server()
    gc.collect()
    gc.freeze()  # or every child's first collection would copy all of these pages
    return server.serve()


if __name__ == "__main__":
    run_program(start())
