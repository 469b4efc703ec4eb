"""`rlvr env list`, `new`, `check` and `play`, as a person meets them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlvr import plugins
from rlvr.cli import main
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.kit import listing, report, scaffold
from rlvr.kit.checks import CHECKS, Result
from rlvr.kit.commands import parse_settings
from rlvr.kit.person import play_task
from rlvr.types import Split, Task
from tests import broken_environments
from tests.broken_environments import Sum

FILE = Path(broken_environments.__file__)


class NeedsPath(Sum):
    """Its tasks come from a file that the settings name."""

    def tasks(self, split: Split) -> Iterator[Task]:
        raise ConfigError("settings.path is not set")


class Endless(Sum):
    def tasks(self, split: Split) -> Iterator[Task]:
        number = 0
        while True:
            yield self.task(split, number, number, number)
            number += 1


class Slow(Endless):
    def tasks(self, split: Split) -> Iterator[Task]:
        for task in super().tasks(split):
            time.sleep(0.02)
            yield task


class Sized(Sum):
    def tasks(self, split: Split) -> Sequence[Task]:  # type: ignore[override]
        return [self.task(split, 0, 0, 0)] * 5_000


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.unit.test_env_commands"
    entries = EntryPoints(
        [
            EntryPoint("sums", "tests.broken_environments:Sum", plugins.GROUP),
            EntryPoint("broken", "no_such_module:Thing", plugins.GROUP),
            EntryPoint("needy", f"{here}:NeedsPath", plugins.GROUP),
            EntryPoint("endless", f"{here}:Endless", plugins.GROUP),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: entries.select(group=group))


def test_the_list_counts_what_ends_says_what_does_not_and_shows_the_broken(
    installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["env", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["sums"].split()[3:5] == ["300", "300"]
    assert lines["endless"].split()[3:5] == ["1,000+", "1,000+"]
    assert "BROKEN" in lines["broken"]
    assert "settings.path is not" in lines["needy"]


def test_the_whole_list_has_one_limit_and_slow_ones_leave_time_to_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = "tests.unit.test_env_commands"
    kinds = {"a_slow": "Slow", "b_slow": "Slow", "c_sized": "Sized", "d_quick": "Endless"}
    entries = EntryPoints([EntryPoint(name, f"{here}:{kind}", plugins.GROUP) for name, kind in kinds.items()])
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: entries.select(group=group))
    began = time.monotonic()
    listing.show(max_seconds=1.0)
    assert time.monotonic() - began < 3
    lines = {line.split()[0]: line.split()[3:5] for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in ("a_slow", "b_slow"):
        assert all(size.endswith("+") and int(size.removesuffix("+")) <= 20 for size in lines[name])
    assert lines["c_sized"] == ["5,000", "5,000"]
    counted = [int(size.removesuffix("+").replace(",", "")) for size in lines["d_quick"]]
    assert min(counted) > 20, "no time was left"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Word", "is no name for an environment"),
        ("3d", "is no name for an environment"),
        ("a-b", "is no name for an environment"),
        ("a__b", "is no name for an environment"),
        ("../a", "is no name for an environment"),
        ("", "is no name for an environment"),
        ("class", "is a word of Python's"),
        ("match", "is a word of Python's"),
        ("json", "a module named 'json' exists"),
        ("torch", "a module named 'torch' exists"),
        ("verifiers", "a module named 'verifiers' exists"),
        ("math_solver", "is installed already"),
    ],
)
def test_a_name_that_cannot_be_used_says_why_and_writes_nothing(
    name: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["env", "new", name]) == 1
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["env", "new", "word_count", "--folder", str(tmp_path)]) == 1
    assert "is there already; choose another --folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_new_distribution_bears_its_name_throughout_is_clean_and_passes_its_own_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["env", "new", "letter_count"]) == 0
    assert "pip install -e letter-count" in capsys.readouterr().out
    folder = tmp_path / "letter-count"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "letter_count/__init__.py",
        "letter_count/data/problems.jsonl",
        "letter_count/environment.py",
        "letter_count/verifier.py",
        "pyproject.toml",
        "tests/test_letter_count.py",
    ]
    for path in folder.rglob("*"):
        if path.is_file():
            assert "my_env" not in path.read_text().lower()
            assert "myenv" not in path.read_text().lower()
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=E,F,I,UP,B", "--line-length=120", "."],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout
    path = os.pathsep.join([str(folder), str(Path(plugins.__file__).parents[1])])
    # Not installed here, so the kit finds it by its file; `scripts/bench/fifth_environment` installs one.
    test = folder / "tests" / "test_letter_count.py"
    test.write_text(test.read_text().replace('"letter_count"', f'"{folder}/letter_count/environment.py:LetterCount"'))
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout


def test_the_problems_of_the_template_are_right() -> None:
    data = Path(scaffold.__file__).parent / "templates/new-environment/my_environment/data/problems.jsonl"
    for line in data.read_text().splitlines():
        problem = json.loads(line)
        word = problem["question"].removeprefix("How many letters has the word ").removesuffix("?")
        assert problem["answer"] == str(len(word))


def test_the_check_ends_with_code_0_or_1_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", f"{FILE}:WrongGold", "--tasks", "4"]) == 1
    shown = capsys.readouterr().out
    assert "1 failed" in shown
    assert ": gold" in shown.splitlines()[-1]
    assert "FAILED" in shown
    assert "play it by hand" in shown, "what to do about it"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent"], "no environment named 'absent'"),
        ([f"{FILE}:Sum", "--settings", "levels"], "is not of the form key=value"),
        ([f"{FILE}:Sum", "--settings", "levels=[1]"], "levels: Extra inputs are not permitted"),
        ([f"{FILE}:Sum", "--tasks", "0"], "--tasks 0: give a number above 0"),
        (["tests/unit/test_env_commands.py:NeedsPath"], "settings.path is not set"),
    ],
)
def test_a_check_that_cannot_begin_says_why(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FILE.parents[1])
    assert main(["env", "check", *arguments]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert "Traceback" not in captured.err


def test_settings_are_toml_and_bare_words_are_text() -> None:
    given = ["levels=[1, 2]", "path=a b.jsonl", "seed=3", "on=true"]
    assert parse_settings(given) == {"levels": [1, 2], "path": "a b.jsonl", "seed": 3, "on": True}


def test_a_check_that_was_not_run_is_no_success() -> None:
    check = CHECKS[0]
    results = [Result(check=check, status="passed"), Result(check=check, status="not run", complaints=("needs gold",))]
    assert report.verdict(results) == "1 passed, 0 failed, 1 not run"


async def play_with(text: str, environment: Environment) -> tuple[str, Any]:
    screen = io.StringIO()
    task = next(iter(environment.tasks("train")))
    console = Console(file=screen, width=100, highlight=False)
    episode = await play_task(task, environment, console, io.StringIO(text))
    return screen.getvalue(), episode


async def test_a_person_sees_prompt_replies_and_the_verdict_with_its_reason() -> None:
    environment = Sum(EnvironmentSettings())
    task = next(iter(environment.tasks("train")))
    shown, episode = await play_with(f"hm\n.\n:gold\nanswer: {task.reference['answer']}\n.\n", environment)
    assert episode.verdict.outcome == "correct"
    for expected in (task.prompt[0].content, "Your answer, 1?", "Let me see.", "correct, +1: 'answer: "):
        assert expected in shown
    assert [turn.message.content for turn in episode.turns] == ["hm", f"answer: {task.reference['answer']}"]


class WithTools(Sum):
    def task(self, split: Split, number: int, a: int, b: int) -> Task:
        tools = ({"type": "function", "function": {"name": "add", "description": "Adds [two] numbers."}},)
        return dataclasses.replace(super().task(split, number, a, b), tools=tools)


async def test_a_person_sees_the_tools() -> None:
    shown, _ = await play_with("answer\n.\n", WithTools(EnvironmentSettings()))
    assert "tool add: Adds [two] numbers." in shown


async def test_a_person_may_write_several_lines() -> None:
    _, episode = await play_with("answer\nof two lines\n.\n", Sum(EnvironmentSettings()))
    assert episode.turns[0].message.content == "answer\nof two lines"
    assert episode.verdict.outcome == "incorrect"


@pytest.mark.slow
def test_play_in_a_terminal_goes_from_task_to_task_until_quit() -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr.cli", "env", "play", f"{FILE}:Sum", "--split", "held_out", "--task", "2"],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(Path(plugins.__file__).parents[1]), "TERM": "dumb", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = read_until(leader, "sum/held_out/2", "you>")
    os.write(leader, b"answer: 1\n.\n")
    shown = read_until(leader, "incorrect", "sum/held_out/3", "you>")
    assert "against" in shown
    os.write(leader, b":skip\n")
    read_until(leader, "sum/held_out/4", "you>")
    os.write(leader, b":quit\n")
    assert process.wait(30) == 0
    os.close(leader)


def read_until(terminal: int, *wanted: str, seconds: float = 60) -> str:
    shown = ""
    deadline = time.monotonic() + seconds
    position = 0
    for text in wanted:
        while text not in shown[position:]:
            assert time.monotonic() < deadline, f"{text!r} did not come within {seconds} s: {shown}"
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
        position = shown.index(text, position) + len(text)
    return shown
