"""What a third party does, command by command: a new environment ends up in a training run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "fifth_environment"


@pytest.mark.slow
def test_a_new_environment_is_installed_checked_and_trained_on() -> None:
    done = subprocess.run([SCRIPT, sys.executable], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 passed, 0 failed" in done.stdout
    assert re.search(r"letter_count +reward by step: [+-]\d", done.stdout)
