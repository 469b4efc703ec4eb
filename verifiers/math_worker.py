"""The worker of the math verifier: compares two texts without a budget. Started by `verifiers.worker`."""

from __future__ import annotations

from typing import Any

from verifiers.equality import equal
from verifiers.latex import parse_tree
from verifiers.numeric import Meter
from verifiers.worker import serve


def compare(request: dict[str, Any], _: object) -> bool:
    reference, answer = (
        parse_tree(text, thousands=thousands) for text, thousands in (request["reference"], request["answer"])
    )
    return equal(reference, answer, Meter(None))


def main() -> None:
    serve(compare)
