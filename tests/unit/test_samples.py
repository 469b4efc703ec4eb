from __future__ import annotations

import pytest

from rlvr.samples import samples_from_group
from rlvr.types import (
    Completion,
    Episode,
    Group,
    LossSettings,
    Message,
    Outcome,
    Reply,
    Stop,
    Task,
    Turn,
    Verdict,
    WeightSpan,
)

LOSS = LossSettings(temperature=0.7, clip_high=0.4)
TASK = Task(id="e/train/0", environment="e", prompt=(Message(role="user", content="?"),), reference={})
REWARDS: dict[Outcome, float | None] = {"correct": 1.0, "incorrect": -1.0, "invalid": None}


def turn(prompt: tuple[int, ...], tokens: tuple[int, ...], mask: tuple[int, ...], version: int) -> Turn:
    completion = Completion(
        token_ids=tokens,
        logprobs=tuple(-0.1 * token for token in tokens),
        loss_mask=mask,
        finish_reason="stop",
        weight_spans=(WeightSpan(version, 0, len(tokens)),),
    )
    return Turn(prompt_ids=prompt, completion=completion, message=Message(role="assistant", content=""), reply=Reply())


ONE_TURN = (turn((1, 2), (3, 4), (1, 1), 5),)
TWO_TURNS = (turn((1, 2), (3, 4), (1, 0), 5), turn((6,), (7, 8), (1, 1), 4))


def group(*outcomes: Outcome, turns: tuple[Turn, ...] = ONE_TURN, stops: tuple[Stop, ...] = ()) -> Group:
    stops = stops or ("answered",) * len(outcomes)
    episodes = [
        Episode(
            id=f"e/{i}", task=TASK, turns=turns, stop=stop,
            verdict=Verdict(outcome=outcome, reward=REWARDS[outcome], reason="", verifier="v", version="1"),
        )
        for i, (outcome, stop) in enumerate(zip(outcomes, stops, strict=True))
    ]  # fmt: skip
    return Group(task=TASK, episodes=tuple(episodes), birth_version=3)


def make(group: Group, *, mask_truncated: bool = False) -> list[float]:
    samples = samples_from_group(group, normalize_by_std=False, mask_truncated=mask_truncated, loss=LOSS)
    return [max(sample.advantages, key=abs) for sample in samples]


def test_turns_are_laid_end_to_end_and_only_sampled_tokens_carry_loss_and_advantage() -> None:
    first, second = samples_from_group(
        group("correct", "incorrect", turns=TWO_TURNS), normalize_by_std=False, mask_truncated=False, loss=LOSS
    )
    assert first.loss == second.loss == LOSS
    assert first.token_ids == (1, 2, 3, 4, 6, 7, 8)
    assert first.loss_mask == (0, 0, 1, 0, 0, 1, 1)
    assert first.behaviour_logprobs == pytest.approx((0, 0, -0.3, -0.4, 0, -0.7, -0.8))
    assert first.advantages == (0, 0, 2.0, 0, 0, 2.0, 2.0)
    assert second.advantages == (0, 0, -2.0, 0, 0, -2.0, -2.0)
    assert first.oldest_version == 4


def test_invalid_episodes_give_no_sample_and_do_not_shift_siblings() -> None:
    assert make(group("correct", "invalid", "incorrect", "incorrect")) == make(
        group("correct", "incorrect", "incorrect")
    )


def test_a_group_without_spread_gives_no_samples() -> None:
    assert make(group("correct", "correct")) == make(group("correct", "invalid")) == make(group("invalid")) == []


def test_truncated_episodes_give_no_sample_when_masked_but_stay_in_the_baseline() -> None:
    three = group("correct", "incorrect", "incorrect", stops=("answered", "answered", "completion_budget"))
    assert make(three) == [2.0, -1.0, -1.0]
    assert make(three, mask_truncated=True) == [2.0, -1.0]


def test_an_episode_without_sampled_tokens_gives_no_sample() -> None:
    assert make(group("correct", "incorrect", turns=(turn((1, 2), (3,), (0,), 5),))) == []
    assert make(group("correct", "incorrect", turns=())) == []
