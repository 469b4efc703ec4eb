"""One episode, from reset to verdict.

    reset -> [ budget -> sample -> parse -> step ]* -> verdict

What goes wrong on our side (an exception in the environment, a verifier that crashes, a time limit) is data: the
episode is recorded with an *invalid* verdict that names the boundary it failed at. Only a dead engine is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlvr.interfaces import Environment, Sampler
from rlvr.rollout.budget import Spent, allowance
from rlvr.rollout.renderer import Renderer
from rlvr.types import Episode, Message, Reply, SamplingParams, Stop, Task, Turn, Verdict


async def play(
    task: Task,
    *,
    episode_id: str,
    environment: Environment,
    sampler: Sampler,
    renderer: Renderer,
    max_model_len: int,
    temperature: float,
    seed: int,
) -> Episode:
    """Play and judge one episode. `environment` is this episode's own. Raises only what `sampler` raises."""
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
                result = await asyncio.to_thread(_call, function, *args)
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

    async def converse() -> Stop:
        transcript.extend(await off_loop("reset", Sequence, environment.reset, task))
        prefix: tuple[int, ...] = ()
        new_ids = renderer.start(transcript, tools=task.tools, note=task.budget.note)
        spent = Spent()
        while True:
            prefix += new_ids
            limits = allowance(task.budget, spent, room=max_model_len - len(prefix))
            if isinstance(limits, str):
                return limits
            params = SamplingParams(
                max_tokens=limits.max_tokens,
                thinking_tokens=limits.thinking_tokens,
                temperature=temperature,
                seed=_mix(seed, episode_id, len(turns)),
            )
            begin = time.perf_counter()
            limit = asyncio.timeout(None if task.budget.seconds is None else task.budget.seconds - (begin - started))
            try:
                async with limit:
                    completion = await sampler.sample(prefix, params, group=task.id)
            except TimeoutError:
                if not limit.expired():
                    raise
                return "time_budget"
            finally:
                timings["sample"] += time.perf_counter() - begin
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
            new_ids = renderer.follow(completion.token_ids, reply.messages)
            spent = Spent(
                thinking_tokens=spent.thinking_tokens + renderer.num_thinking_tokens(completion.token_ids),
                completion_tokens=spent.completion_tokens + len(completion.token_ids),
                turns=len(turns),
                tool_calls=spent.tool_calls + sum(reply_message.role == "tool" for reply_message in reply.messages),
                seconds=time.perf_counter() - started,
            )

    stop: Stop = "error"
    try:
        stop = await converse()
        if stop == "time_budget":
            raise _Invalid("sample", f"the engine took longer than the {task.budget.seconds} s of the episode")
        verdict = await off_loop("verify", Verdict, lambda: environment.verifier().verify(task, tuple(transcript)))
    except _Invalid as failure:
        verdict = failure.verdict
    timings["total"] = time.perf_counter() - started
    return Episode(id=episode_id, task=task, turns=tuple(turns), stop=stop, verdict=verdict, timings=timings)


class _Invalid(Exception):
    """Ours, not the model's; `boundary` is where it was crossed."""

    def __init__(self, boundary: str, reason: str) -> None:
        self.verdict = Verdict(
            outcome="invalid",
            reward=None,
            reason=f"{boundary}: {reason}",
            checks={boundary: False},
            verifier="rlvr.rollout.play",
            version="1",
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
