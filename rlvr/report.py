"""What a run shows on the screen: one live line, a table at the end. Plain lines where the output is no terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_OWN_REWARD = re.compile("env/[^/]+/reward/mean")
_DEPTH = "draft/depth/"


class Reporter:
    """Writes to standard output. Times are since it was made."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._started = time.monotonic()
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._shown: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(f"[{self._clock()}] {text}"), soft_wrap=True)
        self._last_line = time.monotonic()

    def progress(self, text: str) -> None:
        """The live line; without a terminal a line like any other, every ten seconds at most."""
        if self._status is None:
            # A log wants a sign of life now and then, not a film.
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                self.say(text)
            return
        self._status.start()
        self._status.update(Text(f"[{self._clock()}] {text}"))

    def step(
        self, metrics: Mapping[str, float], *, num_steps: int, accuracy: float | None, left_seconds: float
    ) -> None:
        """The progress of training. A step during which no episode ended shows the rollouts of the one before."""
        if _depths(metrics) and _depths(metrics) != _depths(self._shown):
            self.say(_depths(metrics))
        self._shown |= metrics
        metrics = self._shown
        parts = [
            f"step {int(metrics['step'])}/{num_steps}",
            f"held-out {accuracy:.1%}" if accuracy is not None else "held-out -",
            f"reward {metrics.get('reward/mean', float('nan')):+.2f}{_by_environment(metrics)}",
            f"staleness {metrics['staleness/mean']:.1f} (max {int(metrics['staleness/max'])})",
            f"accepted {metrics['draft/acceptance']:.0%}" if "draft/acceptance" in metrics else "no drafts",
            f"{metrics.get('rollout/tokens_per_second', 0):,.0f} tokens/s",
            f"{_minutes(left_seconds)} left",
        ]
        line = "  ".join(parts)
        if self._status is None:
            self.say(line)
        else:
            self.progress(line)

    def table(self, title: str, rows: Mapping[str, tuple[str, str]]) -> None:
        """Before and after."""
        self.close()
        # A title of the table would be wrapped at the table's width.
        self._console.print(title)
        table = Table("", "before", "after")
        for name, (before, after) in rows.items():
            table.add_row(name, before, after)
        self._console.print(table)

    def grid(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Any other table."""
        self.close()
        self._console.print(title)
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def close(self) -> None:
        """Leave the live line as it is."""
        if self._status is not None:
            self._status.stop()

    def _clock(self) -> str:
        return _minutes(time.monotonic() - self._started)


def _by_environment(metrics: Mapping[str, float]) -> str:
    """ " (math_solver +0.21, tool_use -0.80)" where there are several."""
    rewards = {name.split("/")[1]: value for name, value in metrics.items() if _OWN_REWARD.fullmatch(name)}
    each = ", ".join(f"{name} {value:+.2f}" for name, value in sorted(rewards.items()))
    return f" ({each})" if len(rewards) > 1 else ""


def _depths(metrics: Mapping[str, float]) -> str:
    """ "drafts by running requests: 1 at 16, 0.5 at 64", the mean over engines; empty where none are measured."""
    depths = {int(name.removeprefix(_DEPTH)): depth for name, depth in metrics.items() if name.startswith(_DEPTH)}
    each = ", ".join(f"{depth:g} at {size}" for size, depth in sorted(depths.items()))
    return f"drafts by running requests: {each}" if each else ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
