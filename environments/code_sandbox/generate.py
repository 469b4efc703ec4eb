"""Generated problems: a sketch becomes a function task or a program, with hidden tests that tell its mutants apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from environments.code_sandbox.loops import FAMILIES
from environments.code_sandbox.mutants import load, mutants, outcome, telling
from environments.code_sandbox.problem import Problem
from environments.code_sandbox.sketch import LINE, OUTPUT, Arguments, Sketch, show
from rlvr.splits import split_of
from rlvr.types import Split

LEVELS = tuple(FAMILIES)
KINDS = ("function", "program")
CANDIDATES = 30
LEAST_TESTS, MOST_TESTS = 6, 12


def generate(seed: int, level: int, kinds: tuple[str, ...], split: Split) -> Iterator[Problem]:
    """Endless; the same problems in the same order for the same arguments.

    What is asked decides the split, whatever example stands beside it, and whether a function or a program is wanted.
    """
    rng = random.Random(f"{seed}/{level}/{','.join(kinds)}/{split}")
    while True:
        family = rng.choice(FAMILIES[level])
        sketch = family(rng)
        if split_of(sketch.text) == split:
            yield make(sketch, rng.choice(kinds), level, family.__name__, rng)


def make(sketch: Sketch, kind: str, level: int, family: str, rng: random.Random) -> Problem:
    """The problem, its tests and its wrong answers. The first test is the example that the prompt shows."""
    right = load(sketch.function)
    arguments = [found for found in sketch.candidates(rng, CANDIDATES) if not _raises(right, found)]
    example = next((found for _ in range(9) if not _raises(right, found := sketch.example(rng))), arguments[-1])
    bodies = mutants(sketch.body)
    functions = [right, *(load(replace(sketch, body=body).function) for body in bodies)]
    seen = _as_written if kind == "program" else _as_returned
    expected, *others = [[seen(sketch, outcome(function, found)) for found in arguments] for function in functions]
    places, told = telling(expected, others, least=LEAST_TESTS, most=MOST_TESTS)
    tests = [example, *(arguments[place] for place in places)]
    values = [outcome(right, found) for found in tests]
    wrong = [replace(sketch, body=bodies[number]) for number in told]
    if kind == "function":
        return Problem(
            text=_function_text(sketch, tests[0], values[0]),
            reference={
                "entry_point": "f",
                "tests": [f"assert {_call(found)} == {value!r}" for found, value in zip(tests, values, strict=True)],
            },
            public=1,
            solution=sketch.function,
            level=level,
            family=family,
            plan=sketch.plan,
            wrong=tuple(one.function for one in wrong),
        )
    io = [{"input": sketch.stdin(f), "output": f"{show(value)}\n"} for f, value in zip(tests, values, strict=True)]
    return Problem(
        text=_program_text(sketch, io[0]),
        reference={"io": io},
        public=1,
        solution=sketch.program,
        level=level,
        family=family,
        plan=sketch.plan,
        wrong=tuple(one.program for one in wrong),
    )


def _function_text(sketch: Sketch, arguments: Arguments, value: object) -> str:
    return (
        f"Write a Python function f({sketch.names}) that returns {sketch.text}{_range(sketch)}.\n"
        f"Example: {_call(arguments)} == {value!r}\n"
    )


def _program_text(sketch: Sketch, example: dict[str, str]) -> str:
    reads = ", then ".join(f"{name}: {LINE[kind]} on one line" for name, kind in sketch.parameters)
    return (
        f"Write a Python program that reads {reads}. It prints {sketch.text}{_range(sketch)}"
        f"{OUTPUT.get(sketch.result, '')}.\nExample input:\n{example['input']}Output:\n{example['output']}"
    )


def _range(sketch: Sketch) -> str:
    return f" (n is from {sketch.low} to {sketch.high})" if sketch.names == "n" else ""


def _call(arguments: Arguments) -> str:
    return f"f({', '.join(map(repr, arguments))})"


def _as_returned(sketch: Sketch, value: Any) -> Any:
    return value


def _as_written(sketch: Sketch, value: Any) -> Any:
    """As the judge sees it on stdout: white space does not count."""
    if isinstance(value, Exception):
        return value
    return show(bool(value) if sketch.result == "bool" else value).split()


def _raises(function: Callable[..., Any], arguments: Arguments) -> bool:
    return isinstance(outcome(function, arguments), Exception)
