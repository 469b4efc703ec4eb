"""Depths follow costs and acceptance, as brute force finds them; a schedule covers every load."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from rlvr.inference.draft_schedule import (
    PRIOR_ACCEPTANCE,
    Acceptance,
    DraftSchedule,
    as_schedule,
    best_depths,
    check_schedule,
    every_depth,
    sizes_to_measure,
)


def expected_tokens(rates: Sequence[float], depth: int) -> float:
    """Over every way in which drafts can be accepted: a request gets those before the first rejected, and one more."""
    total = 0.0
    for outcome in itertools.product([True, False], repeat=depth):
        probability = 1.0
        for accepted, rate in zip(outcome, rates, strict=False):
            probability *= rate if accepted else 1 - rate
        total += probability * (1 + len(list(itertools.takewhile(bool, outcome))))
    return total


def depth_at(schedule: DraftSchedule, size: int) -> int:
    (depth,) = [depth for first, last, depth in schedule if first <= size <= last]
    return depth


@pytest.mark.parametrize("num_draft_tokens", [1, 2, 4])
def test_the_depth_of_each_size_is_the_one_of_most_tokens_a_second(num_draft_tokens: int) -> None:
    generator = random.Random(num_draft_tokens)
    left = set()
    for _ in range(300):
        rates = [generator.random() for _ in range(num_draft_tokens)]
        costs = {size: [generator.uniform(1, 3) for _ in range(num_draft_tokens + 1)] for size in sizes_to_measure(100)}
        held = {size: generator.randint(0, num_draft_tokens) for size in costs}
        found = best_depths(costs, rates, held)
        for size, seconds in costs.items():
            speeds = [expected_tokens(rates, depth) / second for depth, second in enumerate(seconds)]
            if max(speeds) > 1.03 * speeds[held[size]]:
                assert found[size] == speeds.index(max(speeds))
                left.add(found[size])
            else:
                assert found[size] == held[size]
    assert left == set(range(num_draft_tokens + 1))


def test_the_measured_slowdown_of_large_batches_is_avoided_and_the_gain_of_small_ones_kept() -> None:
    """Ratios of tokens a second with one draft to none, at 80 % acceptance, as an H200 gave them."""
    ratios = {1: 1.69, 64: 1.61, 256: 1.23, 512: 0.82}
    costs = {size: (1.0, 1.8 / ratio) for size, ratio in ratios.items()}
    depths = best_depths(costs, [0.8], dict.fromkeys(costs, 1))
    assert depths == {1: 1, 64: 1, 256: 1, 512: 0}
    assert as_schedule(depths) == ((1, 362, 1), (363, 512, 0))
    # Half of the drafts: 1.5 tokens a step for the price of 1.8 / 1.23, and so on.
    assert best_depths(costs, [0.3], depths) == {1: 1, 64: 1, 256: 0, 512: 0}


@pytest.mark.parametrize("held", [0, 1])
def test_costs_within_noise_of_each_other_leave_the_depth_as_it_is(held: int) -> None:
    generator = random.Random(0)
    depths = {16: held}
    for _ in range(200):
        depths = best_depths({16: (1.0, 1.8 * generator.uniform(0.986, 1.014))}, [0.8], depths)
        assert depths == {16: held}


def test_acceptance_is_counted_of_the_drafts_whose_forerunners_were_accepted() -> None:
    acceptance = Acceptance(3)
    generator = random.Random(0)
    truth = (0.9, 0.5, 0.2)
    for depth in (3, 3, 2, 1, 0):  # as schedules change, so do the depths of steps
        steps = []
        for _ in range(20_000):
            outcomes = [generator.random() < rate for rate in truth[:depth]]
            steps.append((depth, len(list(itertools.takewhile(bool, outcomes)))))
        acceptance.add(steps)
    assert acceptance.rates() == pytest.approx(truth, abs=0.02)


def test_before_anything_was_seen_the_prior_stands_and_a_few_drafts_hardly_move_it() -> None:
    acceptance = Acceptance(2)
    assert acceptance.rates() == (PRIOR_ACCEPTANCE, PRIOR_ACCEPTANCE)
    acceptance.add([(2, 0)] * 3)
    assert PRIOR_ACCEPTANCE - 0.03 < acceptance.rates()[0] < PRIOR_ACCEPTANCE
    assert acceptance.rates()[1] == PRIOR_ACCEPTANCE  # not tried: the drafts before it were rejected


def test_later_drafts_outweigh_earlier_ones() -> None:
    acceptance = Acceptance(1)
    acceptance.add([(1, 0)] * 10_000)
    assert acceptance.rates()[0] < 0.02
    for _ in range(6):
        acceptance.fade()
        acceptance.add([(1, 1)] * 10_000)
    assert acceptance.rates()[0] > 0.98


def test_a_depth_that_was_left_is_tried_again_and_kept_once_drafts_have_become_good() -> None:
    """A run that always has 64 requests: drafting everywhere off would never be seen to pay again."""
    costs = {64: (1.0, 1.5)}
    acceptance, depths, tried = Acceptance(1), {64: 1}, []
    for version in range(60):
        good = version >= 40
        if depths[64]:
            tried.append(version)
            acceptance.add([(1, int(good or index % 10 == 0)) for index in range(20_000)])
        depths = best_depths(costs, acceptance.rates(), depths)
        acceptance.fade()
    bad = [version for version in tried if version < 40]
    assert 2 <= len(bad) <= 6, "now and then, not at every version"
    assert tried[-10:] == list(range(50, 60))


@pytest.mark.parametrize("largest", [1, 2, 4, 5, 17, 64, 100, 512])
def test_sizes_grow_fourfold_from_one_to_the_most_requests_at_once(largest: int) -> None:
    sizes = sizes_to_measure(largest)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    assert sizes == sorted(set(sizes))
    assert all(after <= 4 * before for before, after in itertools.pairwise(sizes))


def test_sizes_of_512() -> None:
    assert sizes_to_measure(512) == [1, 4, 16, 64, 256, 512]


def test_a_schedule_holds_each_measured_depth_where_it_was_measured_and_changes_half_way_between() -> None:
    sizes = (1, 2, 3, 16, 64, 100)
    for depths in itertools.product(range(3), repeat=len(sizes)):
        schedule = as_schedule(dict(zip(sizes, depths, strict=True)))
        check_schedule(schedule, num_draft_tokens=2, max_num_seqs=100)
        assert schedule[-1][1] == 100
        assert all(before[2] != after[2] for before, after in itertools.pairwise(schedule))
        for size, depth in zip(sizes, depths, strict=True):
            assert depth_at(schedule, size) == depth
        if depths[3] != depths[4]:  # between 16 and 64
            assert depth_at(schedule, 32) == depths[3]
            assert depth_at(schedule, 33) == depths[4]


@pytest.mark.parametrize(("num_draft_tokens", "max_num_seqs"), [(1, 2), (1, 512), (3, 4), (3, 16), (7, 256)])
def test_an_engine_is_built_with_every_depth_up_to_nearly_all_its_requests(
    num_draft_tokens: int, max_num_seqs: int
) -> None:
    schedule = every_depth(num_draft_tokens, max_num_seqs)
    check_schedule(schedule, num_draft_tokens=num_draft_tokens, max_num_seqs=max_num_seqs)
    table = [depth_at(schedule, size) for size in range(1, max_num_seqs + 1)]
    for depth in range(num_draft_tokens + 1):
        assert max_num_seqs - max(size for size, held in enumerate(table, 1) if held == depth) == depth
