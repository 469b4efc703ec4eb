"""What a third party does, command by command: a new environment ends up in a training run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import write_config
from tests.tiny import write_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "fifth_environment"


@pytest.mark.slow
def test_a_new_environment_is_installed_checked_and_trained_on(tmp_path: Path) -> None:
    # Beside tosses of a coin, which the tiny policy can learn from at once.
    config = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    config.write_text(config.read_text().replace("max_model_len = 128", "max_model_len = 256"))
    done = subprocess.run([SCRIPT, sys.executable, config, "coin"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 passed, 0 failed" in done.stdout
    assert re.search(r"letter_count +reward by step: [+-]\d", done.stdout)
