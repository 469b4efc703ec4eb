"""Limits are checked before each call, in one order: seconds, turns, tool calls, tokens."""

from __future__ import annotations

import pytest

from rlvr.rollout.budget import Allowance, Spent, allowance
from rlvr.types import Budget, Stop

UNLIMITED = Budget(turns=None)


def test_an_unlimited_budget_ends_only_with_the_context() -> None:
    spent = Spent(thinking_tokens=10**6, completion_tokens=10**6, turns=10**6, tool_calls=10**6, seconds=1e9)
    assert allowance(UNLIMITED, spent, room=7) == Allowance(max_tokens=7, thinking_tokens=None)
    assert allowance(UNLIMITED, spent, room=1) == Allowance(max_tokens=1, thinking_tokens=None)
    assert allowance(UNLIMITED, spent, room=0) == "completion_budget"
    assert allowance(UNLIMITED, spent, room=-3) == "completion_budget"


@pytest.mark.parametrize(
    ("budget", "within", "past", "stop"),
    [
        (Budget(turns=None, seconds=2.0), Spent(seconds=1.99), Spent(seconds=2.0), "time_budget"),
        (Budget(turns=2), Spent(turns=1), Spent(turns=2), "turn_budget"),
        # After the last call that is allowed the model may still read what it brought.
        (Budget(turns=None, tool_calls=2), Spent(tool_calls=2), Spent(tool_calls=3), "tool_call_budget"),
        (Budget(turns=None, tool_calls=0), Spent(tool_calls=0), Spent(tool_calls=1), "tool_call_budget"),
        (
            Budget(turns=None, completion_tokens=9),
            Spent(completion_tokens=8),
            Spent(completion_tokens=9),
            "completion_budget",
        ),
    ],
)
def test_each_limit_stops_the_episode_exactly_when_it_is_used_up(
    budget: Budget, within: Spent, past: Spent, stop: Stop
) -> None:
    assert isinstance(allowance(budget, within, room=100), Allowance)
    assert allowance(budget, past, room=100) == stop


def test_limits_are_checked_in_the_order_that_is_written() -> None:
    spent = Spent(completion_tokens=1, turns=1, tool_calls=2, seconds=1.0)
    budgets: list[tuple[Budget, Stop]] = [
        (Budget(seconds=1.0, turns=1, tool_calls=1, completion_tokens=1), "time_budget"),
        (Budget(seconds=None, turns=1, tool_calls=1, completion_tokens=1), "turn_budget"),
        (Budget(seconds=None, turns=None, tool_calls=1, completion_tokens=1), "tool_call_budget"),
        (Budget(seconds=None, turns=None, tool_calls=None, completion_tokens=1), "completion_budget"),
    ]
    assert [allowance(budget, spent, room=100) for budget, _ in budgets] == [stop for _, stop in budgets]


@pytest.mark.parametrize(("room", "max_tokens"), [(100, 6), (6, 6), (5, 5), (1, 1)])
def test_a_call_gets_what_is_left_of_the_budget_and_of_the_context(room: int, max_tokens: int) -> None:
    budget = Budget(completion_tokens=10)
    granted = allowance(budget, Spent(completion_tokens=4), room=room)
    assert granted == Allowance(max_tokens=max_tokens, thinking_tokens=None)


@pytest.mark.parametrize(("used", "left"), [(0, 5), (4, 1), (5, 0), (9, 0)])
def test_a_thinking_budget_that_is_used_up_allows_no_thought_but_stops_nothing(used: int, left: int) -> None:
    granted = allowance(Budget(thinking_tokens=5), Spent(thinking_tokens=used), room=100)
    assert granted == Allowance(max_tokens=100, thinking_tokens=left)
