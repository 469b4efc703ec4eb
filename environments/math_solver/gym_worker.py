"""The one place that runs reasoning-gym: a worker process that makes problems and scores answers.

Started by `verifiers.worker`, killed when it is late. A process of its own for three reasons. Some scorers hand the
model's text to `eval` (sympy's `parse_expr` is `eval` too): here the first kind gets a parser of literals instead, and
the second only text that is arithmetic. Some families depend on Python's hash seed: here it is always 0. And some
scorers print: standard output is the way back, and they get another.

Five scorers are unsound, in that they give full score to wrong answers; they get a stricter rule.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from verifiers.worker import serve

# Entries of one seed. Most families draw entry `i` from `seed + i`, and some prepare all entries at once.
CHUNK = 32
MODULE = "environments.math_solver.gym_worker"

Json = dict[str, Any]

# Where a family keeps a solution when its `answer` is empty because several are right.
_EXAMPLES: dict[str, Callable[[Json], str]] = {
    "graph_color": lambda metadata: json.dumps({str(key): color for key, color in metadata["possible_answer"].items()}),
    "propositional_logic": lambda metadata: str(metadata["example_answer"]),
    "rubiks_cube": lambda metadata: str(metadata["example_correct_answer"]),
}
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


def _plain_equality(answer: str, entry: Json) -> str | None:
    """Its own scorer takes any text for "True"."""
    return None if answer == str(entry["answer"]) else "not the expected answer"


def _given_numbers(answer: str, entry: Json) -> str | None:
    """Its own scorer takes any four numbers that make 24."""
    used = Counter(map(int, re.findall(r"\d+", answer)))
    given = Counter(map(int, entry["metadata"]["numbers"]))
    return None if used == given else f"uses {sorted(used.elements())}, not the given {sorted(given.elements())}"


def _same_words(answer: str, entry: Json) -> str | None:
    """Their own scorers add up what is right, and words that were not asked for cost nothing."""
    same = answer.lower().split() == str(entry["answer"]).lower().split()
    return None if same else "not the expected words"


def _finite(answer: str, _entry: Json) -> str | None:
    """Its own scorer gives full score to a distance that is no number."""
    return "not a finite number" if re.search("nan|inf", answer, re.IGNORECASE) else None


_STRICTER: dict[str, Callable[[str, Json], str | None]] = {
    "complex_arithmetic": _finite,
    "letter_jumble": _same_words,
    "spell_backward": _same_words,
    "game_of_life_halting": _plain_equality,
    "puzzle24": _given_numbers,
}


def answer(request: Json) -> Json:
    """`request["do"]` is the name of a function below, the rest its arguments. What it raises comes back as "error"."""
    actions: dict[str, Callable[..., Json]] = {"describe": describe, "make": make, "score": score}
    action = actions[request.pop("do")]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return action(**request)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}


def describe() -> Json:
    """The options of every family, and the version of the package. "composite" is a mixture, not a family."""
    registry = _registry()
    options = {
        family: sorted(set(config.__dataclass_fields__) - {"seed", "size"})
        for family, (_, config) in registry.items()
        if family != "composite"
    }
    return {"families": options, "version": version("reasoning-gym")}


def make(family: str, options: Json, seed: int, start: int, count: int) -> Json:
    """The problems `start` to `start + count` of one seed; the answer is `None` where the family tells none.

    One whose own answer is refused is left out ("Integral(...)", a question given back as the answer to itself).
    """
    problems = []
    for index in range(start, start + count):
        entry = _entry(family, options, seed, index)
        if family in _EXAMPLES:
            gold: str | None = _EXAMPLES[family](entry["metadata"])
        else:
            gold = None if entry["answer"] is None else str(entry["answer"])
        if gold is None or _refused(family, gold) is None:
            problems.append({"index": index, "question": entry["question"], "answer": gold})
    return {"problems": problems, "version": version("reasoning-gym")}


def score(reference: Json, answer: str | None) -> Json:
    """Score and reason; "error" where the task cannot be made here again. `None` only makes the task ready."""
    family, options = reference["family"], reference["options"]
    entry = _entry(family, options, reference["seed"], reference["index"])
    if fingerprint(entry["question"]) != reference["fingerprint"]:
        here, there = version("reasoning-gym"), reference["package_version"]
        return {"error": f"reasoning-gym {here} makes another problem of it than {there} did; install that version"}
    if answer is None:
        return {"score": 0.0, "reason": "ready"}
    complaint = _refused(family, answer)
    if complaint is None and family in _STRICTER:
        complaint = _STRICTER[family](answer, entry)
    if complaint is not None:
        return {"score": 0.0, "reason": complaint}
    try:
        result = float(_dataset(family, json.dumps(options), reference["seed"]).score_answer(answer, entry))
    except Exception as error:  # what it cannot read; that it reads a right answer, the golds prove
        return {"score": 0.0, "reason": f"the answer cannot be read: {type(error).__name__}"}
    return {"score": result, "reason": f"scored {result:g} of 1"}


def fingerprint(question: str) -> str:
    """Tells whether another version of the package made the same problem."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


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


def _entry(family: str, options: Json, seed: int, index: int) -> Json:
    # A copy, for scorers write into what they are given.
    return copy.deepcopy(_kept_entry(family, json.dumps(options), seed, index))


@lru_cache(maxsize=1_024)
def _kept_entry(family: str, options: str, seed: int, index: int) -> Json:
    entry: Json = _dataset(family, options, seed)[index]
    return entry


@lru_cache(maxsize=64)
def _dataset(family: str, options: str, seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(family, seed=seed, size=CHUNK, **json.loads(options))


@lru_cache(maxsize=1)
def _registry() -> Json:
    import reasoning_gym  # noqa: F401 - fills the registry
    from reasoning_gym.factory import DATASETS

    for name in _EVALUATING_MODULES:
        vars(importlib.import_module(name))["eval"] = ast.literal_eval
    registry: Json = DATASETS
    return registry


def main() -> None:
    # Memory is bounded, and every thread of a linear algebra library would reserve some.
    wanted = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", MODULE], os.environ | wanted)
    _registry()
    serve(lambda request, _: answer(request))


if __name__ == "__main__":
    main()
