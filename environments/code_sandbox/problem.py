"""One problem, wherever it came from, and the split that it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from rlvr.types import Split

HELD_OUT_EVERY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`text` is what is asked. `reference` is the code verifier's: {"entry_point", "tests"} or {"io"}, and limits.

    Its first `public` tests may be shown to the model. `solution` must pass ("" where nobody gave one); each of `wrong`
    must not. `plan` is a short thought that leads to the solution.
    """

    text: str
    reference: dict[str, Any]
    public: int = 0
    solution: str = ""
    level: int = 0
    family: str = ""
    plan: str = ""
    wrong: tuple[str, ...] = ()


def split_of(text: str) -> Split:
    """The split of what is asked, by its text with white space made even."""
    digest = hashlib.sha256(even(text).encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY == 0 else "train"


def even(text: str) -> str:
    """`text` with each run of white space made one space."""
    return " ".join(text.split())
