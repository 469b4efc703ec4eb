"""Checks of how an environment runs: threads, time, other episodes, other processes, faults."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from rlvr.kit.checks import elsewhere
from rlvr.kit.checks.check import Complaints, brief, check
from rlvr.kit.scripted import TextTokenizer, say
from rlvr.kit.subject import Subject, transcript
from rlvr.rollout.renderer import Renderer
from rlvr.types import Episode, Message, Task, Verdict

_NUM_TASKS = 3
_GRACE_SECONDS = 5.0
_OVERDUE = "took longer than"


@check(remedy="give every call a limit of its own, below the episode's; look for loops, sleeps and waits without one")
async def in_time(subject: Subject) -> Complaints:
    """every call comes back within the episode's time"""
    tasks = subject.tasks[:_NUM_TASKS]
    episodes = await subject.play_all(
        [(task, say()) for task in tasks] + [(task, _gold(subject, task)) for task in tasks]
    )
    return [f"{episode.task.id!r}: {brief(_reason(episode))}" for episode in episodes if _OVERDUE in _reason(episode)]


def _gold(subject: Subject, task: Task) -> Any:
    try:
        return say(*subject.gold(task))
    except Exception:  # `gold` itself is another check's business
        return say()


def _reason(episode: Episode) -> str:
    return episode.verdict.reason if episode.verdict.outcome == "invalid" else ""


@check(
    remedy="no signal.alarm; no objects bound to one thread (sqlite3: check_same_thread=False); no own event loop",
    needs=["in_time"],
)
async def any_thread(subject: Subject) -> Complaints:
    """what works on the main thread works in any other, each call in a new one"""
    complaints = []
    for task in subject.tasks[:_NUM_TASKS]:
        messages = subject.gold(task)
        episode = await subject.play(task, say(*messages))
        if episode.verdict.outcome == "invalid" and await _works_here(subject, task, messages):
            complaints.append(f"{task.id!r}: {brief(episode.verdict.reason)}; on the main thread it works")
    return complaints


async def _works_here(subject: Subject, task: Task, messages: Sequence[Message]) -> bool:
    environment = subject.single_use()

    async def call(function: Any, *arguments: Any) -> Any:
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result

    try:
        seen = list(await call(environment.reset, task))
        for message in messages:
            seen.append(message)
            reply = await call(environment.step, message)
            seen += reply.messages
            if reply.done:
                break
        verdict: Verdict = environment.verifier().verify(task, tuple(seen))
    except Exception:
        return False
    return verdict.outcome != "invalid"


@check(
    remedy="let asyncio.CancelledError through (no bare except, no except BaseException), and end what a call began",
    needs=["in_time", "any_thread"],
)
async def cancellation(subject: Subject) -> Complaints:
    """an episode that is cancelled in any of its calls ends at once, and its calls end soon"""
    task = subject.tasks[0]
    num_calls = subject.threads.num_begun
    await subject.play(task, _gold(subject, task))
    num_calls = subject.threads.num_begun - num_calls
    for number in range(1, num_calls + 1):
        begun = asyncio.create_task(subject.threads.begun(subject.threads.num_begun + number))
        episode = asyncio.create_task(subject.play(task, _gold(subject, task)))
        await asyncio.wait({begun, episode}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        await asyncio.sleep(0.01)  # into the middle of the call
        if not episode.cancel():
            continue
        await asyncio.wait({episode}, timeout=_GRACE_SECONDS)
        if not episode.done():
            return [f"{task.id!r}: cancelled in call {number}, it still ran after {_GRACE_SECONDS:g} s"]
        if not episode.cancelled():
            return [f"{task.id!r}: cancelled in call {number}, it went on as if nothing had been"]
    if not await subject.threads.idle(subject.seconds):
        return [f"{task.id!r}: {subject.threads.num_running} calls still ran {subject.seconds:g} s after the end"]
    return []


@check(
    remedy="judge the transcript alone, with no clock, chance, network or memory; rlvr verify judges it again offline",
    needs=["in_time", "any_thread"],
)
async def repeatable(subject: Subject) -> Complaints:
    """the same transcript earns the same verdict, again, in any order, by an environment that never played it"""
    tasks = subject.tasks[:_NUM_TASKS]
    episodes = await subject.play_all(
        [(task, say()) for task in tasks] + [(task, _gold(subject, task)) for task in tasks]
    )
    judged = [episode for episode in episodes if episode.verdict.outcome != "invalid"]
    complaints = []
    for round_ in (judged, judged[::-1], judged):
        for episode in round_:
            verifier = subject.single_use().verifier()
            again = await asyncio.to_thread(verifier.verify, episode.task, transcript(episode))
            if _essence(again) != _essence(episode.verdict):
                complaints.append(
                    f"{episode.task.id!r}: {episode.verdict.outcome} ({brief(episode.verdict.reason, 60)}), and judged "
                    f"again {again.outcome} ({brief(again.reason, 60)})"
                )
    return complaints


def _essence(verdict: Verdict) -> tuple[object, ...]:
    return verdict.outcome, verdict.reason, verdict.checks


@check(
    remedy="make state in `reset`, as a new object on self; nothing mutable on the class, the module or from `setup`",
    needs=["in_time", "any_thread", "repeatable"],
)
async def isolation(subject: Subject) -> Complaints:
    """episodes side by side and one after another see nothing of each other"""
    tasks = subject.tasks[:_NUM_TASKS]
    silent = say()
    before = await subject.play_all((task, silent) for task in tasks)
    attempts = [(task, script) for task in tasks for script in (_gold(subject, task), silent, _gold(subject, task))]
    mixed = await subject.play_all(attempts)
    after = await subject.play_all((task, silent) for task in tasks)
    golds = await subject.play_golds(tasks)
    complaints = []
    for index, task in enumerate(tasks):
        alike = (before[index], mixed[3 * index + 1], after[index])
        if len({_course(episode) for episode in alike}) > 1:
            complaints.append(f"{task.id!r}: the same words got other replies or another verdict beside a gold episode")
        if len({_course(episode) for episode in (mixed[3 * index], mixed[3 * index + 2], golds[index])}) > 1:
            complaints.append(f"{task.id!r}: the gold got other replies or another verdict beside other episodes")
    first, second = subject.single_use(), subject.single_use()
    if first is second or first is subject.environment:
        complaints.append("copy.copy(environment) is the environment itself: episodes would share one object")
    return complaints


def _course(episode: Episode) -> tuple[object, ...]:
    return tuple(turn.reply for turn in episode.turns), episode.stop, episode.verdict.outcome, episode.verdict.reason


@check(
    remedy="workers make the environment from name and settings: what judging needs is in the task or in these",
    needs=["in_time", "any_thread", "stable", "gold", "repeatable", "isolation"],
)
async def other_process(subject: Subject) -> Complaints:
    """in another process, where no task was drawn, tasks that arrive through Ray's serializer earn the same"""
    tasks = subject.tasks[:_NUM_TASKS]
    here = await subject.play_golds(tasks)
    report = await elsewhere.ask(subject, golds=[(task, subject.gold(task)) for task in tasks])
    return [
        f"{task.id!r}: {ours.verdict.outcome} here, there {theirs.verdict.outcome}, {brief(theirs.verdict.reason)}"
        for task, ours, theirs in zip(tasks, here, report.episodes, strict=True)
        if _course(ours) != _course(theirs)
    ]


@check(
    remedy="catch in `step` only what the model can cause; let the rest out, so that the episode becomes invalid",
    needs=["in_time", "any_thread"],
)
async def fault_in_step(subject: Subject) -> Complaints:
    """a fault of the environment's own in `step` makes its episode invalid, and no other

    The fault is first a message that raises when it is read, then a `step` that raises.
    """
    task = subject.tasks[0]
    complaints = []
    message, environment = _Unreadable(), subject.single_use()
    setattr(environment, "verifier", _raise)  # noqa: B010 - so that nothing but `step` reads the message
    episode = await subject.play(task, say(), environment=environment, drawn=_Rendering(message))
    if message.was_read and episode.verdict.checks.get("step") is not False:
        complaints.append("step swallowed an exception that was not the model's doing")
    faulty, sound = subject.single_use(), subject.single_use()
    setattr(faulty, "step", _raise)  # noqa: B010 - mypy takes a method for constant
    episodes = await asyncio.gather(
        subject.play(task, say(), environment=faulty), subject.play(task, say(), environment=sound)
    )
    if [episode.verdict.outcome == "invalid" for episode in episodes] != [True, False]:
        reasons = "; ".join(brief(episode.verdict.reason) for episode in episodes)
        complaints.append(f"of two episodes, the first with a step that raises: {reasons}")
    return complaints


class _Unreadable:
    """In place of a message: a fault of the kit's as soon as anything is read of it."""

    was_read = False

    def __getattr__(self, name: str) -> Any:
        self.was_read = True
        raise RuntimeError("a fault that the kit made")


class _Rendering(Renderer):
    """Gives `step` the same thing whatever was sampled."""

    def __init__(self, message: Any) -> None:
        super().__init__(TextTokenizer())
        self._message = message

    def parse(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Message:
        message: Message = self._message
        return message


def _raise(*_: Message) -> Any:
    raise RuntimeError("a fault that the kit made")
