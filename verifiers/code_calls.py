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

    "suspect" means: this looks like a failure of ours, and a canary has to tell. `reason` then says what it is if the
    canary is well; `before_code` that nothing of the model's had run by then, so that it cannot have been the model.
    """

    how: Literal["passed", "failed", "reference", "suspect"]
    check: Literal["loads", "tests"]
    reason: str
    before_code: bool = False


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
    calls: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()
    loaded = asyncio.Event()

    async def talk_to_solution(box: Conversation) -> None:
        seen.solution_ready = bool(await box.receive())
        if not seen.solution_ready:
            return
        await box.send(json.dumps(job | {"role": "solution", "source": source}).encode())
        answer = _message(await box.receive())
        if "failed" in answer:
            seen.load_failure = str(answer["failed"])
        seen.loaded = "loaded" in answer
        loaded.set()
        while seen.loaded:
            line, reply = await calls.get()
            await box.send(line)
            answered = await box.receive()
            if not reply.done():
                reply.set_result(answered)
            if not answered:
                return

    async def talk_to_tests(box: Conversation) -> None:
        seen.tests_ready = bool(await box.receive())
        if not seen.tests_ready or not await _first(loaded.wait(), solution) or not seen.loaded:
            return
        await box.send(json.dumps(job | {"role": "tests", "tests": reference["tests"]}).encode())
        while line := await box.receive():
            if line.startswith(b'{"end"'):
                seen.end = _message(line)
                return
            seen.calls += 1
            reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            calls.put_nowait((line, reply))
            await _first(reply, solution)
            if not reply.done() or not reply.result():
                seen.unanswered = True
                return
            await box.send(reply.result())

    tests_limits = replace(
        limits, wall_seconds=limits.wall_seconds + GRACE_SECONDS, output_bytes=max(limits.output_bytes, 64 << 20)
    )
    solution = asyncio.ensure_future(sandbox.run(Program(source=BOX, limits=limits), talk_to_solution))
    tests = asyncio.ensure_future(sandbox.run(Program(source=BOX, limits=tests_limits), talk_to_tests))
    try:
        seen.tests = await tests
        # Where the tests came to no end because of the solution, its box ends by itself now, and tells how.
        ended_by_it = seen.tests_ready and (seen.unanswered or not seen.loaded)
        if seen.end is None and (ended_by_it or (solution.done() and not seen.solution_ready)):
            seen.solution = await solution
    finally:
        for task in (solution, tests):
            task.cancel()
        await asyncio.gather(solution, tests, return_exceptions=True)
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
        return Finding(
            how="suspect", check="loads", reason=f"a box did not start: {_fate(broken, limits)}", before_code=True
        )
    if seen.load_failure is not None:
        return Finding(how="failed", check="loads", reason=f"the code does not load: {seen.load_failure}")
    if seen.solution is not None:
        stage: Literal["loads", "tests"] = "tests" if seen.loaded else "loads"
        during = f"in call {seen.calls}" if seen.loaded else "while it was loaded"
        reason = f"the code ended {during} without an answer: {_fate(seen.solution, limits)}"
        return Finding(how="suspect" if suspicious(seen.solution) else "failed", check=stage, reason=reason)
    if seen.calls == 0:
        reason = f"the tests ended before they called the function: {_fate(seen.tests, limits)}"
        return Finding(how="reference", check="tests", reason=reason)
    reason = f"the tests did not survive the answers: {_fate(seen.tests, limits)}"
    doubt = seen.tests is None or suspicious(seen.tests)
    return Finding(how="suspect" if doubt else "failed", check="tests", reason=reason)


def suspicious(execution: Execution) -> bool:
    """Whether this may have been our doing: the backend says so, someone else killed it, or the machine stood still."""
    if execution.status == "wall_timeout":
        return execution.cpu_seconds < 0.5 * execution.wall_seconds
    return execution.status == "sandbox_failure" or execution.signal == 9


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


async def _first(wanted: Any, other: asyncio.Future[Any]) -> bool:
    """Wait for `wanted` or for the end of `other`; whether `wanted` is done."""
    task = asyncio.ensure_future(wanted)
    await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return True
    if not isinstance(wanted, asyncio.Future):
        task.cancel()
    return False
