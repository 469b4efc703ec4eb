"""Where the output is no terminal, every report is a plain line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlvr import report
from rlvr.report import Reporter

METRICS = {
    "step": 3,
    "reward/mean": 0.25,
    "staleness/mean": 0.5,
    "staleness/max": 1,
    "draft/acceptance": 0.75,
    "rollout/tokens_per_second": 12345.6,
}


class Clock:
    """Seconds that pass when a test says so; stands in for the `time` module."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    return clock


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def reporter(output: io.StringIO, clock: Clock) -> Reporter:
    return Reporter(Console(file=output, force_terminal=False, highlight=False, soft_wrap=True, width=40))


def test_a_sentence_is_one_plain_line_however_long(reporter: Reporter, output: io.StringIO, clock: Clock) -> None:
    clock.now += 61
    reporter.say("a [bold]sentence[/bold] " + "x" * 300)
    reporter.say("another")
    # No markup, no folding, no escape codes.
    assert output.getvalue() == "[1:01] a [bold]sentence[/bold] " + "x" * 300 + "\n[1:01] another\n"


def test_progress_is_a_sign_of_life_now_and_then_and_never_hides_a_sentence(
    reporter: Reporter, output: io.StringIO, clock: Clock
) -> None:
    for second in range(25):
        reporter.progress(f"second {second}")
        clock.now += 1
    reporter.say("a sentence")
    reporter.progress("too soon")
    reporter.close()
    lines = [line.partition("] ")[2] for line in output.getvalue().splitlines()]
    assert lines == ["second 0", "second 10", "second 20", "a sentence"]


def test_a_step_is_one_line_with_what_matters(reporter: Reporter, output: io.StringIO) -> None:
    reporter.step(METRICS, num_steps=10, accuracy=0.5, left_seconds=83.9)
    line = output.getvalue()
    assert line.count("\n") == 1
    for part in (
        "step 3/10",
        "held-out 50.0%",
        "reward +0.25",
        "staleness 0.5 (max 1)",
        "accepted 75%",
        "12,346 tokens/s",
        "1:23 left",
    ):
        assert part in line


def test_what_is_not_known_is_not_made_up(reporter: Reporter, output: io.StringIO) -> None:
    unknown = {name: value for name, value in METRICS.items() if name not in ("draft/acceptance", "reward/mean")}
    reporter.step(unknown, num_steps=10, accuracy=None, left_seconds=0)
    assert "held-out -" in output.getvalue()
    assert "no drafts" in output.getvalue()
    assert "reward +nan" in output.getvalue()


def test_an_accuracy_of_zero_is_a_number_and_not_unknown(reporter: Reporter, output: io.StringIO) -> None:
    reporter.step(METRICS, num_steps=10, accuracy=0.0, left_seconds=0)
    assert "held-out 0.0%" in output.getvalue()


def test_the_table_holds_before_and_after(output: io.StringIO) -> None:
    reporter = Reporter(Console(file=output, force_terminal=False, width=100))
    reporter.table("run r", {"accuracy": ("1.0%", "99.0%"), "drafts accepted": ("50.0%", "60.0%")})
    lines = output.getvalue().splitlines()
    assert lines[0].strip() == "run r"
    row = next(line for line in lines if "accuracy" in line)
    assert row.index("1.0%") < row.index("99.0%")
    assert any("drafts accepted" in line and "60.0%" in line for line in lines)
    header = next(line for line in lines if "before" in line)
    assert header.index("before") < header.index("after")


def test_on_a_terminal_progress_is_one_live_line_and_sentences_stay() -> None:
    output = io.StringIO()
    reporter = Reporter(Console(file=output, force_terminal=True, width=80))
    reporter.say("stays")
    reporter.progress("live")
    reporter.close()
    assert "stays\n" in output.getvalue()
    assert "\x1b[" in output.getvalue()


def test_a_mixtures_line_tells_the_reward_of_each_environment(reporter: Reporter, output: io.StringIO) -> None:
    own = {"env/sql/reward/mean": -0.5, "env/math/reward/mean": 1.0, "env/math/level/2/reward/mean": 0.3}
    reporter.step(METRICS | own, num_steps=5, accuracy=None, left_seconds=1)
    assert "reward +0.25 (math +1.00, sql -0.50)  staleness" in output.getvalue()
    reporter.step(METRICS, num_steps=5, accuracy=None, left_seconds=1)


def test_a_draft_schedule_is_said_when_it_is_another(reporter: Reporter, output: io.StringIO) -> None:
    for at_64 in (1, 1, 0.5):
        depths = {"draft/depth/64": at_64, "draft/depth/4": 1.0}
        reporter.step(METRICS | depths, num_steps=5, accuracy=None, left_seconds=1)
        reporter.step(METRICS, num_steps=5, accuracy=None, left_seconds=1)
    said = [line.partition("] ")[2] for line in output.getvalue().splitlines() if "drafts by" in line]
    assert said == ["drafts by running requests: 1 at 4, 1 at 64", "drafts by running requests: 1 at 4, 0.5 at 64"]


def test_a_grid_has_its_columns_and_rows(reporter: Reporter, output: io.StringIO) -> None:
    reporter.grid("title", ["", "0", "8"], [["math", "1 %", "2 %"]])
    assert all(text in output.getvalue() for text in ("title", "math", "1 %", "2 %"))
