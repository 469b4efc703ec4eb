"""What a model is told of a failing attempt: all of a public test, and of a hidden one only the kind of failure.

A hidden test's input may come back in the text of an error that the model's own code raised, so no text of the verdict
is passed on there: it is sorted into one of the sentences below.
"""

from __future__ import annotations

import re
from typing import Any

from rlvr.types import Verdict

HIDDEN = "Your code passes the public tests, and fails a hidden one: "
_KINDS = (
    (re.compile(r"^AssertionError\b|: wrote '"), "wrong result."),
    (re.compile(r"ran longer than|CPU seconds|tests took"), "too slow."),
    (re.compile(r"MemoryError|out of memory"), "too much memory."),
    (re.compile(r"wrote more than"), "too much output."),
)
# Of the errors that the box names, those whose name tells nothing of the input.
_ERROR = re.compile(
    r"(?:^|: )(TypeError|ValueError|IndexError|KeyError|ZeroDivisionError|AttributeError|NameError|RecursionError|"
    r"UnboundLocalError|OverflowError|EOFError)\b"
)


def public_reference(reference: dict[str, Any], num: int) -> dict[str, Any]:
    """The reference with its first `num` tests alone."""
    key = "io" if "io" in reference else "tests"
    return reference | {key: reference[key][:num]}


def of_public(verdict: Verdict) -> str:
    """Nothing is hidden here."""
    return f"Your code fails: {verdict.reason}\nWrite it again, whole."


def of_hidden(verdict: Verdict) -> str:
    """One of a few sentences, whatever the model's code did to be told more."""
    if not verdict.checks.get("loads", False):
        return of_public(verdict)  # no test had run
    kind = next((sentence for pattern, sentence in _KINDS if pattern.search(verdict.reason)), "")
    error = _ERROR.search(verdict.reason)
    return f"{HIDDEN}{kind or (f'it raises {error[1]}.' if error else 'it fails.')}\nWrite it again, whole."
