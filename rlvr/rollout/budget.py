"""What is left of an episode's budget. Checked before each turn, in this order: seconds, turns, tool calls, tokens.

Within a turn `rlvr.rollout.completion` keeps thoughts to what is left of theirs, and the answer's tokens free.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvr.types import Budget, Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What an episode has used so far."""

    thinking_tokens: int = 0
    completion_tokens: int = 0
    turns: int = 0
    tool_calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What the next turn may use. `max_tokens` is at least 1; thoughts leave `answer_tokens` of them to the answer."""

    max_tokens: int
    thinking_tokens: int | None
    answer_tokens: int = 0


def allowance(budget: Budget, spent: Spent, *, room: int) -> Allowance | Stop:
    """The next turn's limits, or why there is no next turn. `room` is what the engine's context has left, in tokens."""
    if budget.seconds is not None and spent.seconds >= budget.seconds:
        return "time_budget"
    if budget.turns is not None and spent.turns >= budget.turns:
        return "turn_budget"
    if budget.tool_calls is not None and spent.tool_calls > budget.tool_calls:
        return "tool_call_budget"
    left = room if budget.completion_tokens is None else min(room, budget.completion_tokens - spent.completion_tokens)
    if left < 1:
        return "completion_budget"
    thinking = None if budget.thinking_tokens is None else max(0, budget.thinking_tokens - spent.thinking_tokens)
    return Allowance(max_tokens=left, thinking_tokens=thinking, answer_tokens=budget.answer_tokens)
