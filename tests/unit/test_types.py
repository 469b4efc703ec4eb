"""One JSON line is one value and reads back equal; values that contradict themselves cannot be made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlvr.types import (
    Budget,
    Completion,
    Episode,
    Group,
    Message,
    Reply,
    Task,
    Turn,
    Verdict,
    WeightSpan,
    episode_from_json,
    from_json,
    to_json_line,
)
from tests.fakes import make_completion, make_episode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
budgets = st.builds(
    Budget,
    thinking_tokens=st.none() | st.integers(0, 9),
    completion_tokens=st.none() | st.integers(1, 9),
    turns=st.none() | st.integers(1, 9),
    tool_calls=st.none() | st.integers(0, 9),
    seconds=st.none() | st.floats(0, 1e6),
)
messages = st.builds(
    Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=texts, thinking=texts
)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    count = draw(st.integers(0, 5))
    entries = {"min_size": count, "max_size": count}
    return Completion(
        token_ids=tuple(draw(st.lists(st.integers(0, 2**31), **entries))),
        logprobs=tuple(draw(st.lists(st.floats(-1e4, 0), **entries))),
        loss_mask=tuple(draw(st.lists(st.integers(0, 1), **entries))),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        weight_spans=tuple(draw(st.lists(st.builds(WeightSpan, *[st.integers(0, 99)] * 3), max_size=3))),
        num_draft_tokens=draw(st.integers(0, 9)),
        num_accepted_tokens=draw(st.integers(0, 9)),
    )


episodes = st.builds(
    Episode,
    id=texts,
    task=st.builds(
        Task,
        id=texts,
        environment=texts,
        prompt=st.lists(messages, max_size=2).map(tuple),
        reference=st.dictionaries(texts, plain_json, max_size=3),
        budget=budgets,
        seed=st.integers(0, 2**63 - 1),
    ),
    turns=st.lists(
        st.builds(
            Turn,
            prompt_ids=st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
            completion=completions(),
            message=messages,
            reply=st.builds(Reply, messages=st.lists(messages, max_size=2).map(tuple), done=st.booleans()),
        ),
        max_size=2,
    ).map(tuple),
    stop=st.sampled_from(["answered", "completion_budget", "turn_budget", "tool_call_budget", "time_budget", "error"]),
    verdict=st.sampled_from([("correct", 1.0), ("incorrect", -1.0), ("invalid", None)]).map(
        lambda pair: Verdict(
            outcome=pair[0], reward=pair[1], reason="r\nn", checks={"a": True}, verifier="v", version="1", seconds=0.1
        )
    ),
    timings=st.dictionaries(texts, st.floats(0, 1e6), max_size=2),
)


@settings(max_examples=100)
@given(episode=episodes)
def test_an_episode_is_one_json_line_and_reads_back_equal(episode: Episode) -> None:
    line = to_json_line(episode)
    assert "\n" not in line
    back = episode_from_json(line)
    assert back == episode
    assert episode_from_json(line.encode()) == episode
    assert all(isinstance(span, WeightSpan) for turn in back.turns for span in turn.completion.weight_spans)


def test_unlimited_budgets_and_the_default_budget_stay_apart() -> None:
    unlimited = Budget(turns=None)
    assert from_json(Budget, to_json_line(unlimited)) == unlimited
    assert from_json(Budget, "{}") == Budget() != unlimited


def test_a_group_reads_back_equal() -> None:
    episode = make_episode("invalid", completions=[make_completion((1, 2, 3, 4), forced=(2,), versions=(3, 4))])
    group = Group(task=episode.task, episodes=(episode, episode), birth_version=3)
    assert from_json(Group, to_json_line(group)) == group


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", (-0.1,)), ("loss_mask", (1, 1, 1)), ("token_ids", ())],
)
def test_a_completion_has_one_entry_a_token_in_each_sequence(field: str, value: tuple[float, ...]) -> None:
    good: dict[str, Any] = {"token_ids": (1, 2), "logprobs": (-0.1, -0.2), "loss_mask": (1, 1)}
    Completion(**good, finish_reason="stop", weight_spans=())
    with pytest.raises(ValueError, match="differ in length"):
        Completion(**(good | {field: value}), finish_reason="stop", weight_spans=())


@pytest.mark.parametrize(
    ("outcome", "reward"),
    [("correct", -1.0), ("correct", None), ("incorrect", 1.0), ("incorrect", 0.0), ("invalid", -1.0), ("invalid", 0.0)],
)
def test_a_verdict_carries_the_reward_of_its_outcome(outcome: Any, reward: float | None) -> None:
    with pytest.raises(ValueError, match=f"outcome '{outcome}' carries reward"):
        Verdict(outcome=outcome, reward=reward, reason="", verifier="v", version="1")


def test_a_line_that_contradicts_itself_is_refused() -> None:
    line = to_json_line(make_episode("correct"))
    assert '"reward":1.0' in line
    with pytest.raises(ValidationError, match="carries reward"):
        episode_from_json(line.replace('"reward":1.0', '"reward":-1.0'))


def test_a_line_with_a_wrong_field_is_refused_by_its_name() -> None:
    line = to_json_line(make_episode())
    with pytest.raises(ValidationError, match="stop"):
        episode_from_json(line.replace('"stop":"answered"', '"stop":"bored"'))


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_episode().stop = "error"  # type: ignore[misc]


def test_the_oldest_version_is_the_least_over_all_spans_of_all_turns() -> None:
    completions = [make_completion((1, 2), versions=(5, 6)), make_completion((1, 2), versions=(7, 4))]
    assert make_episode(completions=completions).oldest_version == 4
    assert make_episode(completions=[]).oldest_version is None
