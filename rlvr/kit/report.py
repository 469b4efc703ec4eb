"""The kit's findings as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlvr.kit.checks import Result
from rlvr.kit.subject import Subject

_MARKS = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "not run": "[yellow]not run[/]",
    "does not apply": "[dim]-[/]",
}
_MAX_COMPLAINTS = 3


def show(subject: Subject, results: Sequence[Result], console: Console | None = None) -> None:
    """One row a check; under a failed one what was seen and what to do."""
    console = console or make_console()
    table = Table("check", "", "what it proves", title=_title(subject), title_justify="left")
    for result in results:
        text = escape(result.check.proves)
        if result.status == "failed":
            seen = [escape(complaint) for complaint in result.complaints[:_MAX_COMPLAINTS]]
            more = len(result.complaints) - len(seen)
            seen += [f"... and {more} more"] if more > 0 else []
            text += "".join(f"\n[red]{line}[/]" for line in seen) + f"\n[bold]{escape(result.check.remedy)}[/]"
        elif result.status != "passed":
            text += f"\n[dim]{escape('; '.join(result.complaints))}[/]"
        table.add_row(result.check.name, _MARKS[result.status], text)
    console.print(table)
    console.print(verdict(results), highlight=False)


def verdict(results: Sequence[Result]) -> str:
    """The last line: how many passed, and which failed."""
    failed = [result.check.name for result in results if result.status == "failed"]
    passed = sum(result.status == "passed" for result in results)
    not_run = sum(result.status == "not run" for result in results)
    line = f"{passed} passed, {len(failed)} failed"
    line += f", {not_run} not run" if not_run else ""
    return line + (f": {', '.join(failed)}" if failed else "")


def make_console() -> Console:
    """Standard output; where it is no terminal, wide enough that words stay whole."""
    return Console(width=None if sys.stdout.isatty() else 120)


def _title(subject: Subject) -> str:
    read = sum(len(tasks) for tasks in subject.read.values())
    return f"{escape(subject.name)}: {read} tasks read, {len(subject.tasks)} played"
