"""Accuracy on held-out tasks: who plays them, and what the episodes say."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from rlvr.rollout.worker import Order
from rlvr.types import Episode, Group, Task


class Player(Protocol):
    """A rollout worker, wherever it lives."""

    async def play(self, order: Order) -> Group:
        """As `rlvr.rollout.worker.RolloutWorker.play`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy over the judged episodes, all and by environment, and what the MTP layer's drafts were worth."""

    accuracy: float = 0.0
    by_environment: dict[str, float] = field(default_factory=dict)
    draft_acceptance: float | None = None
    num_judged: int = 0

    @property
    def numbers(self) -> dict[str, float]:
        """Accuracies by their names as metrics."""
        return {f"env/{name}/eval/accuracy": accuracy for name, accuracy in self.by_environment.items()}


async def play_tasks(
    players: Sequence[Player],
    tasks: Sequence[Task],
    *,
    names: Sequence[str],
    at_once: int,
    series: str,
    group_size: int = 1,
    temperature: float = 0.0,
    version: int = 0,
    seed: int = 0,
) -> list[Episode]:
    """Every task `group_size` times, shared out over the players, at most `at_once` tasks under way.

    More would only wait in the engines, on the time of their own budgets. `names` are those of the config's
    environments, in its order.
    """
    free = asyncio.Semaphore(at_once)

    async def play(number: int, task: Task) -> Group:
        order = Order(
            series=series,
            ticket=number,
            task=task,
            environment=names.index(task.environment),
            group_size=group_size,
            temperature=temperature,
            birth_version=version,
            seed=seed,
        )
        async with free:
            return await players[number % len(players)].play(order)

    groups = await asyncio.gather(*(play(number, task) for number, task in enumerate(tasks)))
    return [episode for group in groups for episode in group.episodes]


def summarize(episodes: Sequence[Episode]) -> Evaluation:
    """Invalid episodes are left out of every mean; an environment of which nothing was judged is not there."""
    judged: defaultdict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        if episode.verdict.reward is not None:
            judged[episode.task.environment].append(episode.verdict.outcome == "correct")
    everything = [correct for each in judged.values() for correct in each]
    return Evaluation(
        accuracy=fmean(everything) if everything else 0.0,
        by_environment={name: fmean(each) for name, each in judged.items()},
        draft_acceptance=draft_acceptance(episodes),
        num_judged=len(everything),
    )


def compare(before: Evaluation, after: Evaluation) -> dict[str, tuple[str, str]]:
    """Rows of a table: all accuracies, those of each environment where there are several, and drafts accepted."""
    rows = {f"held-out accuracy ({after.num_judged} tasks, greedy)": (before.accuracy, after.accuracy)}
    if len(after.by_environment) > 1:
        earlier = before.by_environment
        rows |= {f"    {name}": (earlier.get(name, math.nan), now) for name, now in after.by_environment.items()}
    if before.draft_acceptance is not None and after.draft_acceptance is not None:
        rows["drafts accepted"] = (before.draft_acceptance, after.draft_acceptance)
    return {name: (f"{then:.1%}", f"{now:.1%}") for name, (then, now) in rows.items()}


def draft_acceptance(episodes: Sequence[Episode]) -> float | None:
    """The share of drafted tokens that the policy took; `None` where nothing was drafted."""
    completions = [turn.completion for episode in episodes for turn in episode.turns]
    drafted = sum(completion.num_draft_tokens for completion in completions)
    return sum(completion.num_accepted_tokens for completion in completions) / drafted if drafted else None
