"""Arguments against a tool's JSON Schema, in bounded time.

Schemas of plain keywords cost what the arguments are long, and are checked here. Others may take forever on arguments
made for it (a `pattern` that backtracks, `anyOf` within `anyOf` by a `$ref`, `uniqueItems`): calls of such a tool are
checked in a worker process that is killed after `SECONDS`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry

from verifiers import worker
from verifiers.tool_forms import Call, FormError

SECONDS = 1.0
_PYTHON = {"True": True, "False": False, "None": None}  # models write these where JSON is meant
_PLAIN = frozenset(
    """
    type properties required items additionalProperties enum const minimum maximum exclusiveMinimum exclusiveMaximum
    multipleOf minLength maxLength minItems maxItems minProperties maxProperties prefixItems
    title description default examples format deprecated readOnly writeOnly strict nullable $schema $comment $id
    """.split()  # noqa: SIM905 - a list to read
)
_POOL = worker.WorkerPool("verifiers.tool_worker")


class ReferenceFault(ValueError):
    """The reference cannot be judged by. Says what is wrong with it."""


class Tools:
    """The tools of a task, by name."""

    def __init__(self, tools: Any) -> None:
        """From a list of `{"name", "parameters"}`, bare or under "function". Raises `ReferenceFault`."""
        self._tools = tools
        self._validators: dict[str, Draft202012Validator] = {}
        self._costly: set[str] = set()
        try:
            for tool in tools:
                function = tool.get("function", tool)
                name, schema = function["name"], function.get("parameters") or {"type": "object"}
                Draft202012Validator.check_schema(schema)
                self._validators[name] = Draft202012Validator(schema, registry=Registry())  # fetches nothing
                if not _is_plain(schema):
                    self._costly.add(name)
        except SchemaError as error:
            raise ReferenceFault(f"a tool's parameters are no JSON Schema: {error.message}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ReferenceFault(f"tools must be a list of objects with name and parameters: {error!r}") from None

    def check(self, calls: Sequence[Call]) -> list[Call]:
        """The calls with typed arguments that their tools accept. Raises `FormError`, and `WorkerLostError` where no
        worker can be had."""
        if not any(call.name in self._costly for call in calls):
            return [self.checked(call) for call in calls]
        try:
            reply = _POOL.call({"tools": self._tools, "calls": calls}, SECONDS)
        except worker.WorkerTimeoutError:
            raise FormError(f"its arguments take longer than {SECONDS:g} s to check against the schema") from None
        except worker.WorkerLostError:
            # Ours or the model's? If a fresh worker answers a harmless question, the arguments killed the first one.
            _POOL.call({"tools": [], "calls": []}, SECONDS * 10)
            raise FormError("its arguments bring the check against the schema down") from None
        if isinstance(reply, str):
            raise FormError(reply)
        return [Call(*call) for call in reply]

    def checked(self, call: Call) -> Call:
        """One call, checked in this process however long it takes."""
        validator = self._validators.get(call.name)
        if validator is None:
            known = ", ".join(self._validators)
            raise FormError(f"no tool is named {call.name[:100]!r}; there are {known or 'none'}")
        arguments = call.arguments
        try:
            if not call.typed:
                arguments = {name: _typed(text, name, validator) for name, text in arguments.items()}
            error = next(iter(validator.iter_errors(arguments)), None)
        except (
            Exception
        ) as fault:  # 1e400 against multipleOf; a $ref to nowhere, which the reference's calls show first
            raise FormError(f"the call of {call.name!r} cannot be checked: {fault!r}"[:300]) from None
        if error is not None:
            place = ".".join(map(str, error.absolute_path)) or "the arguments"
            raise FormError(f"the call of {call.name!r}: {place}: {error.message[:160]}")
        return Call(call.name, arguments)


def load(tools: Any) -> Tools:
    """The tools of a list of specs. Raises `ReferenceFault`."""
    return _load(json.dumps(tools))


@lru_cache(maxsize=64)  # making validators takes longer than all the rest, and tasks share their tools
def _load(text: str) -> Tools:
    return Tools(json.loads(text))


def _is_plain(schema: Any) -> bool:
    """Whether checking costs no more than the length of the arguments."""
    if not isinstance(schema, dict):
        return True
    inner = [schema.get("items"), schema.get("additionalProperties"), *schema.get("prefixItems", ())]
    return schema.keys() <= _PLAIN and all(map(_is_plain, [*inner, *schema.get("properties", {}).values()]))


def _typed(text: str, name: str, validator: Draft202012Validator) -> Any:
    """A value of the XML form: the first that the parameter's schema takes of the text, where it is declared a
    string, the JSON that it is, Python's True, False and None, and the text again."""
    schema = validator.schema if isinstance(validator.schema, dict) else {}
    own = schema.get("properties", {}).get(name, {})
    kinds = own.get("type", ()) if isinstance(own, dict) else ()
    candidates: list[Any] = [text] if "string" in ([kinds] if isinstance(kinds, str) else kinds) else []
    if "null" in kinds and text.strip() == "null":
        return None
    with suppress(ValueError, RecursionError):
        candidates.append(json.loads(text))
    candidates += [value for word, value in _PYTHON.items() if text.strip() == word]
    fits = validator.evolve(schema=own)
    return next((value for value in candidates if fits.is_valid(value)), text)
