"""Who made a box: a name for this process that no other process ever has, and a look at whether its bearer lives.

A supervisor that is killed cannot clean up. Whatever it leaves (containers, control groups) carries its name, and the
next one removes what nobody owns any more.
"""

from __future__ import annotations

import os
from pathlib import Path


def _name(pid: int | str) -> str:
    """Boot, pid namespace, pid and start time. Raises OSError where there is no such process."""
    # The command's name stands in brackets and may hold anything; the 20th field after it is the start time.
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16]
    namespace = "".join(filter(str.isdigit, str(Path("/proc/self/ns/pid").readlink())))
    return f"{boot}-{namespace}-{os.getpid() if pid == 'self' else pid}-{started}"


def owner() -> str:
    """This process's name."""
    return _name("self")


def is_gone(name: str) -> bool:
    """Whether `name` belongs to a process of this machine that has ended. False for what cannot be told from here."""
    parts, mine = name.split("-"), owner().split("-")
    if len(parts) != 4 or parts[:2] != mine[:2]:
        return False
    try:
        return _name(parts[2]) != name
    except OSError:
        return True
