"""`rlvr verify`: score what was recorded. Thin at import, so that its `--help` is there at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verifiers.session import Session

SUMMARY = "score recorded episodes or completions, with the verifiers of training"
DESCRIPTION = """\
Scores the episodes of a run, or plain records: one JSON object a line with "verifier" (math, code, sql, tool_calls;
or "environment"), "completion", "reference", and optionally "prompt", "id", "metadata". Writes one verdict a line and
prints a summary. Exits 1 when too many verdicts are invalid, a line could not be read, or --gold or --audit fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line; `run` is the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="runs/NAME, a folder of episodes, a .jsonl file (gzip, zstd), or -"
    )
    parser.add_argument("--out", metavar="FILE", help="write verdicts here as JSON lines (- is standard output)")
    parser.add_argument("--resume", action="store_true", help="go on with the --out of a run that was stopped")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--max-invalid", type=_share, default=0.0, metavar="N", help="how many may be invalid: 10, or 1%% (default 0)"
    )
    parser.add_argument("--diff", metavar="OLD.jsonl", help="list the verdicts that differ from an earlier --out")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar, even on a terminal")
    parser.add_argument("--record-seconds", type=_seconds, default=300.0, metavar="S", help=argparse.SUPPRESS)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--gold", action="store_true", help="score the references themselves: each must earn +1")
    modes.add_argument(
        "--audit", action="store_true", help="score each three times, twice in shuffled order: none may change"
    )
    modes.add_argument(
        "--explain", nargs="?", const="", metavar="WHICH", help="print how one record is judged: an id or a line number"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `RlvrError` for what is wrong before anything is scored, and `KeyboardInterrupt`."""
    import importlib

    session: Session = importlib.import_module("verifiers.session").Session(options)
    return session.explain() if options.explain is not None else session.score()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def _seconds(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return float(text)


def _share(text: str) -> float:
    """A whole number is a count and comes back as it is; a percentage comes back as minus its share."""
    number = float(text.removesuffix("%"))
    if number < 0 or not text.removesuffix("%"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count nor a percentage")
    return -number / 100 if text.endswith("%") else number
