"""Verifiers by name: the one place where `rlvr verify` finds them, imported when they are first asked for."""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from typing import Any

from rlvr.errors import RlvrError
from rlvr.interfaces import Verifier

VERIFIERS = {
    "math": "verifiers.math:MathVerifier",
    "code": "verifiers.code:CodeVerifier",
    "sql": "verifiers.sql:SqlVerifier",
    "sql_postgresql": "verifiers.sql_postgres:PostgresVerifier",
    "tool_calls": "verifiers.tool_calls:ToolCallVerifier",
}


class UnknownVerifier(LookupError):
    """No verifier has this name; says which there are."""


class NoGold(LookupError):
    """The reference holds nothing that could be scored as an answer; says what to add."""


def make_verifier(name: str) -> Verifier:
    """A verifier with its default settings. Raises `UnknownVerifier`."""
    if name not in VERIFIERS:
        raise UnknownVerifier(f"{name!r} is unknown; known are {', '.join(sorted(VERIFIERS))}")
    module_name, _, class_name = VERIFIERS[name].partition(":")
    try:
        module = importlib.import_module(module_name)
        verifier: Verifier = getattr(module, class_name)()
    except (ModuleNotFoundError, RlvrError) as error:
        raise UnknownVerifier(f"{name!r} cannot be loaded: {error}") from error
    return verifier


def gold_answer(name: str, reference: dict[str, Any]) -> str:
    """The reference, written as a model would answer it: what `--gold` scores. Raises `NoGold`."""
    if name == "math" and isinstance(reference.get("answer"), (str, int, float)):
        return f"\\boxed{{{reference['answer']}}}"
    if name == "code" and isinstance(reference.get("solution"), str):
        return f"```python\n{reference['solution']}\n```"
    if name in ("sql", "sql_postgresql") and isinstance(reference.get("query"), str):
        return f"```sql\n{reference['query']}\n```"
    if name == "tool_calls" and isinstance(reference.get("calls"), list):
        return "\n".join(tool_call_text(call) for call in reference["calls"])
    field = {"math": "answer", "code": "solution", "sql": "query", "tool_calls": "calls"}.get(name, "answer")
    raise NoGold(f"no gold answer: the reference has no {field!r}")


def tool_call_text(call: Any) -> str:
    """A call ({"name", "arguments"}, or OpenAI's {"function": {...}}) in the form that open models emit."""
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if isinstance(call, dict) and isinstance(call.get("arguments"), str):
        with suppress(ValueError):  # what is no JSON is the model's own doing, and for the verifier to refuse
            call = call | {"arguments": json.loads(call["arguments"])}
    if isinstance(call, dict):
        call = {key: call[key] for key in ("name", "arguments") if key in call}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
