"""What ticket n is depends on the seed and n alone, so a run resumed anywhere asks the same questions."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from rlvr import types
from rlvr.config import EnvironmentSection
from rlvr.errors import ConfigError
from rlvr.tasks import Mixture, Position, Ticket, held_out, with_budget
from rlvr.types import Budget
from tests.fakes import FakeEnvironment, make_task

Members = list[tuple[EnvironmentSection, FakeEnvironment]]


def section(name: str = "e", **values: object) -> EnvironmentSection:
    return EnvironmentSection.model_validate({"name": name} | values)


def members() -> Members:
    """One environment that starts over after 3 tasks, one that never ends, both with several thinking budgets."""
    budgets = {"thinking_tokens": [0, 8, "unlimited"]}
    return [
        (section("short", weight=2.0, **budgets), FakeEnvironment("short", num_tasks=3)),
        (section("endless", weight=1.0, **budgets), FakeEnvironment("endless", num_tasks=None)),
    ]


def draw(mixture: Mixture, count: int) -> list[Ticket]:
    return [mixture.draw() for _ in range(count)]


def test_the_same_seed_draws_the_same_tickets_and_another_seed_others() -> None:
    first = draw(Mixture(members(), seed=1), 50)
    assert first == draw(Mixture(members(), seed=1), 50)
    assert first != draw(Mixture(members(), seed=2), 50)
    assert [ticket.number for ticket in first] == list(range(50))


@pytest.mark.parametrize("stopped_after", [0, 1, 7, 30])
def test_a_restored_position_goes_on_with_the_same_tickets(stopped_after: int) -> None:
    whole = draw(Mixture(members(), seed=3), 60)
    stopped = Mixture(members(), seed=3)
    draw(stopped, stopped_after)
    # As a checkpoint keeps it.
    position = types.from_json(Position, types.to_json_line(stopped.position))
    assert draw(Mixture(members(), seed=3, position=position), 60 - stopped_after) == whole[stopped_after:]


def test_a_position_stands_still_while_the_mixture_goes_on() -> None:
    mixture = Mixture(members(), seed=0)
    draw(mixture, 5)
    position = mixture.position
    before = dataclasses.replace(position, taken=dict(position.taken))
    draw(mixture, 5)
    assert position == before
    assert sum(position.taken.values()) == position.next_number == 5


def test_environments_are_drawn_in_proportion_to_their_weights() -> None:
    names = Counter(ticket.task.environment for ticket in draw(Mixture(members(), seed=0), 3000))
    assert names["short"] / 3000 == pytest.approx(2 / 3, abs=0.04)


def test_each_environment_is_asked_in_its_own_order_and_starts_over_at_its_end() -> None:
    tickets = draw(Mixture(members(), seed=0), 60)
    short = [ticket.task.id for ticket in tickets if ticket.task.environment == "short"]
    endless = [ticket.task.id for ticket in tickets if ticket.task.environment == "endless"]
    assert short == [f"short/train/{number % 3}" for number in range(len(short))]
    assert endless == [f"endless/train/{number}" for number in range(len(endless))]


def test_thinking_budgets_are_drawn_from_the_list_and_all_of_them_are() -> None:
    tickets = draw(Mixture(members(), seed=0), 600)
    counts = Counter(ticket.task.budget.thinking_tokens for ticket in tickets)
    assert set(counts) == {0, 8, None}
    assert min(counts.values()) > 120


def test_an_environment_without_training_tasks_is_an_error_and_not_an_endless_loop() -> None:
    mixture = Mixture([(section(), FakeEnvironment(num_tasks=0))], seed=0)
    with pytest.raises(ConfigError, match="environment 'e' has no train tasks"):
        mixture.draw()


def test_the_config_sets_every_limit_of_a_task_and_changes_nothing_else() -> None:
    task = make_task(4, budget=Budget(turns=99, completion_tokens=1))
    limits = section(thinking_tokens=[5], completion_tokens=100, turns=2, tool_calls=3, seconds=7)
    limited = with_budget(task, limits, random.Random(0))
    assert limited.budget == Budget(thinking_tokens=5, completion_tokens=100, turns=2, tool_calls=3, seconds=7.0)
    assert dataclasses.replace(limited, budget=task.budget) == task


@pytest.mark.parametrize(
    ("tokens", "generous"), [([0, 64, 8], 64), ([8, "unlimited", 64], None), (["unlimited"], None), ([0], 0)]
)
def test_held_out_tasks_get_the_most_generous_thinking_budget(tokens: list[int | str], generous: int | None) -> None:
    tasks = held_out([(section(thinking_tokens=tokens), FakeEnvironment(num_tasks=None))], num_tasks=20)
    assert [task.budget.thinking_tokens for task in tasks] == [generous] * 20


def test_held_out_tasks_are_shared_out_by_weight_and_everyone_has_one() -> None:
    shares = [
        (section(name, weight=weight), FakeEnvironment(name, num_tasks=None))
        for name, weight in (("a", 6.0), ("b", 3.9), ("c", 0.1))
    ]
    tasks = held_out(shares, num_tasks=10)
    assert Counter(task.environment for task in tasks) == {"a": 6, "b": 4, "c": 1}
    assert [task.id for task in tasks][:2] == ["a/held_out/0", "a/held_out/1"]


def test_evaluation_asks_the_same_tasks_every_time_and_each_once() -> None:
    few = [(section(), FakeEnvironment(num_tasks=4))]
    assert len(held_out(few, num_tasks=100)) == 4
    assert held_out(few, num_tasks=3) == held_out(few, num_tasks=3)


def test_an_environment_without_held_out_tasks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="environment 'e' has no held-out tasks"):
        held_out([(section(), FakeEnvironment(num_tasks=0))], num_tasks=3)
