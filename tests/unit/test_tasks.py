"""What ticket n is depends on the seed and n alone, so a run resumed anywhere asks the same questions."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from rlvr import types
from rlvr.config_environment import EnvironmentSection
from rlvr.errors import ConfigError
from rlvr.tasks import Member, Mixture, Position, Ticket, held_out, make_members, with_budget
from rlvr.types import Budget
from tests.fakes import FakeEnvironment, make_task


def member(environment: FakeEnvironment, section: EnvironmentSection) -> Member:
    return Member(section=section, environment=environment)


def section(name: str = "e", **values: object) -> EnvironmentSection:
    return EnvironmentSection.model_validate({"name": name} | values)


def members() -> list[Member]:
    """One environment that starts over after 3 tasks, one that never ends, both with several thinking budgets."""
    budgets = {"thinking_tokens": [0, 8, "unlimited"]}
    return [
        member(FakeEnvironment("short", num_tasks=3), section("short", weight=2.0, **budgets)),
        member(FakeEnvironment("endless", num_tasks=None), section("endless", weight=1.0, **budgets)),
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
    mixture = Mixture([member(FakeEnvironment(num_tasks=0), section())], seed=0)
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
    tasks = held_out([member(FakeEnvironment(num_tasks=None), section(thinking_tokens=tokens))], num_tasks=20)
    assert [task.budget.thinking_tokens for task in tasks] == [generous] * 20


def test_held_out_tasks_are_shared_out_by_weight_and_everyone_has_one() -> None:
    shares = [
        member(FakeEnvironment(name, num_tasks=None), section(name, weight=weight))
        for name, weight in (("a", 6.0), ("b", 3.9), ("c", 0.1))
    ]
    tasks = held_out(shares, num_tasks=10)
    assert Counter(task.environment for task in tasks) == {"a": 6, "b": 4, "c": 1}
    assert [task.id for task in tasks][:2] == ["a/held_out/0", "a/held_out/1"]


def test_evaluation_asks_the_same_tasks_every_time_and_each_once() -> None:
    few = [member(FakeEnvironment(num_tasks=4), section())]
    assert len(held_out(few, num_tasks=100)) == 4
    assert held_out(few, num_tasks=3) == held_out(few, num_tasks=3)


def test_an_environment_without_held_out_tasks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="environment 'e' has no held-out tasks"):
        held_out([member(FakeEnvironment(num_tasks=0), section())], num_tasks=3)


# --- weighted budgets and what the prompt says of them


def test_thinking_budgets_are_drawn_by_their_weights() -> None:
    weighted = section(thinking_tokens=[{"tokens": 8, "weight": 3}, "unlimited"])
    mixture = Mixture([member(FakeEnvironment(num_tasks=None), weighted)], seed=0)
    counts = Counter(ticket.task.budget.thinking_tokens for ticket in draw(mixture, 2000))
    assert counts[8] / 2000 == pytest.approx(3 / 4, abs=0.03)


def test_every_limit_may_be_unlimited_and_none_of_what_happens_there_is_lost() -> None:
    unlimited = section(
        completion_tokens="unlimited", turns="unlimited", tool_calls="unlimited", seconds="unlimited",
        answer_tokens=4, closing="So: ", over_budget="incorrect",
    )  # fmt: skip
    assert with_budget(make_task(), unlimited, random.Random(0)).budget == Budget(
        turns=None, answer_tokens=4, closing="So: ", over_budget="incorrect"
    )


@pytest.mark.parametrize(
    ("tell", "note"),
    [
        (False, ""),
        (True, "Budget: 8 thinking tokens, 256 completion tokens, 2 tool calls."),
        ("Think in {thinking_tokens}, {turns} turn(s).", "Think in 8, 1 turn(s)."),
    ],
)
def test_the_prompt_tells_the_budget_that_was_drawn(tell: bool | str, note: str) -> None:
    told = section(tell_budget=tell, thinking_tokens=8, tool_calls=2)
    assert with_budget(make_task(), told, random.Random(0)).budget.note == note


def test_nothing_is_told_of_what_is_unlimited() -> None:
    told = section(tell_budget=True, completion_tokens="unlimited")
    assert with_budget(make_task(), told, random.Random(0)).budget.note == ""


# --- weights held by tokens, and levels by pass rates


def settle(mixture: Mixture, tickets: list[Ticket], *, passed: dict[str, float], tokens: dict[str, int]) -> None:
    for ticket in tickets:
        task = ticket.task
        mixture.settle(ticket, pass_rate=passed.get(task.level), num_tokens=tokens.get(task.environment, 0))


def test_weights_held_by_tokens_share_out_the_tokens_trained_on() -> None:
    equal = [member(FakeEnvironment(name, num_tasks=None), section(name)) for name in ("long", "short")]
    mixture = Mixture(equal, seed=0, by="tokens")
    tokens = {"long": 300, "short": 100}
    trained: Counter[str] = Counter()
    for _ in range(300):
        tickets = draw(mixture, 8)
        settle(mixture, tickets, passed={}, tokens=tokens)
        mixture.move_shares()
        for ticket in tickets:
            trained[ticket.task.environment] += tokens[ticket.task.environment]
    assert trained["long"] / trained["short"] == pytest.approx(1.0, abs=0.15)


def leveled(floor: float = 0.1) -> list[Member]:
    curriculum = section("e", curriculum={"window": 16, "floor": floor})
    levels = {level: FakeEnvironment("e", num_tasks=None) for level in ("1", "2", "3")}
    plain = member(FakeEnvironment("plain", num_tasks=None), section("plain"))
    return [Member(section=curriculum, environment=FakeEnvironment("e"), levels=levels), plain]


def test_a_curriculum_follows_the_level_that_is_half_passed() -> None:
    mixture = Mixture(leveled(), seed=0)
    passed = {"1": 1.0, "2": 0.5, "3": 0.0}
    for _ in range(40):
        settle(mixture, draw(mixture, 8), passed=passed, tokens={})
        mixture.move_shares()
    levels = Counter(ticket.task.level for ticket in draw(mixture, 600) if ticket.task.environment == "e")
    total = sum(levels.values())
    assert levels["2"] / total > 0.6
    assert min(levels["1"], levels["3"]) / total > 0.05, "the floor keeps every level in sight"
    # The policy learns: what was hard is now where it fails half of the time.
    for _ in range(80):
        settle(mixture, draw(mixture, 8), passed={"1": 1.0, "2": 1.0, "3": 0.5}, tokens={})
        mixture.move_shares()
    assert max(mixture.level_weights("e"), key=mixture.level_weights("e").__getitem__) == "3"


def test_ids_stay_unique_over_the_levels() -> None:
    ids = [ticket.task.id for ticket in draw(Mixture(leveled(), seed=0), 200)]
    assert len(set(ids)) == 200
    assert any(task_id.startswith("e/train/level-2/") for task_id in ids)


@pytest.mark.parametrize("by", ["tasks", "tokens"])
def test_a_mixture_that_moves_its_shares_is_resumed_anywhere_with_the_same_tickets(
    by: Literal["tasks", "tokens"],
) -> None:
    def play(mixture: Mixture, rounds: range) -> list[Ticket]:
        drawn = []
        for number in rounds:
            tickets = draw(mixture, 5)
            settle(
                mixture, tickets, passed={"1": 1.0, "2": number % 3 / 2, "3": 0.1}, tokens={"e": 50, "plain": number}
            )
            if number % 2:
                mixture.move_shares()
            drawn += tickets
        return drawn

    whole = play(Mixture(leveled(), seed=3, by=by), range(30))
    for stopped_after in (0, 1, 8, 21):
        stopped = Mixture(leveled(), seed=3, by=by)
        play(stopped, range(stopped_after))
        position = types.from_json(Position, types.to_json_line(stopped.position))
        rest = play(Mixture(leveled(), seed=3, by=by, position=position), range(stopped_after, 30))
        assert rest == whole[5 * stopped_after :]


def test_the_order_in_which_groups_settle_does_not_matter() -> None:
    positions = []
    for order in (1, -1):
        mixture = Mixture(leveled(), seed=0)
        settle(mixture, draw(mixture, 12)[::order], passed={"1": 1.0, "2": 0.5, "3": 0.0}, tokens={"e": 3})
        mixture.move_shares()
        positions.append(mixture.position)
    assert positions[0] == positions[1]


def test_a_checkpoint_of_a_smaller_mixture_is_resumed_with_the_new_members_beside() -> None:
    old = Mixture(leveled()[1:], seed=0)
    settle(old, draw(old, 3), passed={}, tokens={"plain": 5})
    mixture = Mixture(leveled(), seed=0, position=old.position)
    mixture.move_shares()
    assert {ticket.task.environment for ticket in draw(mixture, 40)} == {"e", "plain"}
    smaller = Mixture(leveled()[:1], seed=0, position=mixture.position)
    smaller.move_shares()
    assert {ticket.task.environment for ticket in draw(smaller, 10)} == {"e"}


def test_members_are_made_from_the_config_with_an_environment_for_each_level() -> None:
    wanted = EnvironmentSection.model_validate(
        {"name": "math_solver", "settings": {"levels": [1, 3]}, "curriculum": {}}
    )
    (made,) = make_members([wanted])
    assert list(made.levels) == ["1", "3"]
    assert [environment.settings.levels for environment in made.levels.values()] == [(1,), (3,)]  # type: ignore[attr-defined]
    assert made.environment.settings.levels == (1, 3)  # type: ignore[attr-defined]


def test_a_curriculum_without_levels_is_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"'math_solver': a curriculum needs two levels .* gives \[1\]"):
        make_members([section("math_solver", curriculum={})])


# --- labels


def labelled() -> list[Member]:
    """One environment twice, once with a curriculum, and once more under its own name."""
    leveled = str(Path(__file__).parents[1] / "leveled.py") + ":Leveled"
    return list(
        make_members(
            [
                section(leveled, label="easy", settings={"levels": [1]}, weight=2.0),
                section(leveled, label="hard", settings={"levels": [2, 3]}, curriculum={}),
                section(leveled),
            ]
        )
    )


def test_one_environment_under_several_labels_gives_tasks_that_are_told_apart() -> None:
    tickets = draw(Mixture(labelled(), seed=0), 300)
    ids: dict[str, list[str]] = {}
    for ticket in tickets:
        ids.setdefault(ticket.task.environment, []).append(ticket.task.id)
    assert set(ids) == {"easy", "hard", "leveled"}
    assert len(ids["easy"]) == pytest.approx(150, abs=30)
    assert ids["easy"][:2] == ["easy/train/0", "easy/train/1"]
    assert {task_id.rpartition("/")[0] for task_id in ids["hard"]} == {"hard/train/level-2", "hard/train/level-3"}
    levels = {name: {t.task.reference["level"] for t in tickets if t.task.environment == name} for name in ids}
    assert levels == {"easy": {1}, "hard": {2, 3}, "leveled": {1, 2, 3}}
    chosen = held_out(labelled(), num_tasks=40)
    assert Counter(task.environment for task in chosen) == {"easy": 20, "hard": 10, "leveled": 10}
    assert len({task.id for task in chosen}) == 40


def test_a_curriculum_under_a_label_keeps_its_pass_rates_and_its_position() -> None:
    mixture = Mixture(labelled(), seed=0)
    for ticket in draw(mixture, 60):
        passed = {"easy": 1.0, "leveled": 0.0}.get(ticket.task.environment, 0.5 if ticket.task.level == "2" else 0.0)
        mixture.settle(ticket, pass_rate=passed, num_tokens=1)
    mixture.move_shares()
    weights = mixture.level_weights("hard")
    assert weights["2"] > 2 * weights["3"]
    again = Mixture(labelled(), seed=0, position=mixture.position)
    assert again.level_weights("hard") == weights
    assert draw(again, 20) == draw(mixture, 20)
