"""Problems of graded difficulty, from a seed or from a JSONL file, and worked examples of uneven quality.

    level   arithmetic                  equations
    1       two-digit + and -           x+a=b, x-a=b, two-digit
    2       three-digit + and -         the same with three digits, and a*x+b=c
    3       four-digit + and -, a*b     a*x+b=c and a*x-b=c with larger numbers

A problem belongs to `train` or `held_out` by a hash of its text, so the same problem never stands in both, whichever
seed, level or file it came from.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlvr.errors import ConfigError
from rlvr.splits import lines_of_file, split_of
from rlvr.types import Split

LEVELS = (1, 2, 3)

# How often a worked example of a kind is worked out step by step; the others jump to an answer. Human data is uneven
# in this way, and it is what reinforcement learning gets to sort out: both habits are there to be sampled.
CAREFUL_SHARE = {"add": 0.65, "subtract": 0.35, "multiply": 0.5, "equation": 0.35}


@dataclass(frozen=True, slots=True)
class Problem:
    """`text` is what is asked; `thought` works the answer out step by step ("" where nobody wrote it down)."""

    text: str
    answer: str
    kind: str = ""
    thought: str = ""
    level: str = ""


def generate(seed: int, levels: tuple[int, ...], split: Split) -> Iterator[Problem]:
    """Endless; the same problems in the same order for the same arguments."""
    rng = random.Random(f"{seed}/{split}")
    while True:
        level = rng.choice(levels)
        problem = _draw(rng, level)
        if split_of(problem.text) == split:
            yield replace(problem, level=str(level))


def worked_thought(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """A thought on a generated problem and the answer it comes to: worked out, or estimated and mostly wrong."""
    if rng.random() < CAREFUL_SHARE[problem.kind]:
        return problem.thought, problem.answer
    expression = re.match(r"(\d+)([-+*])(\d+)", problem.thought)
    assert expression is not None
    a, b = (int(number[0]) * 10 ** (len(number) - 1) for number in expression.group(1, 3))
    sign = expression.group(2)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"Roughly {a}{sign}{b}:{result}", str(result)


def read_jsonl(path: str | Path) -> Iterator[tuple[int, Problem]]:
    """Line number (from 1) and problem of each line that is not blank. Raises `ConfigError`."""
    for number, line in lines_of_file(path, source="math_solver"):
        yield number, _parse_line(line, f"{path}, line {number}")


def _parse_line(line: str, where: str) -> Problem:
    wanted = 'write {"problem": "...", "answer": "..."}'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); {wanted}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: a JSON {type(record).__name__}, not an object; {wanted}")
    for key in ("problem", "answer"):
        if key not in record:
            raise ConfigError(f"{where}: no {key!r}; {wanted}")
    text, answer = record["problem"], record["answer"]
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: 'problem' = {text!r} is not a text; {wanted}")
    if isinstance(answer, bool) or not isinstance(answer, str | int) or not str(answer).strip():
        raise ConfigError(f"{where}: 'answer' = {answer!r} is neither a text nor a whole number; {wanted}")
    return Problem(text=text, answer=str(answer))


def _draw(rng: random.Random, level: int) -> Problem:
    low, high = 10**level, 10 ** (level + 1) - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    kind = rng.choice(("add", "subtract", "equation"))
    if kind == "add":
        if level == 3 and rng.random() < 0.5:
            a, b = rng.randint(12, 99), rng.randint(2, 9)
            return Problem(f"What is {a}*{b}?", str(a * b), "multiply", f"{a}*{b}:{_multiply(a, b)}")
        return Problem(f"What is {a}+{b}?", str(a + b), kind, f"{a}+{b}:{_add(a, b)}")
    if kind == "subtract":
        a, b = max(a, b), min(a, b)
        return Problem(f"What is {a}-{b}?", str(a - b), kind, f"{a}-{b}:{_subtract(a, b)}")
    if level >= 2 and (level == 3 or rng.random() < 0.5):
        return _two_step(rng, level)
    if rng.random() < 0.5:
        a, b = max(a, b), min(a, b)
        return Problem(f"Solve x+{b}={a}.", str(a - b), kind, f"{a}-{b}:{_subtract(a, b)}")
    return Problem(f"Solve x-{b}={a}.", str(a + b), kind, f"{a}+{b}:{_add(a, b)}")


def _two_step(rng: random.Random, level: int) -> Problem:
    factor, x = rng.randint(2, 9), rng.randint(2, 9)
    product = factor * x
    if level == 2:
        b = rng.randint(10, max(10, 99 - product))
        sign = "+"
    else:
        b = rng.randint(100, 899)
        sign = rng.choice("+-")
    if sign == "+":
        c = product + b
        work = f"{c}-{b}:{_subtract(c, b)}"
    else:
        product += 900 // factor * factor
        x = product // factor
        c = product - b
        work = f"{c}+{b}:{_add(c, b)}"
    thought = f"{work},{product}/{factor}:{x}"
    return Problem(f"Solve {factor}*x{sign}{b}={c}.", str(x), "equation", thought)


def _columns(a: int, b: int) -> Iterator[tuple[int, int]]:
    for top, bottom in zip(reversed(str(a)), reversed(str(b).zfill(len(str(a)))), strict=False):
        yield int(top), int(bottom)


def _add(a: int, b: int) -> str:
    steps, carry = [], 0
    for top, bottom in _columns(max(a, b), min(a, b)):
        steps.append(f"{top}+{bottom}+{carry}={top + bottom + carry:02d}")
        carry = (top + bottom + carry) // 10
    return f"{','.join(steps)}:{a + b}"


def _subtract(a: int, b: int) -> str:
    steps, borrow = [], 0
    for top, bottom in _columns(a, b):
        lent = 10 if top < bottom + borrow else 0
        steps.append(f"{top + lent:02d}-{bottom}-{borrow}={top + lent - bottom - borrow}")
        borrow = lent // 10
    return f"{','.join(steps)}:{a - b}"


def _multiply(a: int, b: int) -> str:
    tens, ones = a // 10 * 10, a % 10
    return f"{ones}*{b}={ones * b},{tens}*{b}={tens * b}:{a * b}"
