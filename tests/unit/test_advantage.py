from __future__ import annotations

import itertools
from statistics import mean, pstdev

import pytest

from rlvr.algorithms.advantage import group_advantages, has_spread

REWARDS = [list(rewards) for size in range(1, 5) for rewards in itertools.product([1.0, -1.0, None], repeat=size)]


def brute_force(rewards: list[float | None]) -> list[float | None]:
    advantages: list[float | None] = []
    for i, own in enumerate(rewards):
        others = [reward for j, reward in enumerate(rewards) if j != i and reward is not None]
        advantages.append(None if own is None else own - mean(others) if others else 0.0)
    return advantages


@pytest.mark.parametrize("rewards", REWARDS)
def test_advantage_is_reward_less_the_mean_of_valid_siblings(rewards: list[float | None]) -> None:
    assert group_advantages(rewards, normalize_by_std=False) == pytest.approx(brute_force(rewards))


@pytest.mark.parametrize("rewards", [rewards for rewards in REWARDS if has_spread(rewards)])
def test_normalized_advantage_is_divided_by_the_deviation_of_valid_rewards(rewards: list[float | None]) -> None:
    deviation = pstdev([reward for reward in rewards if reward is not None])
    expected = [None if advantage is None else advantage / deviation for advantage in brute_force(rewards)]
    assert group_advantages(rewards, normalize_by_std=True) == pytest.approx(expected)


@pytest.mark.parametrize("rewards", REWARDS)
def test_invalid_episodes_do_not_shift_their_siblings(rewards: list[float | None]) -> None:
    valid = [reward for reward in rewards if reward is not None]
    kept = [advantage for advantage in group_advantages(rewards, normalize_by_std=False) if advantage is not None]
    assert kept == group_advantages(valid, normalize_by_std=False)


@pytest.mark.parametrize("rewards", REWARDS)
def test_spread_needs_two_valid_rewards_that_differ(rewards: list[float | None]) -> None:
    assert has_spread(rewards) == (1.0 in rewards and -1.0 in rewards)
