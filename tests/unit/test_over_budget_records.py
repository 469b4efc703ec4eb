"""A verdict that no verifier was asked for is not asked of one offline either."""

from __future__ import annotations

import dataclasses

import pytest

from rlvr.types import Budget, Stop, to_json_line
from tests.fakes import make_episode
from verifiers.records import parse


@pytest.mark.parametrize(
    ("over_budget", "stop", "final"),
    [
        ("incorrect", "turn_budget", True),
        ("incorrect", "tool_call_budget", True),
        ("incorrect", "completion_budget", True),
        ("incorrect", "answered", False),
        ("judge", "turn_budget", False),
    ],
)
def test_over_budget_episodes_keep_the_verdict_of_their_budget(over_budget: str, stop: Stop, final: bool) -> None:
    episode = make_episode("incorrect", stop=stop)
    budget = Budget(over_budget=over_budget)  # type: ignore[arg-type]
    episode = dataclasses.replace(episode, task=dataclasses.replace(episode.task, budget=budget))
    record = parse(to_json_line(episode).encode())
    assert record.final == (episode.verdict if final else None)
