"""`rlvr env list`: what is installed, and how much of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sized

from rich.markup import escape
from rich.table import Table

from rlvr.kit.checks.check import brief
from rlvr.kit.report import make_console
from rlvr.plugins import PluginInfo, list_environments, make_environment
from rlvr.types import Split, Task

# A split that still goes on after so many tasks, or so long, is called endless.
_MAX_COUNTED = 20_000
_MAX_SECONDS = 2.0


def show() -> int:
    """Prints a line for each; a broken one is a line too. Exit code 0."""
    table = Table("name", "distribution", "train", "held out", "summary", box=None, pad_edge=False)
    for plugin in list_environments():
        train, held_out = (size_of(plugin, split) for split in ("train", "held_out"))
        summary = f"[red]BROKEN: {escape(plugin.problem)}[/]" if plugin.problem else escape(plugin.summary)
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", train, held_out, summary)
    make_console().print(table)
    return 0


def size_of(plugin: PluginInfo, split: Split) -> str:
    """The number of tasks with default settings: counted, "endless", or why there is no telling."""
    if plugin.problem:
        return "-"
    try:
        tasks = make_environment(plugin.name, {}).tasks(split)
        return f"{len(tasks):,}" if isinstance(tasks, Sized) else _counted(tasks)
    except Exception as error:  # a plug-in's own code; one that needs settings is no reason to stop the list
        return brief(error, 40)


def _counted(tasks: Iterable[Task]) -> str:
    end = time.monotonic() + _MAX_SECONDS
    count = 0
    for count, _ in enumerate(tasks, start=1):
        if count > _MAX_COUNTED or time.monotonic() > end:
            return "endless"
    return f"{count:,}"
