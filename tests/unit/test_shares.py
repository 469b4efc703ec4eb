"""Draws go where there is something to learn, within bounds."""

from __future__ import annotations

import pytest

from rlvr.shares import MAX_TOKEN_FACTOR, level_weights, token_factors


def test_a_level_weighs_most_at_half_passed_and_least_at_the_ends() -> None:
    weights = level_weights({"hard": [0.0] * 98, "half": [0.5] * 98, "easy": [1.0] * 98}, floor=0.1)
    assert weights == {"hard": 0.1, "half": 1.0, "easy": 0.1}


def test_an_unknown_level_is_tried_and_one_task_decides_little() -> None:
    weights = level_weights({"unknown": [], "once": [1.0]}, floor=0.1)
    assert weights["unknown"] == 1.0
    assert weights["once"] == pytest.approx(4 * 2 / 3 * 1 / 3)


def test_token_factors_even_out_what_a_task_brings() -> None:
    factors = token_factors({"long": [300, 300], "short": [100]})
    assert factors["long"] * 300 == pytest.approx(factors["short"] * 100)


def test_token_factors_are_bounded_and_know_nothing_at_first() -> None:
    assert token_factors({"a": (), "b": ()}) == {"a": 1.0, "b": 1.0}
    assert token_factors({"a": [0, 0], "b": [0]}) == {"a": 1.0, "b": 1.0}
    factors = token_factors({"never": [0, 0], "rarely": [1], "often": [1000], "new": ()})
    assert factors["never"] == factors["rarely"] == MAX_TOKEN_FACTOR
    assert factors["new"] == 1.0
    assert min(factors.values()) >= 1 / MAX_TOKEN_FACTOR
