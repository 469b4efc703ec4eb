from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify_records import ODD


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """An environment by its path, whose verifier does what the answer says."""
    (tmp_path / "odd_environment.py").write_text(ODD)
    return f"{tmp_path / 'odd_environment.py'}:Odd"
