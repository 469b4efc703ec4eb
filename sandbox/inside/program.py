"""The child's side of the fork server: how it becomes the program, and ends as one.

The standard library only: its text is handed to the box's Python, before that of `sandbox.inside.server`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import resource
import signal
import sys
import threading
import traceback
import types
from typing import Any, NamedTuple

WORK = "/tmp/work"


class Order(NamedTuple):
    """What the supervisor says of a run before its body. 0 processes or memory: the box's control group sees to it."""

    wall_seconds: float
    cpu_seconds: float
    memory: int  # bytes of address space of a process
    processes: int
    file_bytes: int
    output_bytes: int
    open_files: int
    talk: bool
    size: int  # of the body


def become_program(order: Order, streams: tuple[int, int, int], ready: int) -> dict[str, Any]:
    """Turn this process into the program's: its files, streams and limits, and no way back to the server's.

    Writes "+" to `ready`, or why it failed. Returns what to run.
    """
    step = "reading the program"
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.nice(10)  # the server must get its turn, however many processes the program makes
        body = memoryview(read_all(0, order.size))
        length = int.from_bytes(body[:4], "big")
        about: dict[str, Any] = json.loads(bytes(body[4 : 4 + length]))
        body = body[4 + length :]
        step = "making its folder"
        os.mkdir(WORK, 0o700)
        os.chdir(WORK)
        step = "writing its files"
        for name, size in about["files"]:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "wb") as file:
                file.write(body[:size])
            body = body[size:]
        stdin, out, err = streams
        if not order.talk:
            step = "writing its stdin"
            stdin = os.memfd_create("stdin")
            with open(stdin, "wb", closefd=False) as file:
                file.write(body)
            os.lseek(stdin, 0, os.SEEK_SET)
        step = "setting its limits"
        limit(order)
        for theirs, fd in enumerate((stdin, out, err)):
            os.dup2(fd, theirs)
        os.write(ready, b"+")
    except BaseException as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        os.write(ready, f"{step}: {why}".encode()[:200])
        os._exit(1)
    os.closerange(3, 1 << 20)
    return about


def limit(order: Order) -> None:
    cpu = max(1, int(order.cpu_seconds + 0.999))
    limits = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, order.file_bytes, order.file_bytes),
        (resource.RLIMIT_NOFILE, order.open_files, order.open_files),
    ]
    limits += [(resource.RLIMIT_AS, order.memory, order.memory)] if order.memory else []
    limits += [(resource.RLIMIT_NPROC, order.processes, order.processes)] if order.processes else []
    for kind, soft, hard in limits:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def read_all(fd: int, size: int) -> bytearray:
    content, have = bytearray(size), 0
    with memoryview(content) as view:
        while have < size:
            got = os.readv(fd, [view[have:]])
            if not got:
                os._exit(1)
            have += got
    return content


def open_streams() -> None:
    """As Python does for a UTF-8 locale. By the server, which never uses them: in each child it would take too long."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if fd == 2 else "surrogateescape"
        stream = open(fd, "w" if fd else "r", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        if fd == 2:
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_program(about: dict[str, Any]) -> None:
    """In the child, in place of the server: what `python main.py` would do, or exec."""
    os.environ.update(HOME=WORK, TMPDIR=WORK, PWD=WORK)
    if about["argv"]:
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvp(about["argv"][0], about["argv"])
        except (OSError, ValueError) as error:
            os.write(2, f"{about['argv'][0]}: {error}\n".encode(errors="replace"))
            os._exit(127)
    if "random" in sys.modules:
        sys.modules["random"].seed()
    main = types.ModuleType("__main__")
    main.__file__ = WORK + "/main.py"
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.argv, sys.path[0], sys.excepthook = ["main.py"], WORK, report
    code = 0
    try:
        with open("main.py", encoding="utf-8", errors="surrogatepass") as file:
            text = file.read()
        exec(compile(text, main.__file__, "exec"), main.__dict__)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finally:
        leave(main, code)


def leave(main: types.ModuleType, code: int) -> None:
    """End as the interpreter does, but let the kernel free the modules: touching them all would cost more than it."""
    for step in (threading._shutdown, atexit._run_exitfuncs, main.__dict__.clear, gc.collect):  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):
            step()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception as error:
            code = code or 120  # as Python says it
            with contextlib.suppress(OSError):
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(code & 0xFF)


def report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """As Python does it, less the frames of this file."""
    while trace and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)
