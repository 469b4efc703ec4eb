"""For environments: splits that never meet, whatever the seed, and tasks of a split from problems drawn or read."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from rlvr.errors import ConfigError
from rlvr.types import Split, Task

# About one text in so many is held out.
HELD_OUT_EVERY = 8
# Draws without a new problem after which a held-out set of the asked size is given up.
PATIENCE = 20_000


class Asked(Protocol):
    """A problem: `text` is what is asked."""

    @property
    def text(self) -> str: ...


P = TypeVar("P", bound=Asked)


def even(text: str) -> str:
    """`text` with each run of white space made one space."""
    return " ".join(text.split())


def split_of(text: str, *, exactly: bool = False) -> Split:
    """The split that a problem belongs to, by a hash of its text with white space made even, or `exactly` as it is."""
    digest = hashlib.sha256((text if exactly else even(text)).encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY == 0 else "train"


def mixed_levels(
    levels: Sequence[int], generate: Callable[[int], Iterator[P]], *, seed: int, split: Split
) -> Iterator[P]:
    """Problems of endless streams, one a level, each from a level drawn from `levels`."""
    rng = random.Random(f"{seed}/{split}")
    streams = {level: generate(level) for level in levels}
    while True:
        yield next(streams[rng.choice(levels)])


def tasks_of(
    problems: Iterable[P],
    make: Callable[[int, P], Task],
    *,
    split: Split,
    num_train: int | None,
    num_held_out: int,
    source: str,
) -> Iterator[Task]:
    """Tasks of a split's endless `problems`, keyed by number: as they come in training, distinct ones held out.

    Raises `ConfigError`, which names `source` ("math_solver, levels (1,)"), when there are not so many distinct ones.
    """
    if split == "train":
        for key, problem in islice(enumerate(problems), num_train):
            yield make(key, problem)
        return
    seen: set[str] = set()
    repeated = 0
    for problem in problems:
        if problem.text in seen:
            repeated += 1
            if repeated > PATIENCE:
                raise ConfigError(
                    f"{source} gave only {len(seen)} distinct held-out problems, and num_held_out = {num_held_out}; "
                    "lower num_held_out or add a level"
                )
            continue
        seen.add(problem.text)
        yield make(len(seen) - 1, problem)
        if len(seen) == num_held_out:
            return


def lines_of_file(path: str | Path, *, source: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank, for what `settings.path` names.

    Raises `ConfigError`, which names `source` ("math_solver"), where it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: settings.path = {str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line


def tasks_of_file(
    problems: Iterable[tuple[int, P]],
    make: Callable[[int, P], Task],
    *,
    split: Split,
    limit: int | None,
    source: str,
) -> list[Task]:
    """Tasks of those of a file's numbered `problems` that fall into a split, the first `limit`, keyed by line number.

    A problem that stands in the file twice is taken once. Raises `ConfigError`, which names `source` ("math_solver:
    my.jsonl"), when none falls into the split.
    """
    tasks: dict[str, Task] = {}
    for line, problem in problems:
        if split_of(problem.text) == split:
            tasks.setdefault(even(problem.text), make(line, problem))
    if not tasks:
        raise ConfigError(
            f"{source} has no problem that falls into {split!r} (a hash of its text decides; about one in "
            f"{HELD_OUT_EVERY} is held out); add problems"
        )
    return list(tasks.values())[:limit]
