from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.types import Message, Reply, Task, Verdict
from verifiers.world import WorldVerifier, applied, changes


class Counters:
    """Messages are "NAME AMOUNT"; "stop" ends it, "steal" is forbidden, "crash" is a fault of the world."""

    def __init__(self, reference: dict[str, Any]) -> None:
        self._counts = {name: {"n": n, "last": ""} for name, n in reference["counts"].items()}
        self._broken: list[str] = []

    def answer(self, message: Message) -> Reply:
        name, _, amount = message.content.partition(" ")
        if name == "stop":
            return Reply(done=True)
        if name == "crash":
            raise RuntimeError("the world broke")
        if name == "steal":
            self._broken.append("something was stolen")
        if name in self._counts:
            self._counts[name] = {"n": int(self._counts[name]["n"]) + int(amount), "last": message.content}
        return Reply(messages=(Message(role="tool", content=f"heard {message.content}"),), done=False)

    def state(self) -> Any:
        return dict(self._counts)

    def broken_rules(self) -> Sequence[str]:
        return self._broken


PROMPT = (Message(role="user", content="a 1"), Message(role="assistant", content="a 1"))
VERIFIER = WorldVerifier("counters", Counters, [Path(__file__)])
REFERENCE = {"counts": {"a": 0, "b": 0}, "states": [{"a": {"n": 2}}, {"a": {"n": 3}}], "ignore": ["*.last"]}


def say(*contents: str) -> list[Message]:
    return [Message(role="assistant", content=content) for content in contents]


def judge(said: Sequence[Message], reference: dict[str, Any] | None = None) -> Verdict:
    task = Task(id="c/train/0", environment="c", prompt=PROMPT, reference=reference or REFERENCE)
    return VERIFIER.verify(task, [*PROMPT, *said])


def test_each_accepted_end_state_is_right_and_ignored_fields_do_not_count() -> None:
    assert judge(say("a 2")).outcome == "correct"
    assert judge(say("a 1", "hello", "a 2")).outcome == "correct"
    verdict = judge(say("a 1"))
    assert (verdict.outcome, verdict.reward) == ("incorrect", -1.0)
    assert verdict.reason == "state.a.n is '1', expected '2'"
    assert verdict.checks == {"answered": True, "rules": True, "state": False}
    assert judge(say("a 2", "b 1")).outcome == "incorrect"


def test_a_broken_rule_is_not_made_good_by_the_end_state() -> None:
    verdict = judge(say("a 2", "steal"))
    assert (verdict.outcome, verdict.reason) == ("incorrect", "something was stolen")
    assert verdict.checks == {"answered": True, "rules": False, "state": True}


def test_what_comes_after_the_end_does_not_count() -> None:
    assert judge(say("a 2", "stop", "a 9", "steal", "crash")).outcome == "correct"
    assert judge(say("stop", "a 2")).outcome == "incorrect"


def test_only_the_assistants_own_messages_of_the_episode_count() -> None:
    assert judge([]).reason == "no answer"
    assert judge([Message(role="user", content="a 2")]).reason == "no answer"
    assert judge([Message(role="assistant", content="hello", thinking="a 2")]).outcome == "incorrect"


def test_answers_that_this_world_did_not_give_make_the_verdict_invalid() -> None:
    [first, second] = say("a 1", "a 1")
    true, false = (Message(role="tool", content=text) for text in ("heard a 1", "heard b 1"))
    assert judge([first, true, second, true]).outcome == "correct"
    assert judge([first, true, second]).outcome == "correct"
    assert judge([first, false, second]).outcome == "invalid"
    assert judge([first, true, true, second]).outcome == "invalid"


@pytest.mark.parametrize("reference", [{"counts": {}}, {"states": [{}]}, {"counts": {"a": 0}, "states": []}, {}])
def test_a_reference_that_cannot_be_judged_by_is_invalid(reference: dict[str, Any]) -> None:
    task = Task(id="c/train/0", environment="c", prompt=(), reference=reference)
    assert VERIFIER.verify(task, say("a 2")).outcome == "invalid"


def test_a_world_that_raises_is_our_fault_and_named() -> None:
    verdict = judge(say("crash"))
    assert (verdict.outcome, verdict.reward) == ("invalid", None)
    assert "the world broke" in verdict.reason


def test_the_version_is_of_the_worlds_code() -> None:
    other = WorldVerifier("counters", Counters, [Path(__file__).with_name("test_types.py")])
    assert other.version != VERIFIER.version == WorldVerifier("counters", Counters, [Path(__file__)]).version


def test_the_explanation_is_the_conversation_and_never_raises() -> None:
    task = Task(id="c/train/0", environment="c", prompt=PROMPT, reference=REFERENCE)
    lines = list(VERIFIER.explain(task, [*PROMPT, *say("a 2", "steal", "crash")]))
    assert lines == [
        "    assistant: a 2",
        "    tool: heard a 2",
        "    assistant: steal",
        "    tool: heard steal",
        "    the world failed: RuntimeError('the world broke')",
    ]


STATES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.sampled_from(["", "x"])),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 2)),
    max_leaves=8,
)


@given(STATES, STATES)
def test_changes_applied_to_the_start_are_the_end(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = changes(before, after)
    assert applied(before, found) == after
    assert (found == {}) is (before == after)
