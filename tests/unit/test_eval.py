"""An evaluation finds its policy, and says what its episodes say."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from rlvr.config import parse
from rlvr.errors import ConfigError
from rlvr.eval import Cell, draw, find_policy, read_budgets, tabulate, write
from rlvr.evaluation import Evaluation, compare, play_tasks, summarize
from rlvr.rollout.worker import Order
from rlvr.run_folder import STATE_FILE
from rlvr.types import Budget, Episode, Group, Outcome, episode_from_json
from tests.fakes import make_completion, make_episode, make_task
from verifiers.settings import settings_of


def played(outcome: Outcome, budget: int | None, *, environment: str = "e", forced: tuple[int, ...] = ()) -> Episode:
    completion = dataclasses.replace(make_completion(range(10), forced=forced), num_thinking_tokens=4)
    episode = make_episode(outcome, environment=environment, completions=[completion])
    return dataclasses.replace(episode, task=dataclasses.replace(episode.task, budget=Budget(thinking_tokens=budget)))


EPISODES = [
    played("correct", 8, forced=(4,)),
    played("incorrect", 8),
    played("invalid", 8),
    played("correct", None),
    played("incorrect", 8, environment="f"),
    played("invalid", None, environment="f"),
]


def test_cells_are_by_environment_and_budget_and_leave_out_what_was_not_judged() -> None:
    cells = {(cell.environment, cell.thinking_tokens): cell for cell in tabulate(EPISODES)}
    assert cells["e", 8] == Cell(
        environment="e", thinking_tokens=8, accuracy=0.5, num_judged=2, num_invalid=1, thinking_tokens_mean=4.0,
        completion_tokens_mean=10.0, forced_fraction=pytest.approx(1 / 3), truncated_fraction=0.0,
    )  # fmt: skip
    assert cells["e", 8].standard_error == pytest.approx((0.25 / 2) ** 0.5)
    assert (cells["e", None].accuracy, cells["f", 8].accuracy) == (1.0, 0.0)
    assert (cells["f", None].accuracy, cells["f", None].num_invalid) == (None, 1)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    config = parse({"run": {"name": "r"}, "environments": [{"name": "e", "settings": {"wanted": "yes"}}]})
    write(tmp_path / "eval", tabulate(EPISODES), EPISODES, policy="p", num_samples=0, config=config)
    record = json.loads((tmp_path / "eval" / "accuracy.json").read_text())
    assert (record["policy"], record["greedy"], record["num_samples"]) == ("p", True, 1)
    assert [cell["thinking_tokens"] for cell in record["cells"]] == [8, None, 8, None]
    assert [cell["standard_error"] is None for cell in record["cells"]] == [False, False, False, True]
    lines = (tmp_path / "eval" / "episodes.jsonl").read_text().splitlines()
    assert [episode_from_json(line) for line in lines] == EPISODES
    assert settings_of("e", str(tmp_path / "eval" / "episodes.jsonl")) == ("e", {"wanted": "yes"})
    assert (tmp_path / "eval" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_judged_is_still_a_picture(tmp_path: Path) -> None:
    draw(tabulate([played("invalid", 3)]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_budgets_are_read_once_each_in_their_order() -> None:
    assert read_budgets("16, 0,unlimited,16") == [16, 0, "unlimited"]


@pytest.mark.parametrize("text", ["", "1,,2", "-1", "many", "1.5", "²"])
def test_a_budget_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no budget; write them as in 0,16,32,unlimited"):
        read_budgets(text)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_text("")
    return folder


def test_a_policy_is_found_in_a_run_a_checkpoint_or_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        checkpoint = run / "checkpoints" / f"step-00000{step}"
        model(checkpoint / "model")
        (checkpoint / STATE_FILE).write_text("{}")
    model(run / "checkpoints" / "step-000003" / "model")  # not whole: no state
    (run / "config.json").write_text("{}")  # the run's, not a model's
    newest = run / "checkpoints" / "step-000002"
    assert find_policy(str(run)) == find_policy(str(newest)) == find_policy(str(newest / "model"))
    assert find_policy(str(newest)) == str(newest / "model")
    assert find_policy("starter") == "starter"
    with pytest.raises(ConfigError, match="no policy at"):
        find_policy(str(tmp_path))


def test_a_summary_leaves_out_the_invalid_and_tells_the_environments_apart() -> None:
    found = summarize(EPISODES)
    assert (found.accuracy, found.num_judged) == (0.5, 4)
    assert found.by_environment == {"e": pytest.approx(2 / 3), "f": 0.0}
    assert found.draft_acceptance is None
    assert summarize([played("invalid", 1)]).by_environment == {}


def test_before_and_after_are_compared_by_what_both_have() -> None:
    before = Evaluation(accuracy=0.25, by_environment={"e": 0.25}, draft_acceptance=0.5, num_judged=4)
    after = Evaluation(accuracy=0.5, by_environment={"e": 1.0, "f": 0.0}, draft_acceptance=0.75, num_judged=8)
    title = "held-out accuracy (8 tasks, greedy)"
    assert compare(before, after) == {
        title: ("25.0%", "50.0%"),
        "    e": ("25.0%", "100.0%"),
        "    f": ("nan%", "0.0%"),
        "drafts accepted": ("50.0%", "75.0%"),
    }
    alone = dataclasses.replace(after, by_environment={"e": 0.5}, draft_acceptance=None)
    assert list(compare(before, alone)) == [title]


async def test_tasks_are_played_in_order_and_never_more_at_once_than_asked() -> None:
    under_way = most = 0

    class Player:
        async def play(self, order: Order) -> Group:
            nonlocal under_way, most
            assert (order.environment, order.task.environment) == (1, "e")
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001 * (5 - order.ticket % 5))
            under_way -= 1
            episodes = (make_episode(number=order.ticket),) * order.group_size
            return Group(task=order.task, episodes=episodes, birth_version=0)

    tasks = [make_task(number) for number in range(20)]
    episodes = await play_tasks([Player(), Player()], tasks, names=["d", "e"], at_once=3, series="s", group_size=2)
    assert most == 3
    assert [episode.task.id for episode in episodes] == [task.id for task in tasks for _ in range(2)]
