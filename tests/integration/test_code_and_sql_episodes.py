"""code_sandbox and sql_database as a run plays them: the kit's promises, and whole episodes of several turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import environments
from rlvr.kit.checks import run
from rlvr.kit.scripted import ScriptedSampler, renderer, say
from rlvr.kit.subject import open_subject
from rlvr.plugins import make_environment
from rlvr.rollout.play import play
from rlvr.types import Budget, Episode, Task

pytestmark = pytest.mark.slow
HERE = Path(environments.__file__).parent
CODE = f"{HERE}/code_sandbox/environment.py:CodeSandbox"
SQL = f"{HERE}/sql_database/environment.py:SqlDatabase"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (CODE, {"levels": [1, 2, 3]}),
        (CODE, {"levels": [1, 2, 3], "max_attempts": 3}),
        (SQL, {"levels": [1, 2, 3, 4]}),
        (SQL, {"levels": [1, 2, 3, 4], "max_queries": 3}),
    ],
)
def test_every_promise_of_an_environment_is_kept(name: str, settings: dict[str, Any]) -> None:
    with open_subject(name, settings, num_tasks=10, seconds=60.0, max_turns=6) as subject:
        results = run(subject)
    assert {result.check.name: result.complaints for result in results if result.status != "passed"} == {}


async def episode(name: str, settings: dict[str, Any], says: Callable[[Task], list[str]], **limits: int) -> Episode:
    """The first training task, played with these answers."""
    environment = make_environment(name, settings)
    task = next(iter(environment.tasks("train")))
    return await play(
        dataclasses.replace(task, budget=Budget(seconds=60.0, **limits)),
        episode_id="one",
        environment=environment,
        sampler=ScriptedSampler(say(*says(task))),
        renderer=renderer(),
        max_model_len=1 << 16,
        temperature=1.0,
        seed=0,
    )


async def test_an_attempt_that_fails_is_told_why_and_the_next_may_pass() -> None:
    played = await episode(
        CODE, {"max_attempts": 3}, lambda task: ["def f(x: pass", task.reference["solution"]], turns=3
    )
    assert (played.stop, played.verdict.reward, len(played.turns)) == ("answered", 1.0, 2)
    assert "SyntaxError" in played.turns[0].reply.messages[0].content


async def test_attempts_that_all_fail_are_incorrect() -> None:
    played = await episode(CODE, {"max_attempts": 2}, lambda _: ["pass", "pass", "pass"], turns=9)
    assert (played.stop, played.verdict.reward, len(played.turns)) == ("answered", -1.0, 2)


CALL = '<tool_call>{"name": "run_query", "arguments": {"query": "SELECT 1"}}</tool_call>'


async def test_a_look_at_the_data_comes_before_the_answer() -> None:
    played = await episode(SQL, {"max_queries": 2}, lambda task: [CALL, CALL, task.reference["query"]], turns=3)
    assert (played.stop, played.verdict.reward, len(played.turns)) == ("answered", 1.0, 3)
    assert [message.role for turn in played.turns for message in turn.reply.messages] == ["tool", "tool"]


async def test_a_model_that_only_looks_is_incorrect() -> None:
    for limits in ({"turns": 2}, {"turns": 9, "tool_calls": 2}):
        played = await episode(SQL, {"max_queries": 2}, lambda _: [CALL] * 9, **limits)
        assert played.stop in ("turn_budget", "tool_call_budget")
        assert played.verdict.reward == -1.0
