"""The worker that scores answers to reasoning-gym's tasks. Started by `verifiers.worker`, killed when it is late.

Some of the package's scorers hand the model's text to `eval` (and sympy's `parse_expr` is `eval` too). Here the first
kind gets a parser of literals instead, and the second only text that is arithmetic. Two scorers are unsound, in that
they accept wrong answers; they get a stricter rule.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from environments.math_solver import gym
from verifiers.worker import serve

_EVALUATING_MODULES = (
    "reasoning_gym.algorithmic.string_insertion",
    "reasoning_gym.algorithmic.spiral_matrix",
    "reasoning_gym.algorithmic.binary_matrix",
    "reasoning_gym.games.n_queens",
)
_SYMPY_FAMILIES = frozenset(
    {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
)
_ARITHMETIC = re.compile(r"(?:\s|[-+*/^(),]|\d+(?:\.\d+)?|\.\d+|[A-Za-z]+)*", re.ASCII)
_FUNCTIONS = frozenset(
    {"exp", "log", "ln", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"}
    | {"sec", "csc", "cot", "pi", "Abs", "sign", "erf", "gamma"}
)
_MAX_EXPRESSION = 1_000  # characters


def _plain_equality(answer: str, entry: dict[str, Any]) -> str | None:
    """Its own scorer takes any text for "True"."""
    return None if answer == str(entry["answer"]) else "not the expected answer"


def _given_numbers(answer: str, entry: dict[str, Any]) -> str | None:
    """Its own scorer takes any four numbers that make 24."""
    used = Counter(map(int, re.findall(r"\d+", answer)))
    given = Counter(map(int, entry["metadata"]["numbers"]))
    return None if used == given else f"uses {sorted(used.elements())}, not the given {sorted(given.elements())}"


_STRICTER: dict[str, Callable[[str, dict[str, Any]], str | None]] = {
    "game_of_life_halting": _plain_equality,
    "puzzle24": _given_numbers,
}


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Score and reason; the score is `None` where the task of the reference cannot be made here.

    An answer of `None` only makes the task ready.
    """
    reference, answer = request["reference"], request["answer"]
    # Scorers print, and standard output is the way back.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            family, options = reference["family"], reference["options"]
            entry = gym.raw_entry(family, options, reference["seed"], reference["index"])
        except Exception as error:
            return {"score": None, "reason": f"reasoning-gym {gym.package_version()} cannot make it: {error!r}"}
        if gym.fingerprint(entry["question"]) != reference["fingerprint"]:
            here, there = gym.package_version(), reference["package_version"]
            return {
                "score": None,
                "reason": f"reasoning-gym {here} makes another problem of it than {there}; install that version",
            }
        if answer is None:
            return {"score": 0.0, "reason": "ready"}
        return _score(family, options, reference["seed"], entry, answer)


def _score(family: str, options: gym.Options, seed: int, entry: dict[str, Any], answer: str) -> dict[str, Any]:
    complaint = _refused(family, answer)
    if complaint is None and family in _STRICTER:
        complaint = _STRICTER[family](answer, entry)
    if complaint is not None:
        return {"score": 0.0, "reason": complaint}
    try:
        score = float(gym.dataset(family, json.dumps(options, sort_keys=True), seed).score_answer(answer, entry))
    except Exception as error:  # what it cannot read; that it reads a right answer, the golds prove
        return {"score": 0.0, "reason": f"the answer cannot be read: {type(error).__name__}"}
    return {"score": score, "reason": f"scored {score:g} of 1"}


def _refused(family: str, answer: str) -> str | None:
    """Why an answer may not reach an evaluating scorer."""
    if family not in _SYMPY_FAMILIES:
        return None
    if len(answer) > _MAX_EXPRESSION:
        return f"an expression of {len(answer)} characters"
    if not _ARITHMETIC.fullmatch(answer):
        return "not an arithmetic expression"
    strange = [word for word in re.findall(r"[A-Za-z]+", answer) if len(word) > 1 and word not in _FUNCTIONS]
    return f"not arithmetic: {strange[0]!r}" if strange else None


def disarm() -> None:
    """Literals instead of `eval`, in the modules whose scorers use it."""
    for name in _EVALUATING_MODULES:
        vars(importlib.import_module(name))["eval"] = ast.literal_eval


if __name__ == "__main__":
    # Its memory is bounded, and every thread of a linear algebra library would reserve some.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    gym.families()
    disarm()
    serve(answer_request)
