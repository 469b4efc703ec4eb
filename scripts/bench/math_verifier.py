"""Accuracy and speed of the math verifier against math-verify 0.9.0, on the same table in the same run.

    python scripts/bench/math_verifier.py [--repeat 3] [--wrong]

The table is tests/data/math_cases.jsonl. Both get reference and answer alike, in a box, and both parse both on every
call: our cache of references is emptied before each. `--wrong` lists the cases that either gets wrong.
math-verify comes with the `dev` extra.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlvr.types import Message, Task
from verifiers import math as ours

TABLE = Path(__file__).parents[2] / "tests" / "data" / "math_cases.jsonl"
Judge = Callable[[str, str], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="passes over the table; a case counts with its fastest")
    parser.add_argument("--wrong", action="store_true", help="list the cases that are judged wrong")
    options = parser.parse_args()
    cases = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    judges = {"rlvr": _ours, "math-verify 0.9.0": _math_verify()}
    seconds: dict[str, list[float]] = {name: [float("inf")] * len(cases) for name in judges}
    given: dict[str, list[bool]] = {name: [False] * len(cases) for name in judges}
    for _ in range(options.repeat):
        for name, judge in judges.items():
            for number, case in enumerate(cases):
                start = time.perf_counter()
                given[name][number] = judge(case["reference"], case["answer"])
                seconds[name][number] = min(seconds[name][number], time.perf_counter() - start)
    right = sum(case["expected"] for case in cases)
    load = os.getloadavg()[0]
    print(
        f"{len(cases)} cases, {right} of them equal; one core; load of the machine {load:.1f} on {os.cpu_count()} cores"
    )
    print(f"{'':20}{'accuracy':>10}{'false +':>9}{'false -':>9}{'median':>11}{'p99':>11}{'a second':>10}")
    for name in judges:
        print(_row(name, cases, given[name], seconds[name]))
    if options.wrong:
        for name in judges:
            for case, correct in zip(cases, given[name], strict=True):
                if correct != case["expected"]:
                    print(
                        f"{name}: {case['reference']!r} {'==' if correct else '!='} {case['answer']!r}",
                        f"({case['source']})",
                    )


def _row(name: str, cases: list[dict[str, Any]], given: list[bool], seconds: list[float]) -> str:
    false_positive = sum(correct and not case["expected"] for case, correct in zip(cases, given, strict=True))
    false_negative = sum(not correct and case["expected"] for case, correct in zip(cases, given, strict=True))
    accuracy = 1 - (false_positive + false_negative) / len(cases)
    median, p99 = statistics.median(seconds), sorted(seconds)[int(len(seconds) * 0.99)]
    return (
        f"{name:20}{accuracy:>10.2%}{false_positive:>9}{false_negative:>9}{median * 1e6:>8.0f} us{p99 * 1e6:>8.0f} us"
        f"{len(seconds) / sum(seconds):>10.0f}"
    )


def _ours(reference: str, answer: str) -> bool:
    ours._readings_of_reference.cache_clear()
    task = Task(id="bench/train/0", environment="bench", prompt=(), reference={"answer": reference})
    message = Message(role="assistant", content=f"So it is $\\boxed{{{answer}}}$.")
    return ours.MathVerifier().verify(task, [message]).outcome == "correct"


def _math_verify() -> Judge:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def judge(reference: str, answer: str) -> bool:
        gold = parse(f"$\\boxed{{{reference}}}$")
        return bool(verify(gold, parse(f"So it is $\\boxed{{{answer}}}$.")))

    return judge


if __name__ == "__main__":
    main()
