"""The worker of the tool-call verifier: checks calls against schemas. Started by `verifiers.worker`."""

from __future__ import annotations

from typing import Any

from verifiers.tool_forms import Call, FormError
from verifiers.tool_schema import load
from verifiers.worker import serve


def check(request: dict[str, Any], _: object) -> list[Call] | str:
    """The checked calls, or what is wrong with one of them."""
    tools = load(request["tools"])
    try:
        return [tools.checked(Call(*call)) for call in request["calls"]]
    except FormError as error:
        return str(error)


def main() -> None:
    serve(check)
