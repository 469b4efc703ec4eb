"""`rlvr env ...`: the arguments, and what each command calls."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

from rlvr.errors import ConfigError

NAME_HELP = "an installed environment's name, path/to/file.py:Class, or http://host:port"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `new`, `check`, `play` and `serve` under the parser of `rlvr env`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the environments that are installed")
    listing.set_defaults(command=_list)

    new = commands.add_parser("new", help="write a distribution with an environment of your own")
    new.add_argument("name", help="a lower-case Python name, such as word_count")
    new.add_argument("--folder", type=Path, help="where to write it (default: ./NAME, with dashes)")
    new.set_defaults(command=_new)

    check = _about_one(commands, "check", "prove that an environment keeps its promises; exit code 1 if not")
    check.add_argument("--tasks", type=int, default=20, metavar="N", help="how many are played (default 20)")
    check.add_argument("--seconds", type=float, default=30.0, metavar="S", help="limit of an episode (default 30)")
    check.add_argument("--turns", type=int, default=40, metavar="N", help="limit of an episode (default 40)")
    check.set_defaults(command=_check)

    play = _about_one(commands, "play", "be the policy yourself, in the terminal")
    play.add_argument("--split", choices=("train", "held_out"), default="train")
    play.add_argument("--task", type=int, default=0, metavar="N", help="begin with the N-th task (default 0)")
    play.set_defaults(command=_play)

    serve = _about_one(commands, "serve", "offer an environment over HTTP, for other machines and languages")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1, this machine only)")
    serve.add_argument("--port", type=int, default=8010, help="0 takes a free one (default 8010)")
    serve.set_defaults(command=_serve)


def _about_one(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("name", help=NAME_HELP)
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help="of the environment, as in levels=[1,2]"
    )
    return parser


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs; values are TOML, bare words are text. Raises `ConfigError`."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--settings {pair!r} is not of the form key=value")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = text.strip()
    return settings


def _list(_options: argparse.Namespace) -> int:
    from rlvr.kit.listing import show

    return show()


def _new(options: argparse.Namespace) -> int:
    from rlvr.kit.scaffold import write

    folder = write(options.name, options.folder)
    print(f"{folder} is ready:\n")
    for line in (f"pip install -e {folder}", f"rlvr env check {options.name}", f"pytest {folder}"):
        print(f"    {line}")
    print(f"\nThen put it in a run:\n\n    [[environments]]\n    name = {options.name!r}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from rlvr.kit import report
    from rlvr.kit.checks import run
    from rlvr.kit.subject import open_subject

    for name in ("tasks", "seconds", "turns"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name} {getattr(options, name)}: give a number above 0")
    console = report.make_console()
    with open_subject(
        options.name,
        parse_settings(options.settings),
        num_tasks=options.tasks,
        seconds=options.seconds,
        max_turns=options.turns,
    ) as subject:
        with console.status("checking") as status:
            results = run(subject, progress=status.update)
        report.show(subject, results, console)
    return int(any(result.status in ("failed", "not run") for result in results))


def _play(options: argparse.Namespace) -> int:
    from rlvr.kit.person import play

    return play(options.name, parse_settings(options.settings), split=options.split, first=options.task)


def _serve(options: argparse.Namespace) -> int:
    from rlvr.remote.server import serve

    serve(options.name, parse_settings(options.settings), host=options.host, port=options.port)
    return 0
