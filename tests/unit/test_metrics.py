"""Numbers are over all episodes, before any filter; too many that cannot be judged stop the run."""

from __future__ import annotations

import dataclasses

import pytest

from rlvr.errors import TooManyInvalid
from rlvr.metrics import RolloutMeter
from rlvr.types import Episode, Message, Outcome, Reply, Turn
from tests.fakes import make_completion, make_episode, make_task


def meter(max_invalid_fraction: float = 0.2) -> RolloutMeter:
    return RolloutMeter(max_invalid_fraction=max_invalid_fraction)


def taken(*episodes: Episode) -> dict[str, float]:
    one = meter(1.0)
    one.add(episodes)
    return one.take()


def test_rewards_are_means_over_all_judged_episodes_and_over_each_environment() -> None:
    numbers = taken(
        *[make_episode("correct", environment="a")] * 3,
        make_episode("incorrect", environment="a"),
        make_episode("incorrect", environment="b"),
        make_episode("invalid", environment="b"),
        make_episode("invalid", environment="c"),
    )
    assert numbers["env/a/reward/mean"] == 0.5
    assert numbers["env/b/reward/mean"] == -1.0
    assert "env/c/reward/mean" not in numbers, "nothing of it was judged"
    assert numbers["reward/mean"] == pytest.approx(1 / 5), "not the mean of the environments' means"
    assert numbers["rollout/num_episodes"] == 7
    assert numbers["rollout/invalid_fraction"] == pytest.approx(2 / 7)


def test_counts_of_tokens_are_over_completions_of_all_turns() -> None:
    numbers = taken(
        make_episode(completions=[make_completion(range(4)), make_completion(range(2))]),
        make_episode("invalid", completions=[make_completion(range(9))], stop="completion_budget"),
        make_episode(completions=[]),
    )
    assert numbers["rollout/num_tokens"] == 15
    assert numbers["rollout/completion_tokens/mean"] == 5
    assert numbers["rollout/truncated_fraction"] == pytest.approx(1 / 3)


def test_forced_and_mixed_completions_are_counted() -> None:
    numbers = taken(
        make_episode(completions=[make_completion(forced=(1,)), make_completion()]),
        make_episode(completions=[make_completion(versions=(1, 2)), make_completion()]),
        make_episode(completions=[make_completion(forced=(0,), versions=(1, 2))]),
    )
    assert numbers["rollout/forced_fraction"] == pytest.approx(2 / 5)
    assert numbers["rollout/mixed_version_fraction"] == pytest.approx(2 / 5)


def test_acceptance_is_the_share_of_all_drafted_tokens_that_were_taken() -> None:
    numbers = taken(
        make_episode(completions=[make_completion(drafted=10, accepted=10), make_completion()]),
        make_episode(completions=[make_completion(drafted=90, accepted=0)]),
    )
    assert numbers["draft/acceptance"] == 0.1, "not the mean of shares"
    assert "draft/acceptance" not in taken(make_episode()), "nothing was drafted"


def test_dropped_groups_are_counted_by_reason() -> None:
    one = meter()
    one.add([make_episode()])
    for reason in ("invalid", "zero_spread", "zero_spread"):
        one.drop(reason)
    numbers = one.take()
    assert (numbers["groups/dropped/invalid"], numbers["groups/dropped/zero_spread"]) == (1, 2)


def test_every_take_starts_over() -> None:
    one = meter()
    one.add([make_episode()])
    one.drop("invalid")
    one.take()
    assert one.take() == {}, "no episode ended: a mean of nothing must not look like a number"
    one.add([make_episode()])
    numbers = one.take()
    assert numbers["rollout/num_episodes"] == 1
    assert not any(name.startswith("groups/") for name in numbers)


def test_each_environment_has_numbers_of_its_own() -> None:
    tool = Turn(
        prompt_ids=(1,),
        completion=make_completion((1, 2, 3, 4), forced=(1,)),
        message=Message(role="assistant", content=""),
        reply=Reply(messages=(Message(role="tool", content="7"),) * 2, done=False),
    )
    calls = dataclasses.replace(make_episode(environment="a"), turns=(tool, tool))
    numbers = taken(calls, make_episode("invalid", environment="a", stop="completion_budget"), make_episode())
    assert numbers["env/a/num_episodes"] == 2
    assert numbers["env/a/invalid_fraction"] == numbers["env/a/truncated_fraction"] == 0.5
    assert numbers["env/a/turns/mean"] == 1.5
    assert numbers["env/a/tool_calls/mean"] == 2
    assert numbers["env/a/forced_fraction"] == pytest.approx(2 / 3)
    assert numbers["env/a/forced_tokens/mean"] == pytest.approx(2 / 3)
    assert numbers["env/a/completion_tokens/mean"] == pytest.approx(11 / 3)
    assert (numbers["env/e/invalid_fraction"], numbers["env/e/tool_calls/mean"]) == (0, 0)
    assert numbers["rollout/tool_calls/mean"] == pytest.approx(4 / 3)


def test_levels_have_rewards_of_their_own() -> None:
    def at(level: str, outcome: Outcome) -> Episode:
        episode = make_episode(outcome)
        return dataclasses.replace(episode, task=dataclasses.replace(episode.task, level=level))

    numbers = taken(at("1", "correct"), at("2", "incorrect"), at("2", "correct"), at("3", "invalid"))
    assert numbers["env/e/level/1/reward/mean"] == 1
    assert numbers["env/e/level/2/reward/mean"] == 0
    assert "env/e/level/3/reward/mean" not in numbers
    assert not any("/level/" in name for name in taken(make_episode()))


def test_what_was_trained_on_is_counted_by_environment() -> None:
    one = meter()
    one.add([make_episode()])
    one.trained(make_task(), [0, 2], 30)
    one.trained(make_task(), [1], 12)
    numbers = one.take()
    assert (numbers["env/e/staleness/mean"], numbers["env/e/trained_tokens"]) == (1, 42)
    one.add([make_episode()])
    assert "env/e/trained_tokens" not in one.take()


def test_too_many_invalid_episodes_of_one_environment_stop_the_run_with_its_name() -> None:
    one = meter(0.2)
    one.add([make_episode(environment="fine")] * 10_000)
    one.add([make_episode()] * 40 + [make_episode("invalid", reason="sandbox: gone")] * 10)
    with pytest.raises(TooManyInvalid) as caught:
        one.add([make_episode("invalid", number=7, reason="sandbox: no memory"), make_episode()])
    assert "environment 'e': 22% of its last 51 episodes could not be judged" in str(caught.value)
    assert "run.max_invalid_fraction allows 20%" in str(caught.value)
    assert "e/train/7@0#0: sandbox: no memory" in str(caught.value)


def test_a_few_episodes_prove_nothing() -> None:
    one = meter(0.2)
    one.add([make_episode("invalid")] * 49)
    with pytest.raises(TooManyInvalid, match="100% of its last 50"):
        one.add([make_episode("invalid")])


def test_only_the_last_episodes_count_and_a_take_does_not_forget_them() -> None:
    one = meter(0.2)
    one.add([make_episode()] * 1000)
    one.take()
    one.add([make_episode("invalid")] * 40)
    one.take()
    with pytest.raises(TooManyInvalid, match="of its last 200"):
        one.add([make_episode("invalid")])


def test_a_run_may_allow_any_share_of_invalid_episodes() -> None:
    meter(1.0).add([make_episode("invalid")] * 300)
