"""The whole graft, real engine and all: acceptance rises, and what the policy says does not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.graft import GraftSettings, graft, prepare_process
from tests.coin import Coin, CoinSettings
from tests.unit.test_graft import write_source

pytestmark = pytest.mark.slow


def test_a_graft_raises_acceptance_and_leaves_greedy_output_as_it_was(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "llama")
    prepare_process()
    settings = GraftSettings(
        num_samples=256, max_tokens=32, epochs=4, samples_per_step=16, learning_rate=3e-3, num_measured=16
    )
    said: list[str] = []
    report = graft(source, tmp_path / "grafted", Coin(CoinSettings()), settings, said.append)
    assert report.num_identical == 16
    assert len(report.after.acceptance) == 2
    assert report.after.acceptance[0] > report.before.acceptance[0] + 0.05
    assert report.after.acceptance[0] >= report.after.acceptance[1]
    assert any("acceptance by position after training" in line for line in said)
