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

# Splits without a length are counted so far, and for so long in all.
MAX_COUNTED = 1_000
MAX_SECONDS = 4.0

_SPLITS: tuple[Split, ...] = ("train", "held_out")


def show(max_seconds: float = MAX_SECONDS) -> int:
    """Prints a line for each; a broken one is a line too. Exit code 0."""
    table = Table("name", "distribution", "train", "held out", "summary", box=None, pad_edge=False)
    plugins = list_environments()
    end = time.monotonic() + max_seconds
    for index, plugin in enumerate(plugins):
        sizes = []
        for number, split in enumerate(_SPLITS):
            num_left = len(_SPLITS) * (len(plugins) - index) - number
            sizes.append(size_of(plugin, split, seconds=(end - time.monotonic()) / num_left))
        summary = f"[red]BROKEN: {escape(plugin.problem)}[/]" if plugin.problem else escape(plugin.summary)
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", *sizes, summary)
    make_console().print(table)
    return 0


def size_of(plugin: PluginInfo, split: Split, *, seconds: float) -> str:
    """The number of tasks with default settings ("1,000+": and more, or no time to see), or why there is no telling."""
    if plugin.problem:
        return "-"
    try:
        tasks = make_environment(plugin.name, {}).tasks(split)
        return f"{len(tasks):,}" if isinstance(tasks, Sized) else _counted(tasks, seconds)
    except Exception as error:  # a plug-in's own code; one that needs settings is no reason to stop the list
        return brief(error, 40)


def _counted(tasks: Iterable[Task], seconds: float) -> str:
    end = time.monotonic() + seconds
    count = 0
    for count, _ in enumerate(tasks, start=1):
        if count > MAX_COUNTED or time.monotonic() > end:
            return f"{count - 1:,}+"
    return f"{count:,}"
