"""Judges code by running it against the task's tests, in boxes that share nothing with them.

    answer --extract--> source --+-- function tests: verifiers.code_calls     reference {"entry_point", "tests"}
                                 +-- stdin and stdout: verifiers.code_io      reference {"io": [{"input", "output"}]}

    reference, function tests   `tests` is HumanEval's `def check(candidate): ...`, or bare asserts on the entry point
                                (a text, or a list of them). Optional `setup`: code that both sides need first
                                (imports, helpers of the prompt). `entry_point` may be a method, "Solution.f".
    reference, both             optional `limits` (fields of `sandbox.base.Limits`, and `total_seconds`), `solution` (a
                                gold answer), `checker` (see `verifiers.code_io`)

Why it cannot be fooled: the verdict is what the *tests' box* says, and the model's code never enters that box. Its
values cross as plain data, so there is no frame to look into, no `__eq__` of its own, no harness to rewrite, and what
it prints or exits with says nothing. What the model's code sees of a test is the arguments of the calls.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from rlvr.types import Message, Task, Verdict, judged
from sandbox.base import Limits, Program, Sandbox
from sandbox.blocking import run_blocking
from sandbox.pool import TRIES
from sandbox.shared import Kind, shared_sandbox
from verifiers.code_calls import Finding, run_function_tests
from verifiers.code_io import run_io_tests

MAX_SOURCE = 200_000  # characters
TOTAL_SECONDS = 60.0  # of all runs on stdin and stdout together

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_PYTHON = {"python", "python3", "py", "py3"}
_HERE = Path(__file__).parent
_CODE = b"".join((_HERE / f"{name}.py").read_bytes() for name in ("code", "code_box", "code_calls", "code_io"))


class ReferenceProblem(ValueError):
    """The task's reference cannot be used; says which field and why."""


class CodeVerifier:
    """Correct when every test passes. Invalid when the reference is at fault, or the sandbox.

    `sandbox` names a backend, whose boxes all verifiers of this process share, or is a `Sandbox` that belongs to the
    event loop of `sandbox.blocking`.
    """

    id = "code"

    def __init__(self, sandbox: Kind | Sandbox = "auto", limits: Limits | None = None) -> None:
        """Raises `sandbox.pool.SandboxUnavailable`, which says what to install."""
        self._sandbox = shared_sandbox(sandbox) if isinstance(sandbox, str) else sandbox
        self._limits = limits or Limits()
        settings = f"{asdict(self._limits)} {TOTAL_SECONDS}"
        self.version = hashlib.sha256(_CODE + settings.encode()).hexdigest()[:12]

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """See `rlvr.interfaces.Verifier`. Blocks until the boxes are gone; any thread will do."""
        checks = {"code": False, "loads": False, "tests": False}
        verdict = partial(judged, self, checks=checks, started=perf_counter())

        try:
            reference, limits, total_seconds = self._read(task.reference)
        except ReferenceProblem as error:
            return verdict("invalid", f"the reference of task {task.id}: {error}")
        source = extract(_answer(transcript))
        if why := _no_code(source, _answer(transcript), reference):
            return verdict("incorrect", why)
        checks["code"] = True
        try:
            finding = run_blocking(self._find(source, reference, limits, total_seconds))
        except Exception as error:
            return verdict("invalid", f"sandbox: {error!r}")
        checks["loads"] = finding.how in ("passed", "failed") and finding.check == "tests"
        checks["tests"] = finding.how == "passed"
        if finding.how == "reference":
            return verdict("invalid", f"the reference of task {task.id}: {finding.reason}")
        if finding.how in ("lost", "broken"):
            return verdict("invalid", f"sandbox: {finding.reason}")
        return verdict("correct" if finding.how == "passed" else "incorrect", finding.reason)

    def explain(self, task: Task, transcript: Sequence[Message]) -> list[str]:
        """What would be run, and against what: lines for a person."""
        source = extract(_answer(transcript))
        lines = ["extracted code:", *(f"    {line}" for line in source.splitlines()[:60])]
        try:
            reference, limits, _ = self._read(task.reference)
        except ReferenceProblem as error:
            return [*lines, f"reference: {error}"]
        kind = f"{len(reference['io'])} inputs" if "io" in reference else f"calls of {reference['entry_point']}"
        return [*lines, f"tested by: {kind}", f"limits: {limits.wall_seconds:g} s, {limits.memory_bytes >> 20} MiB"]

    def _read(self, reference: dict[str, Any]) -> tuple[dict[str, Any], Limits, float]:
        """The reference with every optional field filled in. Raises `ReferenceProblem`."""
        if "io" in reference:
            tests = reference["io"]
            if not isinstance(tests, list) or not tests:
                raise ReferenceProblem("io: a list of at least one {input, output} is needed")
            for number, test in enumerate(tests):
                if not (isinstance(test, dict) and all(isinstance(test.get(key), str) for key in ("input", "output"))):
                    raise ReferenceProblem(f"io.{number}: {{input, output}}, both texts, is needed")
            if reference.get("checker", "tokens") not in ("tokens", "exact"):
                raise ReferenceProblem(f"checker: {reference['checker']!r} is neither tokens nor exact")
            full = {"io": tests, "checker": reference.get("checker", "tokens")}
        else:
            tests, name = reference.get("tests"), reference.get("entry_point")
            if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
                tests = "\n".join(tests)
            if not isinstance(tests, str) or not isinstance(name, str):
                raise ReferenceProblem("entry_point and tests, or io, are needed")
            if not all(part.isidentifier() for part in name.split(".")) or name.count(".") > 1:
                raise ReferenceProblem(f"entry_point: {name!r} is no name of a function or a method")
            full = {"entry_point": name, "tests": tests, "setup": str(reference.get("setup", ""))}
        given = dict(reference.get("limits") or {})
        total_seconds = given.pop("total_seconds", TOTAL_SECONDS)
        known = {field.name for field in fields(Limits)}
        for key, value in [*given.items(), ("total_seconds", total_seconds)]:
            if key not in known | {"total_seconds"} or not isinstance(value, (int, float)) or not value > 0:
                raise ReferenceProblem(f"limits.{key}: not a positive number, or none of {', '.join(sorted(known))}")
        return full, replace(self._limits, **given), float(total_seconds)

    async def _find(self, source: str, reference: dict[str, Any], limits: Limits, total_seconds: float) -> Finding:
        """Run the tests. What loses one box after another while canaries live in others is the model's own doing."""
        if "io" in reference:
            return await run_io_tests(self._sandbox, source, reference, limits, total_seconds)
        for _ in range(TRIES):
            finding = await run_function_tests(self._sandbox, source, reference, limits)
            if finding.how != "lost" or not await self._sandbox.healthy(Program(source=source, limits=limits)):
                return finding
        return replace(finding, how="failed")


def _no_code(source: str, answer: str, reference: dict[str, Any]) -> str:
    """Why this need not be run to be known as wrong, if so. Looks at the text alone: to compile it here is not safe."""
    if not source.strip():
        return "no code in the answer"
    if len(source) > MAX_SOURCE:
        return f"code of {len(source)} characters, and at most {MAX_SOURCE} are run"
    if "\0" in source:
        return "code with a null character, which Python does not read"
    if source is answer and "entry_point" in reference and reference["entry_point"].partition(".")[0] not in source:
        return f"no code block, and a text that does not name {reference['entry_point']}"
    return ""


def extract(answer: str) -> str:
    """The code of an answer: the last fenced block labelled as Python; else the last fenced block; else all of it.

    A block that never closes counts only where no other does, and ends with the answer.
    """
    blocks: list[tuple[str, str]] = []
    open_block: tuple[str, str, int] | None = None
    for match in _FENCE.finditer(answer):
        fence, label = match.group(1), match.group(2).strip()
        if open_block is None:
            open_block = (fence, label, match.end() + 1)
        elif not label and fence.startswith(open_block[0]):
            blocks.append((open_block[1], answer[open_block[2] : match.start()]))
            open_block = None
    if not blocks and open_block is not None:
        blocks.append((open_block[1], answer[open_block[2] :]))
    if not blocks:
        return answer
    python = [text for label, text in blocks if label.split(" ")[0].lower() in _PYTHON]
    return textwrap.dedent(python[-1] if python else blocks[-1][1])


def _answer(transcript: Sequence[Message]) -> str:
    return next((message.content for message in reversed(transcript) if message.role == "assistant"), "")
