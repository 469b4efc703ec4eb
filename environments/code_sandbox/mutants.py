"""Solutions with one thing changed, and the inputs that tell them from the right one.

Both run here, in this process: they are this package's own code, and their loops end. A model's code never does.
"""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from environments.code_sandbox.sketch import Arguments

_CHANGES: tuple[tuple[str, str], ...] = (
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " + "),
    (r" % ", " // "),
    (r" // ", " % "),
    (r"\bmax\(", "min("),
    (r"\bmin\(", "max("),
    (r"\bany\(", "all("),
    (r"\ball\(", "any("),
    (r"\bsorted\(", "list("),
    (r"\bset\(", "list("),
    (r"\babs\(", "int("),
    (r"\.upper\(", ".lower("),
    (r"\.upper\(", ".capitalize("),
    (r"\.capitalize\(", ".upper("),
    (r"\.count\(", ".find("),
    (r"\.replace\(([^()]*)\)", r".replace(\1, 1)"),
    (r"\.isdigit\(", ".strip("),
    (r"\.split\(\)", ".split(' ')"),
    (r"\bsum\(", "max("),
    (r"\bstr\(n\)(?!\[)", "str(n)[::-1]"),
    (r"'aeiou'", "'aeio'"),
    (r"'-'\.join", "''.join"),
    (r"startswith", "endswith"),
    (r"endswith", "startswith"),
    (r" and ", " or "),
    (r" or ", " and "),
    (r" not in ", " in "),
    (r"\[::-1\]", ""),
    (r"reverse=True", "reverse=False"),
    (r" if [^()\[\]:]+?(?=[)\]])", ""),
    (r" & ", " | "),
    (r" \^ ", " | "),
)
_NUMBER = re.compile(r"\b\d+\b")


def mutants(body: str) -> list[str]:
    """Every body with one change, at each place that has one; distinct, and Python."""
    made = [
        body[: match.start()] + match.expand(wrong) + body[match.end() :]
        for pattern, wrong in _CHANGES
        for match in re.finditer(pattern, body)
    ]
    made += [
        body[: match.start()] + str(int(match[0]) + step) + body[match.end() :]
        for match in _NUMBER.finditer(body)
        for step in (1, -1)
        if int(match[0]) + step >= 0
    ]
    return [mutant for mutant in dict.fromkeys(made) if mutant != body and _compiles(mutant)]


def load(function: str) -> Callable[..., Any]:
    """The function `f` of a source of ours."""
    space: dict[str, Any] = {}
    exec(function, space)
    found: Callable[..., Any] = space["f"]
    return found


def outcome(function: Callable[..., Any], arguments: Arguments) -> Any:
    """What a call returns; a raised error is an outcome that equals no value."""
    try:
        return function(*copy.deepcopy(arguments))
    except Exception as error:
        return error


def telling(
    expected: Sequence[Any], others: Sequence[Sequence[Any]], *, least: int, most: int
) -> tuple[list[int], list[int]]:
    """Places of `expected` to test at: the first `least`, then what tells most of the rest apart, up to `most`.

    `others` are the outcomes of each mutant at the same places. Also which mutants are told apart so.
    """
    chosen = list(range(min(least, len(expected))))
    rest = {number for number, other in enumerate(others) if not _differs(expected, other, chosen)}
    while rest and len(chosen) < most:
        told = {
            place: {number for number in rest if _differs(expected, others[number], [place])}
            for place in range(len(expected))
        }
        best = max(told, key=lambda place: len(told[place]))
        if not told[best]:
            break
        chosen.append(best)
        rest -= told[best]
    return chosen, [number for number in range(len(others)) if number not in rest]


def _differs(expected: Sequence[Any], other: Sequence[Any], places: Sequence[int]) -> bool:
    return any(expected[place] != other[place] for place in places)


def _compiles(body: str) -> bool:
    try:
        compile(f"def f():\n{textwrap.indent(body, '    ')}\n", "<mutant>", "exec")
    except SyntaxError:
        return False
    return True
