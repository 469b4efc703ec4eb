"""What is trained on is what was sampled, over conversations with a tool.

    scripts/bench/multi_turn.py [--episodes 2000] [--policy FOLDER]

Every call to the engine is written down: the prompt's tokens and those sampled after it. Each episode's training
sequence must hold exactly these, in place, with loss on them and on nothing else. For comparison: how many of the
conversations would have got other tokens, had their text been tokenized again.
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

from common import QUICKSTART, machine
from played import Played, agreement, drift, play_all, running_engine, sample_of
from transformers import AutoTokenizer

from rlvr.config import load
from rlvr.inference.engine import environment_variables
from rlvr.plugins import make_environment
from rlvr.report import Reporter
from rlvr.train import policy_folder
from rlvr.types import Budget

BUDGET = Budget(turns=None, completion_tokens=160, thinking_tokens=60, closing="So: ")


async def main(options: argparse.Namespace) -> None:
    math = make_environment("math_solver", {})
    folder = Path(options.policy or policy_folder(load(QUICKSTART), [math], Reporter()))
    print(f"\n{machine()}\n")
    environment = make_environment(f"{Path(__file__).parent / 'dialogue.py'}:Dialogue", {})
    tasks = [dataclasses.replace(task, budget=BUDGET) for task in islice(environment.tasks("train"), options.episodes)]
    async with running_engine(folder, num_draft_tokens=1) as engine:
        started = time.monotonic()
        # Hot, so that odd cuts of the same text are sampled.
        played = await play_all(engine, folder, environment, tasks, temperature=1.3)
        report(played, folder, time.monotonic() - started)
    for name, found in agreement(folder, [sample_of(one, temperature=1.3) for one in played]).items():
        print(f"    log-probabilities, {name}: {found}")


def report(played: list[Played], folder: Path, seconds: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mistakes: Counter[str] = Counter()
    turns = calls = drifted = 0
    for one in played:
        sample = sample_of(one, temperature=1.3)
        mistakes[drift(one, sample)] += 1
        turns += len(one.episode.turns)
        calls += sum(message.role == "tool" for turn in one.episode.turns for message in turn.reply.messages)
        ids = list(sample.token_ids)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        drifted += tokenizer.encode(text, add_special_tokens=False) != ids
    exact = mistakes.pop("", 0)
    print(
        f"{len(played):,} episodes, {turns:,} turns, {calls:,} tool messages, {seconds:.0f} s: {exact:,} trained on "
        f"exactly as sampled; mistakes: {dict(mistakes) or 'none'}; tokenized again, {drifted:,} would differ"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--policy", help="a checkpoint folder; default: the starter")
    os.environ.update(environment_variables(num_threads=1, on_gpu=False))
    asyncio.run(main(parser.parse_args()))
