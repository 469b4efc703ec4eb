"""The seam of the sandboxes: one program in, what became of it out.

    Sandbox.run(Program) -> Execution

A backend decides `Status` from what it did and saw itself, never from what the program wrote or from its exit code:
a program that prints an engine's error, exits with 125 or kills itself has *finished*. Only `sandbox_failure` is ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, Protocol

Language = Literal["python", "cpp", "node"]  # what a box has installed; all have Python

Status = Literal[
    "finished",  # ended by itself, however: see `exit_code` and `signal`
    "wall_timeout",
    "out_of_memory",
    "too_many_processes",
    "output_limit",
    "sandbox_failure",  # ours: the program did not start, or its box was lost; `detail` says how
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use. `output_bytes` holds for stdout and stderr each, `cpu_seconds` and `open_files` for each
    process, `memory_bytes` for all of them together with their files, `processes` counts threads as well."""

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20
    output_bytes: int = 8 << 20
    open_files: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Either `source` (Python, run as the main program) or `argv`. `files` lie in its own working folder, by name.

    `stdin` is all the program can read there, unless somebody talks with it (`Sandbox.run`). `language` picks the box.
    """

    source: str | None = None
    argv: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    language: Language = "python"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if (self.source is None) == (not self.argv):
            raise ValueError("a program has either a Python source or an argv")
        for name in self.files:
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ValueError(f"file {name!r}: a name inside the program's folder is needed, without '..'")
        if self.source is not None and "main.py" in self.files:
            raise ValueError("file 'main.py': the source has that name; give another one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What became of a program. `exit_code` or `signal` is set when it ended by itself; both are its own doing.

    `stdout` and `stderr` are cut at the limit, and `stdout_cut`, `stderr_cut` say so. A backend that cannot measure
    `peak_memory_bytes` or `cpu_seconds` says 0.
    """

    status: Status
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_cut: bool = False
    stderr_cut: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    detail: str = ""


class Conversation(Protocol):
    """The stdin and stdout of a running program, line by line."""

    async def send(self, line: bytes) -> None:
        """Write one line; the newline is added. A program that no longer reads is not an error here."""
        ...

    async def receive(self) -> bytes:
        """The next line, without its newline; `b""` once the program is gone, or has written more than its limit."""
        ...


Talk = Callable[[Conversation], Awaitable[None]]


class Sandbox(Protocol):
    """Runs programs, each in a clean world that no other program sees or has seen."""

    async def run(self, program: Program, talk: Talk | None = None) -> Execution:
        """Run to the end. Never raises on what a program does; a run that is cancelled is gone within a second.

        With `talk`, stdin and stdout belong to it; the program is killed soon after it returns, and `stdout` is empty.
        `talk` is cancelled soon after the program is gone.

        A run whose box is lost is repeated, and is its program's own failure only when that ends one box after another
        while canaries live. A talk cannot be repeated here: it ends as `sandbox_failure`, and whoever talks repeats it.
        """
        ...

    async def run_together(self, *parts: tuple[Program, Talk]) -> list[Execution]:
        """Run programs that wait for each other: all start at once, when there is room for all."""
        ...

    async def healthy(self, program: Program) -> bool:
        """Whether a canary runs well in a fresh box like that of `program`, and fast enough to trust the clock."""
        ...
