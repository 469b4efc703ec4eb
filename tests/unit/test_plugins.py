"""A name leads to an environment class, or to an error that says what would."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from rlvr import plugins
from rlvr.errors import ConfigError, PluginError
from rlvr.plugins import list_environments, load_environment, make_environment

COIN = Path(__file__).parents[1] / "coin.py"

# As a third party would write it: postponed annotations, a dataclass, settings of an imported type.
THIRD_PARTY = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlvr.interfaces import Environment, EnvironmentSettings

@dataclass
class Level:
    number: int
    names: ClassVar[list[str]] = []

class MazeSettings(EnvironmentSettings):
    size: Literal["small", "large"] = "small"

class Maze(Environment):
    name = "maze"
    Settings = MazeSettings
    def tasks(self, split): return []
    def verifier(self): raise NotImplementedError

NotAnEnvironment = 3
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entry points: one that works, one whose module does not exist."""
    entries = EntryPoints(
        [
            EntryPoint("toss", "tests.coin:Coin", plugins.GROUP),
            EntryPoint("broken", "no_such_module:Thing", plugins.GROUP),
            EntryPoint("wrong", "tests.coin:CoinVerifier", plugins.GROUP),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: entries.select(group=group))


@pytest.fixture
def maze(tmp_path: Path) -> Path:
    path = tmp_path / "json.py"  # called as a module of Python's is
    path.write_text(THIRD_PARTY)
    return path


def test_an_installed_name_leads_to_its_class(installed: None) -> None:
    assert load_environment("toss").__name__ == "Coin"


def test_our_own_environment_is_installed() -> None:
    assert "math_solver" in [plugin.name for plugin in list_environments()]


def test_an_unknown_name_lists_what_is_installed_and_the_other_way(installed: None) -> None:
    with pytest.raises(
        PluginError, match=r"no environment named 'tos' .*\(installed: broken, toss, wrong\).*file\.py:"
    ):
        load_environment("tos")


def test_a_distribution_that_cannot_be_imported_is_named_with_the_reason(installed: None) -> None:
    with pytest.raises(PluginError, match=r"'broken' \(no_such_module:Thing\) cannot be imported: ModuleNotFound"):
        load_environment("broken")


def test_an_entry_point_to_something_else_is_refused(installed: None) -> None:
    with pytest.raises(PluginError, match=r"'wrong' leads to .*CoinVerifier.* no subclass of"):
        load_environment("wrong")


def test_a_file_and_a_class_lead_to_the_class() -> None:
    kind = load_environment(f"{COIN}:Coin")
    assert (kind.name, kind.summary) == ("coin", "A toss, decided by what the model wrote.")


def test_a_relative_file_is_found_from_the_working_folder(maze: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(maze.parent)
    assert load_environment("json.py:Maze").name == "maze"


def test_a_file_may_use_postponed_annotations_and_shadows_no_module(maze: Path) -> None:
    import json

    environment = make_environment(f"{maze}:Maze", {"size": "large"})
    assert environment.settings.size == "large"  # type: ignore[attr-defined]
    assert sys.modules["json"] is json


def test_files_of_the_same_name_are_kept_apart(maze: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "json.py"
    other.parent.mkdir()
    other.write_text(THIRD_PARTY.replace('"maze"', '"labyrinth"'))
    kinds = [load_environment(f"{path}:Maze") for path in (maze, other)]
    assert [kind.name for kind in kinds] == ["maze", "labyrinth"]
    assert len({kind.__module__ for kind in kinds}) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("{folder}/absent.py:Maze", "there is no file /.*absent.py"),
        ("{folder}/json.py:Labyrinth", "json.py defines no 'Labyrinth'"),
        ("{folder}/json.py:NotAnEnvironment", "leads to 3, which is no subclass"),
        ("{folder}/json.py:Level", "leads to .*Level.*, which is no subclass"),
    ],
)
def test_a_file_that_does_not_lead_to_an_environment_says_why(maze: Path, name: str, expected: str) -> None:
    with pytest.raises(PluginError, match=expected):
        load_environment(name.format(folder=maze.parent))


@pytest.mark.parametrize("content", ["1 / 0", "import no_such_module", "class :"])
def test_a_file_that_cannot_be_imported_is_named_with_the_reason_and_leaves_nothing_behind(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    before = set(sys.modules)
    with pytest.raises(PluginError, match=r"bad\.py:X' cannot be imported: \w+Error"):
        load_environment(f"{path}:X")
    assert set(sys.modules) == before


def test_settings_reach_the_environment_and_defaults_hold() -> None:
    assert make_environment(f"{COIN}:Coin", {"num_tasks": 3}).settings.num_tasks == 3  # type: ignore[attr-defined]
    assert make_environment(f"{COIN}:Coin", {}).settings.num_tasks == 10_000  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_task": 3}, r"num_task: Extra inputs are not permitted \(known settings: num_tasks\)"),
        ({"num_tasks": "many"}, r"num_tasks: Input should be a valid integer.*\(known settings: num_tasks\)"),
    ],
)
def test_wrong_settings_name_the_environment_the_key_and_the_known_ones(
    settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf"settings of environment '.*coin\.py:Coin': {expected}"):
        make_environment(f"{COIN}:Coin", settings)
