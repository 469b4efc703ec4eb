from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

# Owner -> engine core -> worker, as vLLM starts them; only the worker watches.
WORKER = (
    "from rlvr.inference.orphans import end_with_owner; import time; end_with_owner(); print('up', flush=True); "
    "time.sleep(60)"
)
CORE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}], start_new_session=True)"
HOST = (
    "from rlvr.inference.orphans import claim; import subprocess, sys; claim(); "
    "subprocess.run([sys.executable, '-c', {code!r}], start_new_session=True)"
)


@pytest.mark.parametrize(("code", "depth"), [(CORE, 2), (WORKER, 1)])
def test_nothing_of_an_engine_outlives_its_killed_host(code: str, depth: int) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST.format(code=code)], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    below = psutil.Process(host.pid).children(recursive=True)
    assert len(below) == depth
    host.kill()
    host.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive


def test_a_host_watches_not_itself() -> None:
    code = (
        "from rlvr.inference.orphans import claim, end_with_owner; import threading; claim(); end_with_owner(); "
        "assert threading.active_count() == 1"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
