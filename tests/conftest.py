"""Skips what this machine cannot run, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

# Before torch is imported: on shared cores, threads that spin while they wait cost a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_docker() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, timeout=20).returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, available, reason in (
        ("gpu", _has_gpu, "no CUDA GPU here"),
        ("docker", _has_docker, "no Docker engine answers here"),
    ):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
