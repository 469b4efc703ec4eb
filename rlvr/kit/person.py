"""`rlvr env play`: a person is the policy. What the model would see is printed, what the person writes is judged."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from rlvr.errors import ConfigError
from rlvr.interfaces import Environment
from rlvr.kit.scripted import TextTokenizer, as_completion, renderer
from rlvr.plugins import make_environment
from rlvr.rollout.play import play as play_episode
from rlvr.types import Budget, Completion, Episode, Message, Reply, SamplingParams, Split, Task

_HELP = "Write your answer; a line with a single dot sends it. :gold shows a right one, :skip goes on, :quit ends."
_STYLES = {"system": "dim", "user": "cyan", "tool": "yellow", "assistant": "green"}
_MARKS = {"correct": "bold green", "incorrect": "bold red", "invalid": "bold yellow"}


class _Leave(Exception):
    """The person wants no more of this task; `all_of_them`: of any."""

    def __init__(self, *, all_of_them: bool) -> None:
        self.all_of_them = all_of_them
        super().__init__()


def play(name: str, settings: dict[str, Any], *, split: Split, first: int = 0) -> int:
    """Play tasks of a split until the person has enough. The exit code. Raises `PluginError`, `ConfigError`."""
    console = Console()
    environment = make_environment(name, settings)
    environment.setup()
    try:
        tasks = islice(environment.tasks(split), first, None)
        task = next(tasks, None)
        if task is None:
            raise ConfigError(f"environment {name!r} has no {split} task number {first}")
        console.print(f"[dim]{_HELP}[/]")
        while task is not None:
            try:
                asyncio.run(play_task(task, copy.copy(environment), console, sys.stdin))
            except _Leave as leave:
                if leave.all_of_them:
                    return 0
            task = next(tasks, None)
        console.print(f"That was the last {split} task.")
    finally:
        environment.close()
    return 0


async def play_task(task: Task, environment: Environment, console: Console, source: TextIO) -> Episode:
    """One episode on a single-use `environment`, with `source` as the policy; its verdict is printed."""
    console.rule(escape(task.id))
    for tool in task.tools:
        spec = tool.get("function", tool)
        console.print(f"[yellow]tool[/] {escape(spec['name'])}: {escape(spec.get('description', ''))}")
    unlimited = dataclasses.replace(task, budget=Budget(turns=None))
    episode = await play_episode(
        unlimited,
        episode_id=f"{task.id}@person",
        environment=_Shown(environment, console),
        sampler=_Person(lambda: _show(console, environment.gold(task)), console, source),
        renderer=renderer(),
        max_model_len=2**40,
        temperature=1.0,
        seed=0,
    )
    verdict = episode.verdict
    reward = "no reward" if verdict.reward is None else f"{verdict.reward:+g}"
    console.print(f"[{_MARKS[verdict.outcome]}]{verdict.outcome}[/], {reward}: {escape(verdict.reason)}")
    for check, passed in verdict.checks.items():
        console.print(f"  {check}: {'passed' if passed else 'failed'}", highlight=False)
    return episode


class _Shown(Environment):
    """An environment whose messages are printed on their way to the policy."""

    name = "shown"

    def __init__(self, environment: Environment, console: Console) -> None:
        super().__init__(environment.settings)
        self._environment = environment
        self._console = console

    def tasks(self, split: Split) -> Any:
        return self._environment.tasks(split)

    def verifier(self) -> Any:
        return self._environment.verifier()

    async def reset(self, task: Task) -> Sequence[Message]:
        begun = self._environment.reset(task)
        messages = await begun if inspect.isawaitable(begun) else begun
        _show(self._console, messages)
        return messages

    async def step(self, message: Message) -> Reply:
        answered = self._environment.step(message)
        reply = await answered if inspect.isawaitable(answered) else answered
        _show(self._console, reply.messages)
        return reply


class _Person:
    """A sampler that reads from a stream."""

    def __init__(self, show_gold: Callable[[], None], console: Console, source: TextIO) -> None:
        self._show_gold = show_gold
        self._console = console
        self._source = source

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        lines: list[str] = []
        self._console.print("[green]you>[/] ", end="")
        while True:
            line = self._source.readline()  # not in a thread, which Ctrl-C could not end
            text = line.rstrip("\r\n")
            if not line or (not lines and text == ":quit"):
                raise _Leave(all_of_them=True)
            if not lines and text == ":skip":
                raise _Leave(all_of_them=False)
            if not lines and text == ":gold":
                self._tell_gold()
            elif text == ".":
                content = "\n".join(lines)
                return as_completion(TextTokenizer(), Message(role="assistant", content=content), params.max_tokens)
            else:
                lines.append(text)

    def _tell_gold(self) -> None:
        try:
            self._show_gold()
        except ConfigError as error:
            self._console.print(escape(str(error)))


def _show(console: Console, messages: Sequence[Message]) -> None:
    for message in messages:
        style = _STYLES[message.role]
        console.print(Panel(escape(message.content), title=message.role, title_align="left", border_style=style))
