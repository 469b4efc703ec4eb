"""Every attack is held on both backends; and each would get through, were its defence missing."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable

import pytest

from sandbox.attacks import ATTACKS
from sandbox.bubblewrap import Bubblewrap
from sandbox.pool import Pool
from sandbox.self_check import attempt, bait
from sandbox.shared import Kind, open_sandbox

pytestmark = pytest.mark.slow
BACKENDS = ["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("kind", BACKENDS)
async def test_every_attack_is_held_or_a_documented_exception(kind: Kind) -> None:
    pool = open_sandbox(kind, max_boxes=1)
    lacking = {each.name for each in pool.backend.guarantees() if not each.kept}
    with bait():
        problems = {attack.name: await attempt(pool, attack) for attack in ATTACKS}
    await pool.close()
    documented = {each.name for each in ATTACKS if kind in each.exceptions or each.needs in lacking}
    assert {name: problem for name, problem in problems.items() if problem and name not in documented} == {}


Weaken = Callable[[list[str]], list[str]]


def without(*options: str) -> Weaken:
    return lambda argv: [word for word in argv if word not in options]


def with_text(old: str, new: str) -> Weaken:
    def change(argv: list[str]) -> list[str]:
        assert argv[-1].count(old) == 1, old
        return [*argv[:-1], argv[-1].replace(old, new)]

    return change


def with_host_files(argv: list[str]) -> list[str]:
    at = argv.index("/usr")
    return [*argv[: at + 2], "--ro-bind", "/etc", "/etc", *argv[at + 2 :]]


@pytest.mark.parametrize(
    ("weaken", "name"),
    [
        (without("--unshare-net"), "network: the host's abstract Unix sockets"),
        (without("--clearenv"), "environment"),
        (with_host_files, "host files"),
        (without("--unshare-uts", "--hostname", "box"), "host processes"),
        (with_text("prctl(4, 0, 0, 0, 0)", "prctl(4, 1, 0, 0, 0)"), "/proc"),
        (
            with_text(
                "passed = min(size", "self.kept = [bytes(self.outbox), *getattr(self, 'kept', ())]; passed = min(size"
            ),
            "memory of an earlier run",
        ),
        (with_text("os.closerange(3, 1 << 20)", "pass"), "file descriptors"),
        (with_text("        limit(order)\n", ""), "open files"),
        (with_text("        limit(order)\n", ""), "file size"),
        # Python has the handler by itself only where the signal is not ignored, as it is in a shell's background.
        (
            with_text("SIGINT, signal.SIG_DFL)\n    for", "SIGINT, signal.default_int_handler)\n    for"),
            "signals to the fork server",
        ),
    ],
)
async def test_without_its_defence_an_attack_gets_through(weaken: Weaken, name: str) -> None:
    class Weak(Bubblewrap):
        def _argv(self) -> list[str]:
            return weaken(super()._argv())

    assert await problem(Weak(), name) != ""


@pytest.mark.parametrize(
    "name",
    [
        "network: IPv4, IPv6, raw, packet, netlink",
        "keys, bpf, io_uring and their like",
        "namespaces, mounts, roots",
        "limits and priority of the fork server",
    ],
)
async def test_without_the_seccomp_filter_an_attack_gets_through(name: str) -> None:
    backend = Bubblewrap()
    backend._filter = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    assert await problem(backend, name) != ""


async def problem(backend: Bubblewrap, name: str) -> str:
    pool = Pool(backend, max_boxes=1)
    with bait():
        found = await attempt(pool, next(each for each in ATTACKS if each.name == name))
    await pool.close()
    return found


@pytest.mark.parametrize("kind", BACKENDS)
async def test_it_is_a_command_that_prints_a_table(kind: Kind) -> None:
    argv = (sys.executable, "-m", "sandbox.self_check", "--backend", kind, "--only", "killed by")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"held      killed by itself" in out
