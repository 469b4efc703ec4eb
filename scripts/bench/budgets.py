"""No thought exceeds its budget, no forced token carries loss, and what follows is sampled from the learner's policy.

    scripts/bench/budgets.py [--episodes 5000] [--policy FOLDER]

Plays the quickstart's tasks on the starter policy under thinking budgets from 0 to unlimited, with a forced sentence
and tokens kept for the answer; once without drafting and once with. Then the same while weights arrive in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from common import QUICKSTART, machine
from played import Played, agreement, drift, play_all, running_engine, sample_of
from transformers import AutoTokenizer

from rlvr.config import load
from rlvr.inference.engine import environment_variables
from rlvr.learner.model import PolicyModel
from rlvr.plugins import make_environment
from rlvr.report import Reporter
from rlvr.rollout.renderer import Renderer
from rlvr.train import policy_folder
from rlvr.types import Budget
from rlvr.weights import pack

THINKING = (0, 1, 8, 16, 24, 32, None)
BUDGET = Budget(completion_tokens=96, answer_tokens=24, closing="So: ")


async def main(options: argparse.Namespace) -> None:
    environment = make_environment("math_solver", {"levels": [1, 2, 3]})
    folder = Path(options.policy or policy_folder(load(QUICKSTART), [environment], Reporter()))
    print(f"\n{machine()}\n")
    tasks = [
        dataclasses.replace(task, budget=dataclasses.replace(BUDGET, thinking_tokens=THINKING[number % len(THINKING)]))
        for number, task in enumerate(islice(environment.tasks("train"), options.episodes))
    ]
    for num_draft_tokens in (0, 1):
        async with running_engine(folder, num_draft_tokens=num_draft_tokens) as engine:
            started = time.monotonic()
            played = await play_all(engine, folder, environment, tasks, temperature=1.0)
            seconds = time.monotonic() - started
            report(f"{num_draft_tokens} draft tokens", played, folder, seconds)
            for name, found in agreement(folder, [sample_of(one, temperature=1.0) for one in played]).items():
                print(f"    log-probabilities, {name}: {found}", flush=True)
            if num_draft_tokens:
                playing = asyncio.create_task(play_all(engine, folder, environment, tasks[:1000], temperature=1.0))
                version = await publish_until(playing, engine, folder)
                report(f"{num_draft_tokens} draft tokens, {version} versions in flight", await playing, folder, 0.0)


async def publish_until(playing: asyncio.Task[list[Played]], engine: object, folder: Path) -> int:
    """New weights every half second, each a little off the starter's."""
    weights = [(name, one.detach()) for name, one in PolicyModel.load(folder, dtype=torch.float32).named_weights()]
    version = 0
    while not playing.done():
        await asyncio.sleep(0.5)
        version += 1
        changed = [(name, weight * (1 + 0.002 * (version % 5))) for name, weight in weights]
        await engine.update(pack(version, changed))  # type: ignore[attr-defined]
    return version


def report(title: str, played: list[Played], folder: Path, seconds: float) -> None:
    marks = Renderer(AutoTokenizer.from_pretrained(folder)).marks(BUDGET.closing)
    assert marks is not None
    wrong: Counter[str] = Counter()
    forced_closes = versions = calls = tokens = 0
    for one in played:
        sample = sample_of(one, temperature=1.0)
        found = drift(one, sample)
        wrong[found] += bool(found)
        completion = one.episode.turns[0].completion
        budget = one.episode.task.budget.thinking_tokens
        thought, inside = 0, True
        for token, mask in zip(completion.token_ids, completion.loss_mask, strict=True):
            inside = token == marks.start or (inside and token != marks.end)
            thought += inside and token != marks.start
            if inside and not mask:
                wrong["a forced token inside a thought"] += 1
        wrong["a thought longer than its budget"] += budget is not None and thought > budget
        forced = [token for token, mask in zip(completion.token_ids, completion.loss_mask, strict=True) if not mask]
        wrong["forced tokens that are not the closing"] += len(forced) % len(marks.closing) != 0 or (
            tuple(forced) != marks.closing * (len(forced) // len(marks.closing))
        )
        forced_closes += bool(forced)
        versions += len({span.version for span in completion.weight_spans}) > 1
        calls += len(one.calls)
        tokens += len(completion.token_ids)
    mistakes = {name: count for name, count in wrong.items() if count}
    speed = f", {tokens / seconds:,.0f} tokens/s" if seconds else ""
    print(
        f"{title}: {len(played):,} episodes, {tokens:,} tokens{speed}, {calls / len(played):.2f} calls each; "
        f"{forced_closes:,} thoughts closed by force, {versions:,} completions with two versions or more; "
        f"mistakes: {mistakes or 'none'}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--policy", help="a checkpoint folder; default: the starter")
    os.environ.update(environment_variables(num_threads=1, on_gpu=False))
    asyncio.run(main(parser.parse_args()))
