"""Judges a conversation by the world that it leaves behind: its end state, and the rules kept on the way.

    transcript -> the assistant's messages, played again in a fresh world -> rules kept? -> an accepted end state?

The world is the environment's (`Simulation`), and the very one that answered while the model talked; so only what the
assistant wrote counts, and an episode log is all that is needed. The reference of a task holds, beside what the
environment starts its world from,

    {"states": [{"tickets": {"T-7": {"status": "closed"}}}, ...],   accepted ends, each as what changed from the start;
                                                                   null stands for what is gone
     "ignore": ["notes", "tickets.*.subject"]}                      fields that do not count
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from rlvr.types import Message, Outcome, Reply, Task, Verdict, judged
from verifiers import tool_calls
from verifiers.tool_calls import compare_states


class Simulation(Protocol):
    """One run of a world. Deterministic: the same messages get the same answers. What it raises is a fault of ours."""

    def answer(self, message: Message) -> Reply:
        """The answer to an assistant's message; after one that is `done` there are no more."""
        ...

    def state(self) -> Any:
        """The state as JSON values."""
        ...

    def broken_rules(self) -> Sequence[str]:
        """What was done against the rules so far, a sentence each."""
        ...


class WorldVerifier:
    """Correct when no rule was broken and the end state is an accepted one. `start` makes a fresh world of a reference.

    `sources` are the files of the world's code: the verdict depends on them, so the version does.
    """

    def __init__(self, id: str, start: Callable[[dict[str, Any]], Simulation], sources: Sequence[Path]) -> None:
        self.id = id
        self._start = start
        code = b"".join(path.read_bytes() for path in (Path(__file__), Path(tool_calls.__file__), *sources))
        self.version = hashlib.sha256(code).hexdigest()[:12]

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """Never raises; a world or a reference that does makes the verdict invalid."""
        begin = perf_counter()
        checks = {"answered": False, "rules": False, "state": False}

        def verdict(outcome: Outcome, reason: str) -> Verdict:
            return judged(self, outcome, reason, checks=checks, started=begin)

        said = transcript[len(task.prompt) :]
        checks["answered"] = any(message.role == "assistant" for message in said)
        if not checks["answered"]:
            return verdict("incorrect", "no answer")
        try:
            world = self._start(task.reference)
            before = world.state()
            for _ in _replay(world, said):
                pass
            broken = world.broken_rules()
            accepted = [applied(before, changes) for changes in task.reference["states"]]
            wrong = compare_states(world.state(), accepted, task.reference.get("ignore", ()))
        except Diverged as error:
            return verdict("invalid", f"task {task.id}: {error}")
        except Exception as error:  # the environment's code, or a reference that it cannot start from
            return verdict("invalid", f"the world of task {task.id} failed: {error!r}")
        checks["rules"], checks["state"] = not broken, wrong is None
        if broken:
            return verdict("incorrect", broken[0])
        return verdict("correct", "an accepted end state") if wrong is None else verdict("incorrect", wrong)

    def explain(self, task: Task, transcript: Sequence[Message]) -> Iterator[str]:
        """The conversation as it was played again, for a person."""
        try:
            world = self._start(task.reference)
            for message in _replay(world, transcript[len(task.prompt) :]):
                yield f"    {message.role}: {message.content[:500]}"
            yield from (f"    broken: {rule}" for rule in world.broken_rules())
        except Exception as error:
            yield f"    the world failed: {error!r}"


class Diverged(Exception):
    """A transcript holds other answers than the world gives: it is of another world, or of other code."""


def _replay(world: Simulation, said: Sequence[Message]) -> Iterator[Message]:
    """Play the assistant's messages up to the end of the conversation; yields all messages as they come about.

    Answers that the transcript holds must be the world's own. It may hold none (gold answers; an episode's last turn).
    """
    for index, message in enumerate(said):
        if message.role != "assistant":
            continue
        reply = world.answer(message)
        yield from (message, *reply.messages)
        answers = []
        for following in said[index + 1 :]:
            if following.role == "assistant":
                break
            answers.append((following.role, following.content))
        if answers and answers != [(answer.role, answer.content) for answer in reply.messages]:
            raise Diverged(f"message {index + 1} was answered otherwise than this world answers")
        if reply.done:
            return


def changes(before: Any, after: Any) -> Any:
    """What `after` has otherwise than `before`, nested as they are; null for what is gone. JSON objects of objects."""
    found: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            inner = changes(old, value)
            if inner:
                found[key] = inner
        elif key not in before or old != value:
            found[key] = value
    return found


def applied(before: Any, found: Any) -> Any:
    """`before` with the changes that `changes` found: `applied(a, changes(a, b)) == b`, where b holds no null."""
    after = dict(before)
    for key, value in found.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, dict) and isinstance(after.get(key), dict):
            after[key] = applied(after[key], value)
        else:
            after[key] = value
    return after
