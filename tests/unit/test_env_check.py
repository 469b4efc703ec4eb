"""The conformance kit passes what is sound, and names what is broken by the right check."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.kit.checks import CHECKS, Result, run
from rlvr.kit.subject import open_subject
from tests import broken_environments
from tests.broken_environments import ALSO, BROKEN

FILE = Path(broken_environments.__file__)


def check(name: str, *, seconds: float = 20.0) -> dict[str, Result]:
    with open_subject(f"{FILE}:{name}", {}, num_tasks=8, seconds=seconds, max_turns=5) as subject:
        return {result.check.name: result for result in run(subject)}


def failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result.status == "failed"}


def test_a_sound_environment_passes_every_check() -> None:
    results = check("Sum")
    assert {name: result.complaints for name, result in results.items() if result.status != "passed"} == {}
    assert list(results) == [one.name for one in CHECKS]


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_caught_by_its_own_check_and_by_no_other(name: str) -> None:
    kind = BROKEN[name]
    results = check(name, seconds=1.0 if kind.caught_by == "in_time" else 20.0)
    assert kind.caught_by in failed(results)
    complaints = {name: result.complaints for name, result in results.items() if result.status == "failed"}
    assert failed(results) - {kind.caught_by} <= ALSO.get(name, set()), complaints


def test_every_check_catches_something() -> None:
    assert {kind.caught_by for kind in BROKEN.values()} == {one.name for one in CHECKS}
