"""Control groups for bubblewrap's boxes, version 1 and 2: memory with swap, processes, processor time.

One group a box, made by the supervisor and read by it from outside. Where none can be made (not root, and nothing
delegated), `find` says why, and the backend falls back to limits a process.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sandbox.box import Counted
from sandbox.limits import PERIOD_MICROSECONDS, SERVER_BYTES
from sandbox.owner import is_gone, owner

ROOT = Path("/sys/fs/cgroup")
# One count for all pools of this process: they make their groups under the same parents.
_serials = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One box's group. `folders` by controller; one and the same under version 2."""

    folders: dict[str, Path]

    def add(self, pid: int) -> None:
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def counted(self) -> Counted:
        """Processes that were killed for this group's own memory limit, and forks that were refused."""
        memory = self.folders["memory"]
        if (memory / "memory.oom_control").exists():
            killed = _field(memory / "memory.oom_control", "oom_kill")
            # Some kernels leave memory.failcnt at 0, whatever happens.
            most, limit = (int((memory / f"memory.{name}_in_bytes").read_text()) for name in ("max_usage", "limit"))
            reached = int(most > limit - (1 << 20))
        else:
            killed, reached = (_field(memory / "memory.events", name) for name in ("oom_kill", "oom"))
        refused = _field(self.folders["pids"] / "pids.events", "max")
        # A machine that is out of memory kills here too, and that is not this program's doing.
        return Counted(oom=killed if reached else 0, refused=refused)

    def remove(self) -> bool:
        """Whether it is gone; a group is busy for a moment after its last process died."""
        for folder in set(self.folders.values()):
            with suppress(OSError):
                folder.rmdir()
        return not any(folder.exists() for folder in self.folders.values())


class Groups:
    """Makes groups under one parent a controller."""

    CONTROLLERS: ClassVar = ("memory", "pids", "cpu")

    def __init__(self, parents: dict[str, Path], version: int) -> None:
        self._parents, self.version = parents, version

    def make(self, memory_bytes: int, processes: int, cpus: float) -> Group:
        """Raises OSError."""
        serial = next(_serials)
        folders = {name: parent / f"{owner()}.{serial}" for name, parent in self._parents.items()}
        group = Group(folders=folders)
        try:
            for folder in set(folders.values()):
                folder.mkdir()
            memory, quota = str(memory_bytes + SERVER_BYTES), int(PERIOD_MICROSECONDS * cpus)
            if self.version == 1:
                _write(folders["memory"] / "memory.limit_in_bytes", memory)
                _write(folders["memory"] / "memory.memsw.limit_in_bytes", memory, optional=True)
                _write(folders["cpu"] / "cpu.cfs_period_us", str(PERIOD_MICROSECONDS))
                _write(folders["cpu"] / "cpu.cfs_quota_us", str(quota))
            else:
                _write(folders["memory"] / "memory.max", memory)
                _write(folders["memory"] / "memory.swap.max", "0", optional=True)
                _write(folders["cpu"] / "cpu.max", f"{quota} {PERIOD_MICROSECONDS}")
            _write(folders["pids"] / "pids.max", str(processes + 1))
        except OSError:
            group.remove()
            raise
        return group

    def sweep(self) -> None:
        """Remove the groups of supervisors that are gone."""
        for parent in set(self._parents.values()):
            for folder in parent.iterdir():
                if folder.is_dir() and is_gone(folder.name.rpartition(".")[0]):
                    with suppress(OSError):
                        folder.rmdir()


def find(root: Path = ROOT) -> Groups | str:
    """Where groups can be made here, or why not."""
    tried = []
    for version, parents in ((1, _version_1(root)), *((2, _version_2(path)) for path in _candidates(root))):
        try:
            for parent in set(parents.values()):
                if version == 2 and not (parent.parent / "cgroup.controllers").exists():
                    raise OSError(f"{parent.parent} is no control group of version 2")
                parent.mkdir(exist_ok=True)
            groups = Groups(parents, version)
            if version == 2:
                _delegate(parents["memory"])
            groups.sweep()
            trial = groups.make(1 << 30, 8, 1.0)
            trial.counted()
            trial.remove()
            return groups
        except (OSError, ValueError) as error:
            tried.append(str(error))
    return tried[-1]


def _version_1(root: Path) -> dict[str, Path]:
    return {name: root / name / "rlvr-sandbox" for name in Groups.CONTROLLERS}


def _version_2(parent: Path) -> dict[str, Path]:
    return dict.fromkeys(Groups.CONTROLLERS, parent / "rlvr-sandbox")


def _candidates(root: Path) -> list[Path]:
    """Of the one hierarchy: its root, then what may have been delegated to us, the highest first."""
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    parts = Path(own[0]).parts[1:] if own else ()
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _delegate(folder: Path) -> None:
    wanted = "+memory +pids +cpu"
    with suppress(OSError):  # has it already, or may not be written; the trial will tell
        (folder.parent / "cgroup.subtree_control").write_text(wanted)
    (folder / "cgroup.subtree_control").write_text(wanted)


def _write(path: Path, value: str, *, optional: bool = False) -> None:
    if optional and not path.exists():  # kernels without swap accounting
        return
    path.write_text(value)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    raise ValueError(f"{path} has no {name!r}")
