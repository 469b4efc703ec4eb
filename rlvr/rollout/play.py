"""One episode, from reset to verdict.

    reset -> [ budget -> complete -> parse -> step ]* -> verdict

What goes wrong on our side (an exception in the environment, a verifier that crashes, a time limit) is data: the
episode is recorded with an *invalid* verdict that names the boundary it failed at. Only a dead engine is an error.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, TypeVar

from rlvr.interfaces import Environment, Sampler
from rlvr.rollout.budget import Allowance, Spent, allowance
from rlvr.rollout.completion import complete
from rlvr.rollout.renderer import Renderer
from rlvr.types import OVER_BUDGET_STOPS, Completion, Episode, Message, Reply, Stop, Task, Turn, Verdict

_T = TypeVar("_T")


async def play(
    task: Task,
    *,
    episode_id: str,
    environment: Environment,
    sampler: Sampler,
    renderer: Renderer,
    max_model_len: int,
    temperature: float,
    seed: int | str,
    threads: Executor | None = None,
) -> Episode:
    """Play and judge one episode. `environment` is this episode's own, and called in `threads` (default: the loop's).

    `seed` and the number of the turn fix each draw; `episode_id` is a name, and fixes nothing.

    Raises only what `sampler` raises.
    """
    started = time.perf_counter()
    timings = {"sample": 0.0, "environment": 0.0, "verify": 0.0}
    turns: list[Turn] = []
    transcript: list[Message] = []

    async def off_loop(boundary: str, kind: type[Any], function: Callable[..., Any], *args: Any) -> Any:
        """Call the environment's code in a thread, within the time that is left; it must return a `kind`."""
        begin = time.perf_counter()
        limit = asyncio.timeout(None if task.budget.seconds is None else task.budget.seconds - (begin - started))
        try:
            async with limit:
                result = await asyncio.get_running_loop().run_in_executor(threads, _call, function, *args)
                if inspect.isawaitable(result):
                    result = await result
            if not isinstance(result, kind):
                raise TypeError(f"returned {result!r}, not a {kind.__name__}")
            return result
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise _Invalid(boundary, f"took longer than the {task.budget.seconds} s of the episode") from None
            raise _Invalid(boundary, repr(error)) from error
        finally:
            timings["verify" if boundary == "verify" else "environment"] += time.perf_counter() - begin

    def render(function: Callable[..., _T], *args: Any, **options: Any) -> _T:
        """Messages to tokens; a template that refuses them is a fault of ours."""
        try:
            return function(*args, **options)
        except Exception as error:
            raise _Invalid("render", repr(error)) from error

    async def sample(prefix: tuple[int, ...], limits: Allowance) -> Completion | None:
        """The model's turn; `None` where the episode's time ran out in it."""
        begin = time.perf_counter()
        limit = asyncio.timeout(None if task.budget.seconds is None else task.budget.seconds - (begin - started))
        parts = (seed, len(turns))
        try:
            async with limit:
                return await complete(
                    prefix,
                    allowance=limits,
                    marks=marks,
                    thought_open=renderer.opens_thought(prefix),
                    sampler=sampler,
                    group=task.id,
                    temperature=temperature,
                    seed=lambda call: _mix(*parts, call) if call else _mix(*parts),
                )
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            timings["sample"] += time.perf_counter() - begin

    async def converse() -> Stop:
        nonlocal task
        transcript.extend(await off_loop("reset", Sequence, environment.reset, task))
        prefix: tuple[int, ...] = ()
        new_ids = render(renderer.start, transcript, tools=task.tools, note=task.budget.note)
        # The record tells what was asked, so that the transcript can be judged again from it.
        task = dataclasses.replace(task, prompt=tuple(transcript))
        spent = Spent()
        while True:
            prefix += new_ids
            limits = allowance(task.budget, spent, room=max_model_len - len(prefix))
            if isinstance(limits, str):
                return limits
            completion = await sample(prefix, limits)
            if completion is None:
                return "time_budget"
            message = renderer.parse(prefix, completion.token_ids)
            transcript.append(message)
            cut_off = completion.finish_reason == "length"
            if cut_off:
                reply = Reply(done=True)
            else:
                reply = await off_loop("step", Reply, environment.step, message)
            turns.append(Turn(prompt_ids=new_ids, completion=completion, message=message, reply=reply))
            if cut_off:
                return "completion_budget"
            if reply.done:
                return "answered"
            transcript.extend(reply.messages)
            prefix += completion.token_ids
            new_ids = render(renderer.follow, completion.token_ids, reply.messages)
            spent = Spent(
                thinking_tokens=spent.thinking_tokens + completion.num_thinking_tokens,
                completion_tokens=spent.completion_tokens + len(completion.token_ids),
                turns=len(turns),
                tool_calls=spent.tool_calls + sum(reply_message.role == "tool" for reply_message in reply.messages),
                seconds=time.perf_counter() - started,
            )

    stop: Stop = "error"
    try:
        marks = render(renderer.marks, task.budget.closing)
        stop = await converse()
        if stop == "time_budget":
            raise _Invalid("sample", f"the engine took longer than the {task.budget.seconds} s of the episode")
        if task.budget.over_budget == "incorrect" and stop in OVER_BUDGET_STOPS:
            verdict = _verdict("incorrect", f"over budget: {stop}", {"budget": False})
        else:
            verdict = await off_loop("verify", Verdict, lambda: environment.verifier().verify(task, tuple(transcript)))
    except _Invalid as failure:
        verdict = failure.verdict
    timings["total"] = time.perf_counter() - started
    return Episode(id=episode_id, task=task, turns=tuple(turns), stop=stop, verdict=verdict, timings=timings)


class _Invalid(Exception):
    """Ours, not the model's; `boundary` is where it was crossed."""

    def __init__(self, boundary: str, reason: str) -> None:
        self.verdict = _verdict("invalid", f"{boundary}: {reason}", {boundary: False})


def _verdict(outcome: Literal["incorrect", "invalid"], reason: str, checks: dict[str, bool]) -> Verdict:
    """One that no verifier was asked for."""
    reward = -1.0 if outcome == "incorrect" else None
    return Verdict(
        outcome=outcome, reward=reward, reason=reason, checks=checks, verifier="rlvr.rollout.play", version="1"
    )


def _call(function: Callable[..., Any], *args: Any) -> Any:
    # No future carries these two out of a thread: the first never wakes its waiter, the second ends the event loop.
    try:
        return function(*args)
    except (StopIteration, SystemExit) as error:
        raise RuntimeError(repr(error)) from error


def _mix(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
