"""Runs of the real stack on a tiny policy, as separate processes: `rlvr train` as a user would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = """
[run]
name = "run"
num_steps = 6
checkpoint_every = 2
deadline_seconds = 240
[policy]
path = "{policy}"
[[environments]]
name = "{coin}:Coin"
completion_tokens = 24
thinking_tokens = [8, "unlimited"]
[rollout]
groups_per_batch = 4
group_size = 4
[inference]
max_model_len = 128
max_num_seqs = 32
kv_cache_bytes = 67108864
[learner]
zero_stage = 0
micro_batch_tokens = 256
[eval]
num_tasks = 32
every = 3
num_tasks_during = 16
[ray]
address = "local"
"""


def write_config(folder: Path, policy: Path) -> Path:
    """A config file for a short run."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(policy=policy, coin=Path(__file__).parents[1] / "coin.py"))
    return config


class Run:
    """One `rlvr train` process; its output goes to a file beside the run folder."""

    def __init__(self, config: Path, folder: Path, *overrides: str, module: str = "rlvr.cli") -> None:
        self.folder = folder / "run"
        self.log = folder / "output.txt"
        command = [sys.executable, "-m", module, "train", str(config), f"run.folder={folder}", *overrides]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"COLUMNS": "200"},
            )

    def wait(self, seconds: float = 300) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {seconds} s:\n{self.output()}") from None

    def wait_for_step(self, step: int, seconds: float = 200) -> None:
        """Until metrics.jsonl holds that step."""
        deadline = time.monotonic() + seconds
        while self.last_step() < step:
            assert self.process.poll() is None, f"ended before step {step}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no step {step} after {seconds} s:\n{self.output()}"
            time.sleep(0.05)

    def last_step(self) -> int:
        steps = [line["step"] for line in self.metrics()] if (self.folder / "metrics.jsonl").exists() else []
        return max(steps, default=0)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def output(self) -> str:
        return self.log.read_text()

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of training steps."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "staleness/max" in line]

    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "ledger.jsonl").read_text().splitlines()]
