"""The `rlvr` command. Thin: every command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from rlvr import __version__
from rlvr.errors import ConfigError, RlvrError
from rlvr.kit import commands as env_commands

OWN_PACKAGES = ("environments", "verifiers", "sandbox")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Errors meant for the user are one paragraph on standard error, and code 1."""
    # Before anything loads OpenMP: threads that wait must not spin on cores that engines and learner share.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        check_package_names()  # before the parser, which asks one of these packages for the options of its command
        options = _parsed(arguments)
        code: int = options.command(options)
    except RlvrError as error:
        print(f"rlvr: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def check_package_names() -> None:
    """The generic names of our packages must lead here. Raises `ConfigError`, naming what to uninstall."""
    home = Path(__file__).resolve().parent.parent
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ConfigError(f"package {name!r} of rlvr cannot be found; reinstall rlvr")
        if Path(spec.origin).resolve().parent.parent != home:
            others = [other for other in packages_distributions().get(name, []) if other != "rlvr"]
            way_out = f"pip uninstall {' '.join(others)}" if others else f"run rlvr where no folder {name!r} shadows it"
            raise ConfigError(f"{name!r} resolves to {spec.origin}, not to rlvr's own package; {way_out}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Settings may stand behind options, too, where argparse takes positional arguments only in one place."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "overrides") or any(each.startswith("-") or "=" not in each for each in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlvr", description="Reinforcement learning from verifiable rewards.")
    parser.add_argument("--version", action="version", version=f"rlvr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, summary in (
        ("train", _train, "train a policy, or go on with a run that was stopped"),
        ("plan", _plan, "check a configuration and print it with every default written out"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("config", help="a TOML file, such as configs/quickstart.toml")
        command.add_argument("overrides", nargs="*", help="settings to change, as in learner.learning_rate=1e-4")
        command.set_defaults(command=function)
    _add_eval(commands)
    _add_graft(commands)
    # By name: the trainer imports no verifier.
    verify = importlib.import_module("verifiers.cli")
    verify.add_arguments(commands.add_parser("verify", help=verify.SUMMARY))
    env_commands.add_arguments(commands.add_parser("env", help="environments: list, new, check, play, serve"))
    return parser


def _add_eval(commands: Any) -> None:
    summary = "held-out accuracy of a policy, by environment and by thinking budget"
    command = commands.add_parser("eval", help=summary, description=summary)
    command.add_argument("policy", help="a run folder, a checkpoint, a Hugging Face folder, or 'starter'")
    command.add_argument("config", help="a TOML file: environments, budgets, engines")
    command.add_argument("overrides", nargs="*", help="settings to change, as in eval.num_tasks=2000")
    command.add_argument("--thinking-tokens", help="budgets to compare, as in 0,16,32,unlimited; default: the config's")
    command.add_argument("--samples", type=int, default=0, help="episodes a task at temperature; default: one, greedy")
    command.add_argument("--output", help="folder for accuracy.json, accuracy.png, episodes.jsonl; default: <run>/eval")
    command.set_defaults(command=_eval)


def _eval(options: argparse.Namespace) -> int:
    from rlvr.config import load
    from rlvr.eval import evaluate, read_budgets

    evaluate(
        options.policy,
        load(options.config, options.overrides),
        budgets=read_budgets(options.thinking_tokens) if options.thinking_tokens else None,
        num_samples=options.samples,
        output=options.output,
    )
    return 0


def _add_graft(commands: Any) -> None:
    summary = "add an MTP layer to a Llama- or Qwen2-family checkpoint and train it on the policy's own samples"
    graft = commands.add_parser("graft-mtp", help=summary, description=summary)
    graft.add_argument("source", type=Path, help="a Hugging Face checkpoint folder, or a .gguf file")
    graft.add_argument("target", type=Path, help="the folder to write")
    graft.add_argument("--environment", default="math_solver", help="whose prompts the policy answers")
    graft.add_argument("--samples", type=int, default=4096)
    graft.add_argument("--max-tokens", type=int, default=256, help="of one sample")
    graft.add_argument("--epochs", type=int, default=3)
    graft.add_argument("--draft-tokens", type=int, default=2, help="at which acceptance is measured")
    graft.add_argument("--measured", type=int, default=128, help="held-out prompts it is measured on")
    graft.set_defaults(command=_graft)


def _graft(options: argparse.Namespace) -> int:
    from rlvr.graft import GraftSettings, graft, prepare_process
    from rlvr.plugins import make_environment

    prepare_process()
    settings = GraftSettings(
        num_samples=options.samples,
        max_tokens=options.max_tokens,
        epochs=options.epochs,
        num_draft_tokens=options.draft_tokens,
        num_measured=options.measured,
    )
    graft(options.source, options.target, make_environment(options.environment, {}), settings, print)
    return 0


def _train(options: argparse.Namespace) -> int:
    from rlvr.config import load
    from rlvr.train import train

    train(load(options.config, options.overrides))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from rlvr.config import dump, load
    from rlvr.tasks import make_members

    config = load(options.config, options.overrides)
    make_members(config.environments)
    print(dump(config), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
