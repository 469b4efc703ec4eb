"""Attacks the sandbox on the machine at hand, and prints what held.

    python -m sandbox.self_check --backend bubblewrap

Exit code 0: every attack was held, or is a documented exception; 1: something got through; 2: no sandbox runs here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.attacks import ATTACKS, Attack
from sandbox.attacks.escapes import HOST_SECRET
from sandbox.base import Program
from sandbox.pool import Pool, SandboxUnavailable
from sandbox.shared import Kind, open_sandbox


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.self_check", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=["auto", "docker", "bubblewrap"], default="auto")
    parser.add_argument("--only", default="", help="a part of the attacks' names")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(check(options.backend, options.only))
    except SandboxUnavailable as error:
        print(error, file=sys.stderr)
        return 2


async def check(kind: Kind, only: str = "") -> int:
    """Run the attacks and print the table."""
    pool = open_sandbox(kind, max_boxes=1)
    print(f"{pool.backend.name} on {os.uname().sysname} {os.uname().release} ({os.uname().machine})\n")
    lacking = {}
    for guarantee in pool.backend.guarantees():
        print(f"{'kept' if guarantee.kept else 'NOT kept':10}{guarantee.name} ({guarantee.how})")
        if not guarantee.kept:
            lacking[guarantee.name] = guarantee.how
    print()
    broken = 0
    try:
        with bait():
            for attack in ATTACKS:
                if only not in attack.name:
                    continue
                problem = await attempt(pool, attack)
                if not problem:
                    word, why = "held", ""
                elif pool.backend.name in attack.exceptions or attack.needs in lacking:
                    word, why = "exception", attack.exceptions.get(pool.backend.name, lacking.get(attack.needs, ""))
                else:
                    word, why, broken = "BROKEN", problem, broken + 1
                print(f"{word:10}{attack.name}{': ' + why if why else ''}", flush=True)
    finally:
        await pool.close()
    print(f"\n{'all attacks are held, but for the exceptions' if not broken else f'{broken} attacks got through'}")
    return 1 if broken else 0


@contextmanager
def bait() -> Iterator[None]:
    """What the attacks look for on the host: files, a variable, a socket that listens."""
    variable = HOST_SECRET.replace("-", "_").upper()
    secrets = [Path(folder) / HOST_SECRET for folder in ("/tmp", "/var/tmp", "/dev/shm", str(Path.home()))]
    with socket.socket(socket.AF_UNIX) as listener:
        with suppress(OSError):  # another check is running, and its socket serves
            listener.bind(f"\0{HOST_SECRET}")
            listener.listen()
        os.environ[variable] = "1"
        for secret in secrets:
            secret.touch()
        try:
            yield
        finally:
            os.environ.pop(variable, None)
            for secret in secrets:
                secret.unlink(missing_ok=True)


async def attempt(pool: Pool, attack: Attack) -> str:
    """Run one attack; what got through, or an empty text."""
    for number, source in enumerate(attack.programs):
        program = Program(source=source, stdin=attack.stdin if number == 0 else b"", limits=attack.limits)
        execution = await pool.run(program)
        allowed = attack.statuses if number == 0 else ("finished",)
        said = execution.stderr.decode(errors="replace")
        if execution.status not in allowed or (execution.status == "finished" and execution.detail):
            return f"program {number + 1} ended as {execution.status} {execution.detail} {said[-300:]}".strip()
        if found := re.findall(r"^BROKEN (.*)", said, re.MULTILINE):
            return "; ".join(found[:5])
        ended_itself = execution.signal is None and execution.exit_code == 0
        if execution.status == "finished" and "tried" not in said and (number or ended_itself or "Traceback" in said):
            return f"program {number + 1} did not get to its end: {said[-300:]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
