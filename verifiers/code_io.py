"""Tests of a whole program: what it must write to stdout for a given stdin.

`same_output` is the checker. Its rule, for `checker = "tokens"` (the default): blank lines and the amount of white
space do not count; lines must have the same words in the same order; words are equal as text, or, where the expected
word is written as a decimal (it has a point or an exponent), as numbers within 1e-6, absolute or relative.
`checker = "exact"` compares the text, less white space at the end.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from typing import Any

from sandbox.base import Limits, Program, Sandbox
from verifiers.code_calls import Finding, describe

TOLERANCE = 1e-6
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d{1,3})?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def same_output(expected: str, given: str, checker: str = "tokens") -> bool:
    """See the module."""
    if checker == "exact":
        return expected.rstrip() == given.rstrip()
    wanted = [words for line in expected.split("\n") if (words := line.split())]
    had = [words for line in given.split("\n") if (words := line.split())]
    return len(wanted) == len(had) and all(
        len(ours) == len(theirs) and all(map(_same_word, ours, theirs))
        for ours, theirs in zip(wanted, had, strict=True)
    )


def _same_word(expected: str, given: str) -> bool:
    if expected == given:
        return True
    if len(given) > 400 or not _DECIMAL.fullmatch(expected) or not _NUMBER.fullmatch(given):
        return False
    return math.isclose(float(expected), float(given), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


async def run_io_tests(
    sandbox: Sandbox, source: str, reference: dict[str, Any], limits: Limits, total_seconds: float
) -> Finding:
    """Run `source` once a test, up to the first that fails. Expected outputs never enter a box."""
    started = time.monotonic()
    tests = reference["io"]
    for number, test in enumerate(tests, 1):
        left = total_seconds - (time.monotonic() - started)
        if left <= 0:
            return Finding(
                how="failed", check="tests", reason=f"{number - 1} of {len(tests)} tests took {total_seconds:g} s"
            )
        own = replace(limits, wall_seconds=min(limits.wall_seconds, left))
        stdin = test["input"].encode("utf-8", "surrogatepass")
        execution = await sandbox.run(Program(source=source, stdin=stdin, limits=own))
        if execution.status != "finished" or execution.exit_code != 0:
            reason = f"test {number} of {len(tests)}: {describe(execution, own)}"
            broken = execution.status == "sandbox_failure"  # the sandbox has repeated what can be repeated
            return Finding(how="broken" if broken else "failed", check="tests", reason=reason)
        given = execution.stdout.decode(errors="replace")
        if not same_output(test["output"], given, reference["checker"]):
            reason = f"test {number} of {len(tests)}: wrote {given[:80]!r}, expected {test['output'][:80]!r}"
            return Finding(how="failed", check="tests", reason=reason)
    return Finding(how="passed", check="tests", reason=f"all tests pass ({len(tests)} inputs)")
