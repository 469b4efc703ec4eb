"""Every ticket is settled once: trained on, or dropped with a reason; and the file tells of the weights that exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvr.ledger import Ledger, audit
from tests.fakes import make_ticket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.jsonl"


def test_one_line_a_ticket_says_what_became_of_it(path: Path) -> None:
    ledger = Ledger(path)
    ledger.trained(make_ticket(0), step=3)
    ledger.drop(make_ticket(1), "zero_spread")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"ticket": 0, "task": "e/train/0", "fate": "trained", "step": 3},
        {"ticket": 1, "task": "e/train/1", "fate": "dropped", "reason": "zero_spread"},
    ], "before anybody closes it"
    ledger.close()
    assert audit(path) == []


def test_a_resumed_ledger_is_cut_back_to_the_checkpoint_and_goes_on_from_there(path: Path) -> None:
    first = Ledger(path)
    first.trained(make_ticket(0), step=1)
    first.drop(make_ticket(1), "invalid")
    length = first.length
    assert length == path.stat().st_size
    first.trained(make_ticket(2), step=2)
    first.close()

    second = Ledger(path, length=length)
    assert second.length == length == path.stat().st_size, "a checkpoint right after a resume remembers the cut"
    assert (second.num_trained, second.dropped) == (1, {"invalid": 1}), "counts go on"
    second.drop(make_ticket(2), "zero_spread")
    assert second.length == path.stat().st_size
    second.close()
    assert audit(path) == []
    assert [json.loads(line)["fate"] for line in path.read_text().splitlines()] == ["trained", "dropped", "dropped"]


def test_a_fresh_run_does_not_inherit_lines_of_a_run_without_a_checkpoint(path: Path) -> None:
    first = Ledger(path)
    first.trained(make_ticket(0), step=1)
    first.close()
    second = Ledger(path)
    assert (second.length, second.num_trained) == (0, 0)
    second.close()
    assert path.read_bytes() == b""


def test_the_counts_tell_reasons_apart(path: Path) -> None:
    ledger = Ledger(path)
    for number, reason in enumerate(["invalid", "zero_spread", "zero_spread"]):
        ledger.drop(make_ticket(number), reason)
    ledger.trained(make_ticket(3), step=1)
    ledger.close()
    assert ledger.dropped == {"invalid": 1, "zero_spread": 2}
    assert ledger.num_trained == 1


def test_the_audit_finds_tickets_that_are_settled_twice_or_nowhere_or_dropped_without_a_reason(path: Path) -> None:
    ledger = Ledger(path)
    ledger.trained(make_ticket(0), step=1)
    ledger.trained(make_ticket(0), step=2)
    ledger.drop(make_ticket(3), "")
    ledger.trained(make_ticket(4), step=2)
    ledger.drop(make_ticket(4), "invalid")
    ledger.close()
    assert sorted(audit(path)) == [
        "ticket 0 is settled 2 times",
        "ticket 1 is settled nowhere",
        "ticket 2 is settled nowhere",
        "ticket 3 was dropped without a reason",
        "ticket 4 is settled 2 times",
    ]


def test_tickets_may_be_settled_in_any_order(path: Path) -> None:
    ledger = Ledger(path)
    for number in (2, 0, 1):
        ledger.trained(make_ticket(number), step=1)
    ledger.close()
    assert audit(path) == []
