"""`rlvr eval`: held-out accuracy by environment, and against the thinking budget, with the engines of training.

policy -> engines -> workers -> held-out tasks under each budget -> table, accuracy.json, accuracy.png, episodes.jsonl
and the config.json that `rlvr verify` judges them by
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rlvr import types
from rlvr.actors import EngineHandle, WorkerHandle
from rlvr.config import RunConfig, dump
from rlvr.config_environment import ThinkingBudget
from rlvr.errors import ConfigError
from rlvr.evaluation import draft_acceptance, play_tasks, summarize
from rlvr.placement import Placement
from rlvr.report import Reporter
from rlvr.run_folder import latest_checkpoint
from rlvr.tasks import Member, held_out, share_out
from rlvr.train import STARTER, Prepared, RayConnection, prepare
from rlvr.types import Episode

ThinkingTokens = int | Literal["unlimited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One environment under one thinking budget (`None`: unlimited). `accuracy` is over `num_judged` episodes."""

    environment: str
    thinking_tokens: int | None
    accuracy: float | None
    num_judged: int
    num_invalid: int
    thinking_tokens_mean: float
    completion_tokens_mean: float
    forced_fraction: float
    truncated_fraction: float

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy, as of a share of independent episodes."""
        p = self.accuracy
        return None if p is None else math.sqrt(p * (1 - p) / self.num_judged)


def evaluate(
    policy: str,
    config: RunConfig,
    *,
    budgets: Sequence[ThinkingTokens] | None = None,
    num_samples: int = 0,
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> list[Cell]:
    """Play the held-out tasks of every environment under each of `budgets` (default: the config's most generous).

    Greedy, or `num_samples` episodes a task at the environment's temperature. Raises `RlvrError`.
    """
    if num_samples < 0:
        raise ConfigError(f"--samples {num_samples}: a number of episodes a task; leave it out for greedy")
    reporter = reporter or Reporter()
    folder = find_policy(policy)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"path": folder})})
    try:
        prepared = prepare(_with_limits(config, budgets), reporter)
        reporter.progress("starting Ray")
        with RayConnection(config, reporter, parts=("inference", "rollout")):
            episodes = asyncio.run(_play(config, prepared, budgets, num_samples, reporter))
    finally:
        reporter.close()
    cells = tabulate(episodes)
    target = Path(output) if output else config.run_folder / "eval"
    write(target, cells, episodes, policy=folder, num_samples=num_samples, config=config)
    show(reporter, cells, target, how=f"{num_samples} samples a task" if num_samples else "greedy")
    return cells


def read_budgets(text: str) -> list[ThinkingTokens]:
    """ "0,16,unlimited" -> [0, 16, "unlimited"]. Raises `ConfigError`."""
    budgets: list[ThinkingTokens] = []
    for part in (part.strip() for part in text.split(",")):
        if part == "unlimited":
            budgets.append("unlimited")
        elif part.isascii() and part.isdigit():
            budgets.append(int(part))
        else:
            raise ConfigError(f"--thinking-tokens {text!r}: {part!r} is no budget; write them as in 0,16,32,unlimited")
    return list(dict.fromkeys(budgets))


def find_policy(policy: str) -> str:
    """The Hugging Face folder behind a run folder (its newest checkpoint), a checkpoint, or such a folder itself."""
    if policy == STARTER:
        return STARTER
    folder = Path(policy).absolute()
    for candidate in ((latest_checkpoint(folder) or folder) / "model", folder):
        # A run folder has a config.json too, and no weights.
        if (candidate / "config.json").is_file() and any(candidate.glob("*.safetensors")):
            return str(candidate)
    raise ConfigError(
        f"no policy at {str(folder)!r}: it is no run folder with a checkpoint, no checkpoint (step-000040), and no "
        f"Hugging Face folder; {STARTER!r} is the policy that runs begin with"
    )


def tabulate(episodes: Sequence[Episode]) -> list[Cell]:
    """One cell for each environment and budget that was played, in the order they were."""
    groups: dict[tuple[str, int | None], list[Episode]] = {}
    for episode in episodes:
        key = (episode.task.environment, episode.task.budget.thinking_tokens)
        groups.setdefault(key, []).append(episode)
    return [_cell(environment, tokens, played) for (environment, tokens), played in groups.items()]


def write(
    target: Path,
    cells: Sequence[Cell],
    episodes: Sequence[Episode],
    *,
    policy: str,
    num_samples: int,
    config: RunConfig,
) -> None:
    """accuracy.json, accuracy.png, episodes.jsonl and config.json in a folder."""
    target.mkdir(parents=True, exist_ok=True)
    record = {
        "policy": policy,
        "num_samples": num_samples or 1,
        "greedy": not num_samples,
        "draft_acceptance": draft_acceptance(episodes),
        "cells": [dataclasses.asdict(cell) | {"standard_error": cell.standard_error} for cell in cells],
    }
    (target / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    with (target / "episodes.jsonl").open("w") as file:
        file.writelines(types.to_json_line(episode) + "\n" for episode in episodes)
    (target / "config.json").write_text(dump(config))
    draw(cells, target / "accuracy.png")


def show(reporter: Reporter, cells: Sequence[Cell], target: Path, *, how: str) -> None:
    """The table: a line a budget, a column an environment."""
    budgets = _budgets(cells)
    environments = list(dict.fromkeys(cell.environment for cell in cells))
    by_key = {(cell.environment, cell.thinking_tokens): cell for cell in cells}
    rows = [[_label(budget), *(_text(by_key.get((name, budget))) for name in environments)] for budget in budgets]
    reporter.grid(f"held-out accuracy, {how} (tokens of thought used)", ["thinking tokens", *environments], rows)
    reporter.say(f"{target}: accuracy.json, accuracy.png, episodes.jsonl")


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Accuracy against thinking budget, a line an environment, bars of one standard error."""
    from matplotlib.figure import Figure

    budgets = _budgets(cells)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(cell.environment for cell in cells):
        own = sorted(
            (cell for cell in cells if cell.environment == name and cell.num_judged),
            key=lambda cell: _order(cell.thinking_tokens),
        )
        axes.errorbar(
            [budgets.index(cell.thinking_tokens) for cell in own],
            [cell.accuracy or 0.0 for cell in own],
            yerr=[cell.standard_error or 0.0 for cell in own],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(budgets)), [_label(budget) for budget in budgets])
    axes.set_xlabel("thinking budget (tokens)")
    axes.set_ylabel("held-out accuracy")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.07)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


async def _play(
    config: RunConfig,
    prepared: Prepared,
    budgets: Sequence[ThinkingTokens] | None,
    num_samples: int,
    reporter: Reporter,
) -> list[Episode]:
    placement = Placement(config)
    engines = [
        EngineHandle(index, config, prepared.model_folder, placement) for index in range(config.inference.num_engines)
    ]
    workers = [
        WorkerHandle(index, config, prepared.model_folder, engines) for index in range(config.rollout.num_workers)
    ]
    try:
        reporter.progress("starting engines and workers")
        await asyncio.gather(*(engine.start(0) for engine in engines), *(worker.start() for worker in workers))
        episodes: list[Episode] = []
        for budget in budgets or (None,):
            members = _under(prepared.members, budget)
            for member, count in zip(members, share_out(config.eval.num_tasks, members), strict=True):
                tasks = await asyncio.to_thread(held_out, [member], num_tasks=count)
                played = await play_tasks(
                    workers,
                    tasks,
                    names=[each.name for each in members],
                    at_once=config.inference.num_seats,
                    series="eval" if budget is None else f"eval-{budget}",
                    group_size=num_samples or 1,
                    temperature=member.section.temperature if num_samples else 0.0,
                    seed=config.run.seed,
                )
                limit = "" if budget is None else f", {budget} thinking tokens"
                reporter.say(f"{member.name}{limit}: {summarize(played).accuracy:.1%} of {len(tasks)} tasks")
                episodes += played
        return episodes
    finally:
        await asyncio.gather(
            *(worker.stop() for worker in workers), *(engine.stop() for engine in engines), return_exceptions=True
        )


def _under(members: Sequence[Member], budget: ThinkingTokens | None) -> list[Member]:
    if budget is None:
        return list(members)
    update = {"thinking_tokens": (ThinkingBudget(tokens=budget),)}
    return [dataclasses.replace(member, section=member.section.model_copy(update=update)) for member in members]


def _with_limits(config: RunConfig, budgets: Sequence[ThinkingTokens] | None) -> RunConfig:
    """The config that says of every environment what will be asked of the policy's marks."""
    if not budgets:
        return config
    update = {"thinking_tokens": tuple(ThinkingBudget(tokens=budget) for budget in budgets)}
    return config.model_copy(
        update={"environments": tuple(each.model_copy(update=update) for each in config.environments)}
    )


def _cell(environment: str, thinking_tokens: int | None, episodes: Sequence[Episode]) -> Cell:
    judged = [episode.verdict.outcome == "correct" for episode in episodes if episode.verdict.reward is not None]
    completions = [turn.completion for episode in episodes for turn in episode.turns]
    return Cell(
        environment=environment,
        thinking_tokens=thinking_tokens,
        accuracy=fmean(judged) if judged else None,
        num_judged=len(judged),
        num_invalid=len(episodes) - len(judged),
        thinking_tokens_mean=sum(completion.num_thinking_tokens for completion in completions) / len(episodes),
        completion_tokens_mean=sum(len(completion.token_ids) for completion in completions) / len(episodes),
        forced_fraction=fmean(any(0 in turn.completion.loss_mask for turn in episode.turns) for episode in episodes),
        truncated_fraction=fmean(episode.stop == "completion_budget" for episode in episodes),
    )


def _budgets(cells: Sequence[Cell]) -> list[int | None]:
    return sorted({cell.thinking_tokens for cell in cells}, key=_order)


def _order(budget: int | None) -> float:
    return math.inf if budget is None else budget


def _label(budget: int | None) -> str:
    return "unlimited" if budget is None else str(budget)


def _text(cell: Cell | None) -> str:
    if cell is None or cell.accuracy is None or cell.standard_error is None:
        return "-"
    return f"{cell.accuracy:.1%} ±{cell.standard_error:.1%} ({cell.thinking_tokens_mean:.0f})"
