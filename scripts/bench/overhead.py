"""What environments cost: everything of an episode but the engine, and episodes a second, with the golds for a policy.

    scripts/bench/overhead.py [--episodes 200] [--at-once 64] [NAME ...]

Real episodes through `RolloutWorker`: a real tokenizer, real environments and verifiers; the sampler answers at once
with the next message of the task's gold. Without names, every installed environment, with its default settings.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence

from common import machine

from rlvr.errors import RlvrError
from rlvr.plugins import list_environments, make_environment
from rlvr.rollout.worker import Order, RolloutWorker
from rlvr.starter.tokenizer import train_tokenizer
from rlvr.types import Budget, Completion, Episode, Message, SamplingParams, Task, WeightSpan

OPENING = "<|im_start|>assistant\n"


class GoldSampler:
    """Says message number n of a task's gold, where n is how often the assistant had the word before."""

    def __init__(self, tokenizer: object, golds: dict[str, Sequence[Message]]) -> None:
        self._tokenizer = tokenizer
        self._golds = golds

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        prefix = self._tokenizer.decode(list(prompt_ids), skip_special_tokens=False)
        message = self._golds[group][prefix.count(OPENING) - 1]
        text = f"{message.thinking}</think>{message.content}"
        ids = (*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id)
        return Completion(
            token_ids=ids,
            logprobs=(0.0,) * len(ids),
            loss_mask=(1,) * len(ids),
            finish_reason="stop",
            weight_spans=(WeightSpan(0, 0, len(ids)),),
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=64)
    options = parser.parse_args()
    names = options.names or [plugin.name for plugin in list_environments() if not plugin.problem]
    rows = []
    for name in names:
        try:
            rows.append(asyncio.run(measure(name, options.episodes, options.at_once)))
        except RlvrError as error:
            rows.append(f"| {name} | {error} |")
    print(f"{machine()}\n\n{options.episodes} episodes: medians one by one, throughput {options.at_once} at once\n")
    print("| environment | +1 | turns | reset, step ms | verify ms | all but the engine ms | episodes/s a worker |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


async def measure(name: str, num_episodes: int, at_once: int) -> str:
    """One row of the table."""
    tasks, golds = read(name, num_episodes)
    texts = [message.content for task in tasks[:50] for message in (*task.prompt, *golds[task.id])]
    tokenizer = train_tokenizer(texts)
    worker = RolloutWorker(
        environments=[(name, {})], tokenizer=tokenizer, sampler=GoldSampler(tokenizer, golds), max_model_len=2**20
    )
    tickets = itertools.count()

    async def play(task: Task) -> Episode:
        number = next(tickets)
        order = Order(
            series="bench",
            ticket=number,
            task=task,
            environment=0,
            group_size=1,
            temperature=1.0,
            birth_version=0,
            seed=0,
        )
        return (await worker.play(order)).episodes[0]

    for task in tasks[:5]:
        await play(task)  # caches, pools and imports are warm in a run
    alone = [await play(task) for task in tasks]
    limit = asyncio.Semaphore(at_once)

    async def one(task: Task) -> Episode:
        async with limit:
            return await play(task)

    began = time.perf_counter()
    together = await asyncio.gather(*(one(task) for task in tasks))
    seconds = time.perf_counter() - began
    await worker.close()
    correct = sum(episode.verdict.outcome == "correct" for episode in (*alone, *together))
    median = {
        key: 1000 * statistics.median(episode.timings[key] for episode in alone) for key in ("environment", "verify")
    }
    overhead = 1000 * statistics.median(episode.timings["total"] - episode.timings["sample"] for episode in alone)
    turns = statistics.mean(len(episode.turns) for episode in alone)
    return (
        f"| {name} | {correct}/{2 * len(tasks)} | {turns:.1f} | {median['environment']:.2f} | {median['verify']:.2f} "
        f"| {overhead:.2f} | {len(tasks) / seconds:.0f} |"
    )


def read(name: str, count: int) -> tuple[list[Task], dict[str, Sequence[Message]]]:
    """The first training tasks, and what to say to each."""
    environment = make_environment(name, {})
    budget = Budget(turns=None, seconds=120)
    tasks = [dataclasses.replace(task, budget=budget) for task in itertools.islice(environment.tasks("train"), count)]
    return tasks, {task.id: tuple(environment.gold(task)) for task in tasks}


if __name__ == "__main__":
    main()
