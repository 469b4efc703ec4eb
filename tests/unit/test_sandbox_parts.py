"""The parts of the sandbox that need no box: the choice of a backend, names of owners, slots, the profile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import cgroups, inside
from sandbox.base import Program
from sandbox.bubblewrap import Bubblewrap
from sandbox.owner import is_gone, owner
from sandbox.pool import SandboxUnavailable, _Slots
from sandbox.seccomp import SeccompUnavailable, bpf, profile
from sandbox.shared import open_backend, shared_sandbox
from verifiers.code import CodeVerifier


def test_where_neither_backend_can_run_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sandbox.shared._pools", {})
    with pytest.raises(SandboxUnavailable, match=r"DOCKER_HOST.*apt-get install bubblewrap"):
        open_backend("auto")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        open_backend("docker")
    with pytest.raises(SandboxUnavailable, match="no sandbox can run here"):
        CodeVerifier("auto")


def test_there_is_no_third_way() -> None:
    with pytest.raises(SandboxUnavailable, match="auto, docker, bubblewrap"):
        open_backend("none")  # type: ignore[arg-type]


def test_auto_is_bubblewrap_where_no_engine_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert open_backend("auto").name == "bubblewrap"


@pytest.mark.docker
def test_auto_is_docker_where_an_engine_answers() -> None:
    assert open_backend("auto").name == "docker"


def test_a_process_has_one_pool_a_kind() -> None:
    assert shared_sandbox("bubblewrap") is shared_sandbox("bubblewrap")


def test_a_bubblewrap_that_cannot_make_boxes_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sandbox.bubblewrap.shutil.which", lambda *_, **__: str(fake))
    with pytest.raises(SandboxUnavailable, match=r"cannot make a box here|does not start"):
        Bubblewrap()


def test_an_owner_is_gone_when_its_process_is_and_not_before() -> None:
    assert not is_gone(owner())
    script = "from sandbox.owner import owner; print(owner())"
    name = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert is_gone(name)
    boot, namespace, pid, _ = owner().split("-")
    assert is_gone(f"{boot}-{namespace}-{pid}-1"), "the number is another process's by now"
    assert not is_gone(f"0-{namespace}-{pid}-1"), "of another machine nothing can be told"
    assert not is_gone(f"{boot}-1-{pid}-1"), "nor of another container"
    assert not is_gone("something else")


async def test_slots_are_given_in_the_order_of_asking_and_a_pair_is_not_overtaken() -> None:
    slots, order = _Slots(2), []

    async def use(name: str, number: int) -> None:
        async with slots.take(number):
            order.append(name)
            await asyncio.sleep(0.01)

    first = asyncio.ensure_future(use("first", 1))
    await asyncio.sleep(0)
    pair = asyncio.ensure_future(use("pair", 2))
    await asyncio.sleep(0)
    gives_up = asyncio.ensure_future(use("gives up", 2))
    later = [asyncio.ensure_future(use("later", 1)) for _ in range(3)]
    await asyncio.sleep(0)
    gives_up.cancel()
    await asyncio.wait_for(asyncio.gather(first, pair, *later), timeout=10)
    assert order == ["first", "pair", "later", "later", "later"]
    assert slots.taken == 0
    with pytest.raises(ValueError, match="raise max_boxes"):
        async with slots.take(3):
            pass


def test_the_profile_is_an_allow_list_and_bubblewraps_filter_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = json.loads(profile())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in rules["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    refused = {
        "ptrace",
        "unshare",
        "setns",
        "mount",
        "bpf",
        "io_uring_setup",
        "keyctl",
        "mq_open",
        "shmget",
        "pidfd_getfd",
    }
    assert not allowed & refused
    assert len(bpf()) % 8 == 0
    assert len(bpf()) > 8 * 200

    def missing(*_: object, **__: object) -> None:
        raise OSError("no such file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(SeccompUnavailable, match="apt-get install libseccomp2"):
        bpf.__wrapped__()


def test_what_runs_inside_is_one_text_with_the_standard_library_alone() -> None:
    compile(inside.text(), "box", "exec")
    assert inside.text().count("from __future__") == 1


def test_where_no_group_can_be_made_it_says_why(tmp_path: Path) -> None:
    assert isinstance(cgroups.find(tmp_path), str)


def test_pools_of_one_process_never_share_a_group(tmp_path: Path) -> None:
    parents = {name: tmp_path / name for name in cgroups.Groups.CONTROLLERS}
    for parent in parents.values():
        parent.mkdir()
    pools = [cgroups.Groups(parents, 1) for _ in range(2)]
    made = [pool.make(1 << 20, 8, 1.0) for _ in range(3) for pool in pools]
    assert len({folder for group in made for folder in group.folders.values()}) == 6 * len(parents)


def test_a_program_is_a_source_or_a_command() -> None:
    for both in ({}, {"source": "1", "argv": ("true",)}):
        with pytest.raises(ValueError, match="either"):
            Program(**both)
