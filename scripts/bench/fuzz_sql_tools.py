"""Random bytes and mutated answers through the SQL and the tool-call verifier: no exception, no hang.

python scripts/bench/fuzz_sql_tools.py --random 1000000 --mutations 100000
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from rlvr.interfaces import Verifier
from rlvr.types import Message, Task
from verifiers.sql import SqlVerifier
from verifiers.tool_calls import ToolCallVerifier

DATA = Path(__file__).parents[2] / "tests" / "data"
PIECES = [
    "(",
    ")",
    "'",
    '"',
    ";",
    "--",
    "/*",
    "\0",
    "\ud800",
    "```sql\n",
    "<tool_call>",
    "{",
    "[[",
    "1e999",
    " UNION ",
    "%",
]


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        text = (
            text[:at]
            + rng.choice([rng.choice(PIECES), chr(rng.randrange(32, 500)), ""])
            + text[at + rng.randint(0, 4) :]
        )
    return text


def sql_answers(num_random: int, num_mutations: int, rng: random.Random) -> Iterator[tuple[Task, str]]:
    schemas = json.loads((DATA / "sql/schemas.json").read_text())
    entries = lines("sql/queries.jsonl")

    def task(entry: dict[str, Any]) -> Task:
        reference = {"schema": schemas[entry["schema"]]["schema"], "query": entry["query"]}
        return Task(id="sql/fuzz/0", environment="sql", prompt=(), reference=reference)

    first = task(entries[0])
    for number in range(num_random):
        text = rng.randbytes(rng.randrange(64)).decode("utf-8", "surrogateescape")
        yield first, text if number % 20 else "SELECT " + text
    each = max(num_mutations // len(entries), 1)
    for entry in entries:
        for _ in range(each):
            yield task(entry), mutated(entry["query"], rng)


def tool_answers(num_random: int, num_mutations: int, rng: random.Random) -> Iterator[tuple[Task, str]]:
    tools = json.loads((DATA / "tool_calls/tools.json").read_text())
    cases = lines("tool_calls/cases.jsonl")

    def task(case: dict[str, Any]) -> Task:
        return Task(id="tool/fuzz/0", environment="tool", prompt=(), reference={"tools": tools, **case["reference"]})

    first = task(cases[0])
    for number in range(num_random):
        text = rng.randbytes(rng.randrange(64)).decode("utf-8", "surrogateescape")
        yield first, text if number % 2 else f"<tool_call>{text}</tool_call>"
    tasks = [task(case) for case in cases]
    for number in range(num_mutations):
        place = number % len(cases)
        yield tasks[place], mutated(cases[place]["completion"], rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=1_000_000)
    parser.add_argument("--mutations", type=int, default=100_000)
    options = parser.parse_args()
    runs: list[tuple[Verifier, Any]] = [(SqlVerifier(), sql_answers), (ToolCallVerifier(), tool_answers)]
    for verifier, answers in runs:
        start, slowest, outcomes = perf_counter(), 0.0, Counter[str]()
        for task, text in answers(options.random, options.mutations, random.Random(0)):
            verdict = verifier.verify(task, [Message(role="assistant", content=text)])
            outcomes[verdict.outcome] += 1
            slowest = max(slowest, verdict.seconds)
        total = perf_counter() - start
        print(f"{verifier.id}: {dict(outcomes)} in {total:.0f} s, slowest {slowest:.2f} s, no exception", flush=True)


if __name__ == "__main__":
    main()
