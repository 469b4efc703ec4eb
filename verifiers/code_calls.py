"""Function tests: the tests in one box, the model's code in another, and here, between them, who is to blame.

    tests box  --call-->  relay  --call-->  solution box
               <-answer-         <-answer-

The relay passes lines on and evaluates nothing. `Boxes` is what it saw; `judge` turns that into a `Finding`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sandbox.base import Conversation, Execution, Limits, Program, Sandbox

BOX = (Path(__file__).parent / "code_box.py").read_text(encoding="utf-8")
GRACE_SECONDS = 5.0  # more for the tests than for the calls that they wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How a test ended.

    "lost" means: a box was lost in the middle of a conversation, which the sandbox cannot repeat. Only repeating it all
    tells whose doing it was. "broken" means that it was ours for certain: nothing of the model's had run by then, or
    the sandbox has said so.
    """

    how: Literal["passed", "failed", "reference", "lost", "broken"]
    check: Literal["loads", "tests"]
    reason: str


@dataclass(slots=True, kw_only=True)
class Boxes:
    """What the relay saw. `None` and `False` until it happened."""

    solution_ready: bool = False
    tests_ready: bool = False
    load_failure: str | None = None
    loaded: bool = False
    calls: int = 0
    unanswered: bool = False
    end: dict[str, Any] | None = None
    solution: Execution | None = None
    tests: Execution | None = None


async def run_function_tests(sandbox: Sandbox, source: str, reference: dict[str, Any], limits: Limits) -> Finding:
    """Run `reference["tests"]` against the entry point of `source`. Raises nothing that either of them does."""
    seen = Boxes()
    job = {"entry_point": reference["entry_point"], "setup": reference["setup"]}
    # `None` and `b""` say that the other side has nothing more to say.
    calls: asyncio.Queue[bytes | None] = asyncio.Queue()
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk_to_solution(box: Conversation) -> None:
        try:
            seen.solution_ready = bool(await box.receive())
            if not seen.solution_ready:
                return
            await box.send(json.dumps(job | {"role": "solution", "source": source}).encode())
            loading = await box.receive()
            seen.load_failure = _message(loading).get("failed")
            seen.loaded = "loaded" in _message(loading)
            if not seen.loaded:
                return
            answers.put_nowait(loading)
            while line := await calls.get():
                await box.send(line)
                answers.put_nowait(await box.receive())
        finally:
            answers.put_nowait(b"")

    async def talk_to_tests(box: Conversation) -> None:
        try:
            seen.tests_ready = bool(await box.receive())
            if not seen.tests_ready or not await answers.get():
                return
            await box.send(json.dumps(job | {"role": "tests", "tests": reference["tests"]}).encode())
            while line := await box.receive():
                if line.startswith(b'{"end"'):
                    seen.end = _message(line)
                    return
                seen.calls += 1
                calls.put_nowait(line)
                answer = await answers.get()
                if not answer:
                    seen.unanswered = True
                    return
                await box.send(answer)
        finally:
            calls.put_nowait(None)

    tests_limits = replace(
        limits, wall_seconds=limits.wall_seconds + GRACE_SECONDS, output_bytes=max(limits.output_bytes, 64 << 20)
    )
    seen.tests, seen.solution = await sandbox.run_together(
        (Program(source=BOX, limits=tests_limits), talk_to_tests),
        (Program(source=BOX, limits=limits), talk_to_solution),
    )
    return judge(seen, limits)


def judge(seen: Boxes, limits: Limits) -> Finding:
    """Who is to blame, by what the relay saw; never by what a program wrote about itself."""
    if seen.end is not None:
        how = seen.end.get("end")
        why = str(seen.end.get("why", ""))
        if how == "passed":
            return Finding(how="passed", check="tests", reason=f"all tests pass ({why})")
        if how == "failed":
            return Finding(how="failed", check="tests", reason=why)
        return Finding(how="reference", check="tests", reason=why)
    if not seen.solution_ready or not seen.tests_ready:
        broken = seen.solution if not seen.solution_ready else seen.tests
        return Finding(how="broken", check="loads", reason=f"a box did not start: {_fate(broken, limits)}")
    if seen.load_failure is not None:
        return Finding(how="failed", check="loads", reason=f"the code does not load: {seen.load_failure}")
    if seen.unanswered or not seen.loaded:
        stage: Literal["loads", "tests"] = "tests" if seen.loaded else "loads"
        during = f"in call {seen.calls}" if seen.loaded else "while it was loaded"
        reason = f"the code ended {during} without an answer: {_fate(seen.solution, limits)}"
        return Finding(how="lost" if _lost(seen.solution) else "failed", check=stage, reason=reason)
    if seen.calls == 0 and not _lost(seen.tests):
        reason = f"the tests ended before they called the function: {_fate(seen.tests, limits)}"
        return Finding(how="reference", check="tests", reason=reason)
    reason = f"the tests did not survive the answers: {_fate(seen.tests, limits)}"
    return Finding(how="lost" if _lost(seen.tests) else "failed", check="tests", reason=reason)


def _lost(execution: Execution | None) -> bool:
    return execution is None or execution.status == "sandbox_failure"


def _fate(execution: Execution | None, limits: Limits) -> str:
    return "nothing is known of it" if execution is None else describe(execution, limits)


def describe(execution: Execution, limits: Limits) -> str:
    """One phrase for a person."""
    if execution.status == "wall_timeout":
        return f"it ran longer than {limits.wall_seconds:g} s"
    if execution.status == "output_limit":
        return f"it wrote more than {limits.output_bytes} bytes"
    if execution.status == "sandbox_failure":
        return f"the sandbox failed: {execution.detail}"
    if execution.status != "finished":
        return execution.status.replace("_", " ")
    if execution.signal is not None:
        limit = f" (its limit of {limits.cpu_seconds:g} CPU seconds)" if execution.signal == 24 else ""
        return f"signal {execution.signal}{limit}"
    last = execution.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
    if execution.exit_code is None:
        return f"stopped{': ' + last if last else ''}"
    return f"exit code {execution.exit_code}{': ' + last if last else ''}"


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
