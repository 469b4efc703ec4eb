"""Runs programs one after the other (or in lanes beside each other), each with a time limit and a log.

    scripts/bench/suite.py FOLDER PLAN.toml

    [[job]]
    name = "learner-1.5b"            # FOLDER/learner-1.5b.log; its RESULT lines also go to FOLDER/results.jsonl
    command = "python scripts/bench/gpu_learner.py 1.5b 2048"
    seconds = 120                    # past it the job is ended, and the next one starts
    lane = "a"                       # jobs of one lane run in order, lanes beside each other
    gpus = "0"                       # CUDA_VISIBLE_DEVICES

A job that fails is written down and ends nothing else. The last lines say what became of each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any


def main() -> None:
    folder, plan = Path(sys.argv[1]), tomllib.loads(Path(sys.argv[2]).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    lanes: dict[str, list[dict[str, Any]]] = {}
    for job in plan["job"]:
        lanes.setdefault(job.get("lane", "a"), []).append(job)
    threads = [threading.Thread(target=run_lane, args=(folder, jobs)) for jobs in lanes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_lane(folder: Path, jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        started = time.monotonic()
        outcome = run(folder, job)
        print(f"{job['name']:32} {outcome:12} {time.monotonic() - started:6.1f} s", flush=True)


def run(folder: Path, job: dict[str, Any]) -> str:
    log = folder / f"{job['name']}.log"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": job.get("gpus", "0"), "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-c", job["command"]], stdout=stream, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(job["seconds"])
            outcome = "ok" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what the job left running, too
    with (folder / "results.jsonl").open("a") as results:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("RESULT "):
                results.write(line.removeprefix("RESULT ") + "\n")
                print(line, flush=True)
    return outcome


if __name__ == "__main__":
    main()
