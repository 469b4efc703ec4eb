"""One problem, wherever it came from, and the split that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
