"""Skips what this machine cannot run, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: on shared cores, threads that spin while they wait cost a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray gives its workers a low priority, and a run's engine starved beside whatever the other file's tests computed.
os.environ.setdefault("RAY_worker_niceness", "0")

# A busy machine is no test's fault. The rest is as Hypothesis has it here, and in CI.
settings.register_profile("rlvr", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rlvr")


@pytest.fixture(scope="module", autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """What a file's tests set for engines in this process is not for the runs that the next file starts."""
    with patch.dict(os.environ):
        yield


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@cache
def _lacking_docker() -> str:
    """Why the Docker sandbox cannot be tested here, if so."""
    from sandbox.docker import Docker
    from sandbox.pool import SandboxUnavailable

    try:
        Docker()
    except SandboxUnavailable as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, lacking in (
        ("gpu", lambda: "" if _has_gpu() else "no CUDA GPU here"),
        ("docker", _lacking_docker),
    ):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := lacking()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped sandbox must not look like a tested one."""
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if "docker" in getattr(report, "keywords", ())
    ]
    if skipped:
        terminalreporter.section("NOT TESTED: the Docker sandbox", "!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped: {_lacking_docker()}")
        terminalreporter.line("scripts/with-docker-engine scripts/test -m docker    starts an engine, where it may")
