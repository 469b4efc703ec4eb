"""A real PostgreSQL server of a test's own: in a temporary folder, on a unix socket, stopped at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Where Debian puts what it does not put into the path.
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def find(program: str) -> str | None:
    """The path of one of PostgreSQL's programs; `None` where it is not installed."""
    return shutil.which(program) or next((str(p / program) for p in _PLACES if (p / program).exists()), None)


@contextmanager
def server() -> Iterator[str]:
    """The DSN of its superuser. The server refuses to run as root, so it then runs as `nobody`."""
    initdb, pg_ctl = find("initdb"), find("pg_ctl")
    assert initdb is not None
    assert pg_ctl is not None
    pg_ctl = str(Path(initdb).resolve().with_name("pg_ctl"))
    as_user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="rlvr-postgres-", dir="/tmp"))  # a socket's path is short
    data = folder / "data"
    try:
        if as_user:
            shutil.chown(folder, "nobody", "nogroup")

        def run(*command: str) -> None:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=120, cwd="/", env={"LC_ALL": "C"}, **as_user
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c fsync=off -c max_connections=40 -k {folder}"
        run(pg_ctl, "-D", str(data), "-w", "-t", "60", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"host={folder} user=postgres dbname=postgres"
        finally:
            run(pg_ctl, "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
