"""The same environment in another process, as a Ray worker has it: made there by name, given tasks, asked for golds.

`ask` is called here; `python -m rlvr.kit.checks.elsewhere` is the other process. What travels goes through Ray's own
serializer in both directions, and the other process has a hash seed of its own.
"""

from __future__ import annotations

import asyncio
import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlvr.errors import DeadlineExceeded, PluginError
from rlvr.kit.scripted import ScriptedSampler, renderer, say
from rlvr.kit.subject import Subject
from rlvr.plugins import make_environment
from rlvr.rollout.play import play
from rlvr.types import Episode, Message, Split, Task

_START_SECONDS = 60.0
_MAX_MODEL_LEN = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`golds` are tasks with what to say in each."""

    name: str
    settings: dict[str, Any]
    counts: dict[Split, int]
    golds: tuple[tuple[Task, tuple[Message, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The first tasks of each split, and the episode of each gold."""

    tasks: dict[Split, tuple[Task, ...]]
    episodes: tuple[Episode, ...]


async def ask(subject: Subject, *, golds: Sequence[tuple[Task, tuple[Message, ...]]]) -> Report:
    """Raises `PluginError` with what the other process wrote, and `DeadlineExceeded`."""
    from ray import cloudpickle

    request = Request(
        name=subject.name,
        settings=subject.settings,
        counts={split: len(tasks) for split, tasks in subject.read.items()} if not golds else {},
        golds=tuple(golds),
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    limit = _START_SECONDS + subject.seconds
    try:
        async with asyncio.timeout(limit):
            output, errors = await process.communicate(cloudpickle.dumps(request))
    except TimeoutError:
        raise DeadlineExceeded("another process to make the environment and play its golds", limit) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise PluginError(f"in another process: {''.join(last)}")
    # Its own messages, if the environment prints any, come first.
    report: Report = cloudpickle.loads(output.rpartition(_MARK)[2])
    return report


_MARK = b"\nrlvr-report\n"


async def _answer(request: Request) -> Report:
    environment = make_environment(request.name, request.settings)
    environment.setup()
    try:
        tasks = {split: tuple(islice(environment.tasks(split), count)) for split, count in request.counts.items()}
        episodes = [
            await play(
                task,
                episode_id=f"{task.id}@elsewhere",
                environment=copy.copy(environment),
                sampler=ScriptedSampler(say(*messages)),
                renderer=renderer(),
                max_model_len=_MAX_MODEL_LEN,
                temperature=1.0,
                seed=0,
            )
            for task, messages in request.golds
        ]
    finally:
        environment.close()
    return Report(tasks=tasks, episodes=tuple(episodes))


def _main() -> None:
    from ray import cloudpickle

    from rlvr.kit.checks import elsewhere  # by its real name: what travels belongs to it, not to __main__

    request = cloudpickle.loads(sys.stdin.buffer.read())
    report = asyncio.run(elsewhere._answer(request))
    sys.stdout.flush()
    sys.stdout.buffer.write(_MARK + cloudpickle.dumps(report))


if __name__ == "__main__":
    _main()
