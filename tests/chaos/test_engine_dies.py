"""The engine is killed and started again in the middle of a load: no run hangs, none is the model's fault."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from rlvr.types import Message, Task
from sandbox.base import Limits, Program
from sandbox.docker import Docker, image_name
from sandbox.pool import Pool
from verifiers.code import CodeVerifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.docker,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("dockerd") is None,
        reason="an engine that may be killed needs root and dockerd",
    ),
]


class Engine:
    """A dockerd of our own, which may be killed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.address = f"unix://{home}/docker.sock"

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            options = [f"--data-root={self.home}/data", f"--exec-root={self.home}/exec", f"-H={self.address}"]
            options += [f"--pidfile={self.home}/dockerd.pid", "--storage-driver=overlay2", "--userland-proxy=false"]
            self.process = subprocess.Popen(
                ["unshare", "-n", "dockerd", *options], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                docker.DockerClient(self.address).ping()
                return
            except docker.errors.DockerException:
                assert time.monotonic() < deadline, (self.home / "log").read_text()[-2000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """With its containerd; the containers' shims live on, as they would."""
        self.process.kill()
        self.process.wait()
        self._end_containerd(signal.SIGKILL)
        (self.home / "dockerd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._end_containerd(signal.SIGTERM)
        time.sleep(0.5)
        for path in Path("/proc").glob("[0-9]*/cmdline"):  # shims of containers that were lost
            with suppress(OSError):
                if b"containerd-shim" in (line := path.read_bytes()) and os.fsencode(self.home) in line:
                    os.kill(int(path.parent.name), signal.SIGKILL)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(str(self.home))), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)

    def _end_containerd(self, number: int) -> None:
        path = self.home / "exec" / "containerd" / "containerd.pid"
        with suppress(OSError):
            os.kill(int(path.read_text()), number)
        path.unlink(missing_ok=True)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    image = b"".join(docker.from_env().api.get_image(image_name("python")))
    # pytest's own folders have names too long for a socket in them.
    with tempfile.TemporaryDirectory(prefix="rlvr-docker-", ignore_cleanup_errors=True) as home:
        engine = Engine(Path(home))
        try:
            engine.start()
            docker.DockerClient(engine.address).images.load(image)
            monkeypatch.setenv("DOCKER_HOST", engine.address)
            yield engine
        finally:
            engine.stop()


async def test_runs_in_flight_are_repeated_or_ours(engine: Engine) -> None:
    pool = Pool(Docker(), max_boxes=4)

    async def one(number: int) -> str:
        source = f"import time\ntime.sleep(0.2)\nprint({number})"
        execution = await pool.run(Program(source=source, limits=Limits(wall_seconds=20)))
        if execution.status == "finished":
            assert (execution.exit_code, execution.stdout) == (0, f"{number}\n".encode())
        return execution.status

    runs = [asyncio.ensure_future(one(number)) for number in range(60)]
    await asyncio.sleep(1.0)
    await asyncio.to_thread(engine.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(engine.start)
    statuses = await asyncio.wait_for(asyncio.gather(*runs), timeout=150)
    assert set(statuses) <= {"finished", "sandbox_failure"}
    assert statuses.count("finished") >= 40, "an engine that comes back is used again"
    assert await one(1) == "finished"
    await pool.close()


def test_no_verdict_on_right_code_is_incorrect(engine: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from sandbox.blocking import run_blocking

    async def make() -> Pool:
        return Pool(Docker(), max_boxes=4)

    pool = run_blocking(make())
    verifier = CodeVerifier(pool, Limits(wall_seconds=20))
    reference = {
        "entry_point": "add",
        "tests": "import time\nfor n in range(5):\n    time.sleep(0.1)\n    assert add(n, 1) == n + 1",
    }
    task = Task(id="code/train/0", environment="code", prompt=(), reference=reference)
    answer = [Message(role="assistant", content="def add(a, b): return a + b")]
    with ThreadPoolExecutor(8) as threads:
        verdicts = [threads.submit(verifier.verify, task, answer) for _ in range(24)]
        time.sleep(1.5)
        engine.kill()
        time.sleep(0.5)
        engine.start()
        outcomes = [verdict.result(timeout=150).outcome for verdict in verdicts]
    assert "incorrect" not in outcomes
    assert outcomes.count("correct") >= 12
    run_blocking(pool.close())
