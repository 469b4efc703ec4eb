"""The conformance kit: `run` plays an environment through every check, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlvr.kit.checks import answers, running, tasks
from rlvr.kit.checks.check import Check, NotApplicable, brief
from rlvr.kit.subject import Subject

CHECKS: tuple[Check, ...] = (
    tasks.well_formed,
    tasks.unique_ids,
    tasks.stable,
    tasks.disjoint_splits,
    tasks.hidden_reference,
    running.in_time,
    running.any_thread,
    answers.gold,
    answers.silence,
    answers.doing_nothing,
    answers.wrong_answer,
    answers.echo,
    answers.hedge,
    answers.altered_gold,
    answers.hostile_text,
    running.repeatable,
    running.isolation,
    running.fault_in_step,
    running.cancellation,
    running.other_process,
)

Status = Literal["passed", "failed", "not run", "does not apply"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one check. `complaints` of one that was not run say why."""

    check: Check
    status: Status
    complaints: tuple[str, ...] = ()


def run(subject: Subject, *, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Every check, in order. Never raises on what the environment does."""

    async def all_checks() -> list[Result]:
        asyncio.get_running_loop().set_default_executor(subject.threads)
        results: dict[str, Result] = {}
        for check in CHECKS:
            progress(check.name)
            results[check.name] = await _run_one(check, subject, results)
        return list(results.values())

    # Not asyncio.run: at its end it waits for every task, and one that refuses to be cancelled would never let it go.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(all_checks())
    finally:
        loop.close()


async def _run_one(check: Check, subject: Subject, earlier: dict[str, Result]) -> Result:
    blocking = [name for name in check.needs if earlier[name].status in ("failed", "not run")]
    if blocking:
        return Result(check=check, status="not run", complaints=(f"needs {', '.join(blocking)}",))
    try:
        complaints = await check.run(subject)
    except NotApplicable as reason:
        return Result(check=check, status="does not apply", complaints=(str(reason),))
    except Exception as error:
        return Result(check=check, status="failed", complaints=(brief(f"the environment raised {error!r}", 300),))
    return Result(check=check, status="failed" if complaints else "passed", complaints=tuple(complaints))
