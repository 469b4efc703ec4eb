"""Task families of the `reasoning-gym` package, by name. Generating is trusted code; judging is `gym_worker`'s.

A task is one entry of a dataset: family, options, seed and index say which, here and in the worker. Chunks of a
family's stream have seeds so far apart that no two of them draw the same entry.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import count
from typing import Any

from environments.math_solver.data import split_of
from rlvr.errors import ConfigError
from rlvr.types import Split

# Entries of one seed. Most families draw entry `i` from `seed + i`, and some prepare all entries at once.
CHUNK = 32
# Entries without a new problem after which a family counts as exhausted, in one pass over a split.
PATIENCE = 256
# Not a task, but a mixture of others: name those instead.
NOT_FAMILIES = ("composite",)
# Where a family keeps a solution when its `answer` is empty because several are right.
_EXAMPLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "graph_color": lambda metadata: json.dumps({str(key): color for key, color in metadata["possible_answer"].items()}),
    "propositional_logic": lambda metadata: str(metadata["example_answer"]),
    "rubiks_cube": lambda metadata: str(metadata["example_correct_answer"]),
}

Options = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One problem. `answer` is a right one, `None` where the family tells none."""

    family: str
    seed: int
    index: int
    question: str
    answer: str | None


def fingerprint(question: str) -> str:
    """Tells whether another process, or another version of the package, made the same problem."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def families() -> tuple[str, ...]:
    """All names. Raises `ConfigError` where the package is not installed."""
    return tuple(sorted(set(_registry()) - set(NOT_FAMILIES)))


def check_family(family: str, options: Options) -> None:
    """Raises `ConfigError` for a name or an option that the package does not have."""
    known = families()
    if family not in known:
        close = difflib.get_close_matches(family, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"math_solver: families: reasoning-gym has no family {family!r}; {hint}")
    config_class = _registry()[family][1]
    accepted = sorted(set(config_class.__dataclass_fields__) - {"seed", "size"})
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(
            f"math_solver: families.{family}: unknown options {', '.join(unknown)}; it takes {', '.join(accepted)}"
        )
    try:
        dataset(family, json.dumps(options, sort_keys=True), 0)
    except Exception as error:  # the package checks by assertions, and each family in its own way
        raise ConfigError(f"math_solver: families.{family} = {options}: {error or type(error).__name__}") from error


@lru_cache(maxsize=64)
def dataset(family: str, options: str, seed: int) -> Any:
    """`CHUNK` entries. `options` is JSON."""
    import reasoning_gym

    return reasoning_gym.create_dataset(family, seed=seed, size=CHUNK, **json.loads(options))


def raw_entry(family: str, options: Options, seed: int, index: int) -> dict[str, Any]:
    """As the package makes it; a copy, for its scorers write into theirs."""
    entry: dict[str, Any] = copy.deepcopy(dataset(family, json.dumps(options, sort_keys=True), seed)[index])
    return entry


def entries(family: str, options: Options, *, seed: int, split: Split) -> Iterator[Entry]:
    """The problems of a split, in order, for ever, or until the family has no new ones. A hash of the text decides."""
    seen: set[str] = set()
    idle = 0
    for chunk in count():
        chunk_seed = (seed * 1_000_003 + chunk * CHUNK) % 2**31
        for index in range(CHUNK):
            entry = raw_entry(family, options, chunk_seed, index)
            question = entry["question"]
            new = fingerprint(question) not in seen
            seen.add(fingerprint(question))
            idle = 0 if new and split_of(question) == split else idle + 1
            if idle > PATIENCE:
                return
            if new and split_of(question) == split:
                yield Entry(family=family, seed=chunk_seed, index=index, question=question, answer=_gold(family, entry))


def package_version() -> str:
    """Entries depend on it."""
    return version("reasoning-gym")


def _gold(family: str, entry: dict[str, Any]) -> str | None:
    if family in _EXAMPLES:
        return _EXAMPLES[family](entry["metadata"])
    return None if entry["answer"] is None else str(entry["answer"])


def _registry() -> dict[str, Any]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError(
            "math_solver: settings.families needs the package reasoning-gym; pip install 'rlvr[reasoning-gym]'"
        )
    import reasoning_gym  # noqa: F401 - fills the registry
    from reasoning_gym.factory import DATASETS

    # It draws plots for nobody, and says so at length.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    registry: dict[str, Any] = DATASETS
    return registry
