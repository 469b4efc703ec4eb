"""Errors meant for the user are one paragraph and exit code 1; a package name that leads elsewhere is one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr import cli
from rlvr.cli import check_package_names, main
from rlvr.config import load, parse
from rlvr.errors import ConfigError, RlvrError

COIN = Path(__file__).parents[1] / "coin.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\nname = "r"\n[[environments]]\nname = "{COIN}:Coin"\n')
    return path


def test_plan_prints_the_resolved_config_which_reads_back_equal(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), "rollout.group_size=4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = parse(json.loads(captured.out))
    assert printed == load(config, ["rollout.group_size=4"])
    assert printed.rollout.group_size == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.group_size=1", "rlvr: ConfigError: "),
        ("environments.0.name=absent", "rlvr: PluginError: no environment named 'absent'"),
        ("environments.0.settings.sides=3", "rlvr: ConfigError: settings of environment"),
        ("environments.0.curriculum={}", "rlvr: ConfigError: environment 'coin': a curriculum needs two levels"),
    ],
)
def test_plan_finds_what_is_wrong_and_says_so_on_standard_error(
    config: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    assert main(["plan", str(config), override]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(expected)
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent"], "no policy at"),
        (["starter", "--thinking-tokens", "0,x"], "'x' is no budget"),
        (["starter", "--samples", "-2"], "--samples -2"),
    ],
)
def test_eval_says_what_it_cannot_evaluate_before_anything_starts(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    policy, *options = arguments
    assert main(["eval", policy, str(config), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rlvr: ConfigError: ")
    assert expected in error


def test_plan_touches_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    main(["plan", str(config)])
    assert [path.name for path in config.parent.iterdir()] == ["run.toml"]


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["plan"], ["env"], ["plan", "a.toml", "--no-such"]])
def test_a_command_line_that_cannot_be_read_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: rlvr" in capsys.readouterr().err


def command_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def function(_options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_plan", function)


def test_every_error_of_ours_is_exit_code_1_with_its_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Special(RlvrError):
        """A kind of its own."""

    command_that(monkeypatch, Special("value, rule, way out"))
    assert main(["plan", "x.toml"]) == 1
    assert capsys.readouterr().err == "rlvr: Special: value, rule, way out\n"


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, KeyboardInterrupt())
    assert main(["plan", "x.toml"]) == 130


def test_a_programming_error_goes_through_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["plan", "x.toml"])


def test_environments_are_listed_by_name_with_their_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("math_solver"))
    assert "rlvr" in line


def test_the_package_names_lead_to_this_project() -> None:
    check_package_names()


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another `verifiers`, found before ours."""
    folder = tmp_path / "site" / "verifiers"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, "verifiers", raising=False)
    return folder


def test_a_shadowed_package_names_the_distribution_to_uninstall(shadow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "packages_distributions", lambda: {"verifiers": ["rlvr", "verifiers-on-pypi"]})
    with pytest.raises(ConfigError) as caught:
        check_package_names()
    assert f"'verifiers' resolves to {shadow / '__init__.py'}" in str(caught.value)
    assert str(caught.value).endswith("pip uninstall verifiers-on-pypi")


def test_a_package_shadowed_by_a_folder_names_the_folder(shadow: Path) -> None:
    with pytest.raises(ConfigError, match="run rlvr where no folder 'verifiers' shadows it"):
        check_package_names()


def test_a_shadowed_package_ends_every_command(shadow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 1
    assert capsys.readouterr().err.startswith("rlvr: ConfigError: 'verifiers' resolves to")


def test_a_package_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "OWN_PACKAGES", ("environments", "no_such_package"))
    with pytest.raises(ConfigError, match="package 'no_such_package' of rlvr cannot be found; reinstall rlvr"):
        check_package_names()


def test_a_folder_without_an_init_shadows_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A namespace package has no origin.
    (tmp_path / "bare_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "OWN_PACKAGES", ("bare_folder",))
    with pytest.raises(ConfigError, match="'bare_folder' of rlvr cannot be found"):
        check_package_names()


def test_the_command_starts_without_torch_ray_or_vllm() -> None:
    script = (
        "import sys; from rlvr.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_settings_may_stand_on_both_sides_of_an_option() -> None:
    options = cli._parsed(["eval", "policy", "run.toml", "a.b=1", "--samples", "4", "c.d=2"])
    assert (options.samples, options.overrides) == (4, ["a.b=1", "c.d=2"])


@pytest.mark.parametrize(
    "arguments",
    [["eval", "policy", "run.toml", "--sample", "4", "--other=2"], ["eval", "p", "c", "--samples", "4", "x"]],
)
def test_what_is_neither_option_nor_setting_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli._parsed(arguments)
    assert "unrecognized arguments: " in capsys.readouterr().err
