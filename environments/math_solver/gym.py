"""Task families of the `reasoning-gym` package, by name: what the environment and its verifier ask of the worker."""

from __future__ import annotations

import difflib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from environments.math_solver.gym_worker import CHUNK, MODULE, fingerprint
from rlvr.errors import ConfigError
from rlvr.splits import split_of
from rlvr.types import Split
from verifiers.worker import MAX_IDLE, WorkerLostError, WorkerPool, WorkerTimeoutError

# Problems in a row without a new one of the split, after which a family counts as exhausted.
PATIENCE = 256
# Problems asked for at once.
BATCH = 4
MAKE_SECONDS = 60.0

_POOL = WorkerPool(MODULE)
# The pool would start a worker more, and end it, for every call beyond those it keeps; its imports take a second.
_SLOTS = threading.BoundedSemaphore(MAX_IDLE)

Options = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One entry of a dataset. `answer` is a right one, `None` where the family tells none."""

    family: str
    options: Options
    seed: int
    index: int
    question: str
    answer: str | None
    package_version: str

    def reference(self) -> dict[str, Any]:
        """All that the worker needs to make the problem again, and to see that it is the same."""
        return {
            "family": self.family,
            "options": self.options,
            "seed": self.seed,
            "index": self.index,
            "fingerprint": fingerprint(self.question),
            "package_version": self.package_version,
            "answer": self.answer,
        }


@lru_cache(maxsize=1)
def options_of_families() -> dict[str, list[str]]:
    """The options that each family takes. Raises `ConfigError` where the package is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError(
            "math_solver: settings.families needs the package reasoning-gym; pip install 'rlvr[reasoning-gym]'"
        )
    options: dict[str, list[str]] = _ask({"do": "describe"})["families"]
    return options


def check_family(family: str, options: Options) -> None:
    """Raises `ConfigError` for a name or an option that the package does not have."""
    known = options_of_families()
    if family not in known:
        close = difflib.get_close_matches(family, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"math_solver: families: reasoning-gym has no family {family!r}; {hint}")
    unknown = sorted(set(options) - set(known[family]))
    if unknown:
        raise ConfigError(
            f"math_solver: families.{family}: unknown options {', '.join(unknown)}; it takes {', '.join(known[family])}"
        )
    _make(family, options, seed=0, start=0, count=1)


def problems(family: str, options: Options, *, seed: int, split: Split) -> Iterator[Problem]:
    """Those of a split, in order, for ever, or until there are no new ones. A hash of the text decides the split.

    Chunks have seeds so far apart that no two of them draw the same entry.
    """
    seen: set[str] = set()
    idle = 0
    for chunk in count():
        chunk_seed = (seed * 1_000_003 + chunk * CHUNK) % 2**31
        for start in range(0, CHUNK, BATCH):
            made = _make(family, options, seed=chunk_seed, start=start, count=BATCH)
            idle += BATCH - len(made)
            for problem in made:
                mark = fingerprint(problem.question)
                wanted = mark not in seen and split_of(problem.question) == split
                seen.add(mark)
                idle = 0 if wanted else idle + 1
                if idle > PATIENCE:
                    return
                if wanted:
                    yield problem


def _make(family: str, options: Options, *, seed: int, start: int, count: int) -> list[Problem]:
    made = _ask({"do": "make", "family": family, "options": options, "seed": seed, "start": start, "count": count})
    if "error" in made:
        raise ConfigError(f"math_solver: families.{family} = {options}: {made['error']}")
    shared = {"family": family, "options": options, "seed": seed, "package_version": made["version"]}
    return [Problem(**shared, **problem) for problem in made["problems"]]


def call_worker(request: dict[str, Any], seconds: float) -> Any:
    """The worker's reply. Raises `WorkerTimeoutError`, `WorkerLostError`. The wait for a free worker is not counted."""
    with _SLOTS:
        return _POOL.call(request, seconds)


def _ask(request: dict[str, Any]) -> Any:
    try:
        return call_worker(request, MAKE_SECONDS)
    except (WorkerTimeoutError, WorkerLostError) as error:
        raise ConfigError(f"math_solver: reasoning-gym's worker, asked to {request['do']}: {error}") from error
