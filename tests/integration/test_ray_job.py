"""The README's way to a cluster: `ray start --head`, `ray job submit --working-dir . -- rlvr train ...`."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr.ledger import audit
from tests.integration.runs import write_config
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
# None is Ray's default: another Ray of this machine would have it, and this one's jobs no agent to start them.
PORT, DASHBOARD_PORT, AGENT_PORT, AGENT_GRPC_PORT = 46379, 48265, 48266, 48267


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"127.0.0.1:{PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}",
    }


def ray(environment: dict[str, str], *arguments: str, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while True:
        command = [BIN / "ray", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        # Ray answers before the part of it that starts jobs does.
        if "No available agent to submit job, please try again" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    starting = {name: value for name, value in environment.items() if "ADDRESS" not in name}
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={PORT}"]
    command += [f"--dashboard-port={DASHBOARD_PORT}", "--include-dashboard=true"]
    command += [f"--dashboard-agent-listen-port={AGENT_PORT}", f"--dashboard-agent-grpc-port={AGENT_GRPC_PORT}"]
    head = subprocess.Popen(command, env=starting)
    try:
        deadline = time.monotonic() + 240
        while True:
            if head.poll() is not None:  # a part of Ray took longer to start than Ray waits for it
                head = subprocess.Popen(command, env=starting)
            listed = subprocess.run([BIN / "ray", "job", "list"], env=environment, capture_output=True, text=True)
            if listed.returncode == 0:
                break
            assert time.monotonic() < deadline, f"no answer from Ray's job server: {listed.stdout}{listed.stderr}"
            time.sleep(1)
        yield environment
    finally:
        head.terminate()
        head.wait(60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    # Joining the running cluster is the default.
    config.write_text(config.read_text().replace('address = "local"', 'address = "auto"'))
    return config


def submit(cluster: dict[str, str], config: Path, *overrides: str, wait: bool) -> str:
    runtime = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    command = ["job", "submit", "--working-dir", str(config.parent), "--runtime-env-json", runtime]
    command += [] if wait else ["--no-wait"]
    folder = f"run.folder={config.parent}"
    return ray(cluster, *command, "--", "rlvr", "train", config.name, folder, *overrides, seconds=400)


def test_a_stopped_job_leaves_a_checkpoint_from_which_the_next_trains_to_its_end_and_shows_its_log(
    cluster: dict[str, str], config: Path
) -> None:
    started = submit(cluster, config, "run.num_steps=100000", "run.checkpoint_every=100000", wait=False)
    found = re.search(r"raysubmit_\w+", started)
    assert found, started
    metrics = config.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not metrics.exists() or metrics.stat().st_size == 0:
        assert time.monotonic() < deadline, ray(cluster, "job", "logs", found[0])
        time.sleep(0.2)
    ray(cluster, "job", "stop", found[0])
    assert "SIGTERM: ending the step" in ray(cluster, "job", "logs", found[0])
    (checkpoint,) = (config.parent / "run" / "checkpoints").glob("step-??????")
    assert (checkpoint / "run.json").exists()

    last = int(checkpoint.name.removeprefix("step-")) + 3
    log = submit(cluster, config, f"run.num_steps={last}", wait=True)
    assert f"resumed from {checkpoint}" in log
    assert f"step {last}/{last}" in log
    assert "succeeded" in log
    assert audit(config.parent / "run" / "ledger.jsonl") == []
