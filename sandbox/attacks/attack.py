"""What an attack is: programs that run one after another in one box, and how they must end when the sandbox holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.base import Limits, Status
from sandbox.inside.program import WORK

# An attack says "BROKEN ..." when it got through, and "tried" at its end: one that crashed has shown nothing.
PRELUDE = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
def broken(what):
    os.write(2, f"BROKEN {what}\\n".encode())
def refused(what, call, *args, **kwargs):
    try:
        result = call(*args, **kwargs)
    except (OSError, ValueError, ImportError, OverflowError):
        return
    broken(f"{what} gave {result!r:.60}")
def refused_call(what, x86, arm, *args):
    if libc.syscall(x86 if X86 else arm, *args) != -1:
        broken(what)
def tried():
    os.write(2, b"tried\\n")
"""
OWN = (WORK, f"{WORK}/main.py")
LOOK = (
    f"{PRELUDE}\nown = {OWN!r}"
    + """
others = [name for name in os.listdir("/proc") if name.isdigit() and name not in ("1", str(os.getpid()))]
if others: broken(f"processes {others} are there")
left = [os.path.join(where, name) for where, folders, files in os.walk("/tmp") for name in folders + files]
if set(left) - set(own): broken(f"files {left} are there")
tried()
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """`programs` run in turn; the last must say that it tried, unless it ends otherwise than by itself.

    `statuses` are how the first may end; `needs` is the guarantee it is about (`sandbox.pool.Guarantee`), where a
    machine may lack it. `exceptions` tells, by backend, why it gets through there, and why that is borne.
    """

    name: str
    programs: tuple[str, ...]
    statuses: tuple[Status, ...] = ("finished",)
    stdin: bytes = b""
    limits: Limits = field(default_factory=lambda: Limits(wall_seconds=8.0, memory_bytes=128 << 20, processes=16))
    needs: str = ""
    exceptions: dict[str, str] = field(default_factory=dict)


def attack(name: str, *bodies: str, statuses: tuple[Status, ...] = ("finished",), **rest: object) -> Attack:
    """With the prelude before, and "tried" after, each program."""
    programs = tuple(body if body.startswith(PRELUDE) else f"{PRELUDE}\n{body.strip()}\ntried()\n" for body in bodies)
    return Attack(name=name, programs=programs, statuses=statuses, **rest)  # type: ignore[arg-type]
