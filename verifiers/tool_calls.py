"""Judges tool calls: by the calls themselves, or by the world that they leave behind.

    answers -> calls (`tool_forms`) -> arguments against each tool's JSON Schema -> the expected calls, or the end state

The reference of a task:

    {"tools": [{"name": ..., "parameters": {JSON Schema}}, ...],      OpenAI's {"type": "function", ...} does as well
     "calls": [{"name": ..., "arguments": {...}}, ...],
     "order": "given" (default) | "any",
     "optional": {"tool": ["argument", ...]}}                         arguments that may be given or left out

or, judged by the end state, which an environment computes (`World`; several ways may lead there):

    {"tools": [...], "start": {...}, "states": [accepted end states], "ignore": ["log", "users.*.last_seen"]}

No call at all is right where `calls` is an empty list. Numbers are equal by value (2 is 2.0), true is not 1, texts are
equal as they stand.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from rlvr.types import Message, Task, Verdict, judged
from verifiers import worker
from verifiers.tool_forms import Call, FormError, read
from verifiers.tool_schema import ReferenceFault, Tools, load

MAX_VALUES = 20_000  # JSON values in all arguments of an answer: checking them costs their number
_FILES = ("tool_calls", "tool_forms", "tool_schema", "tool_worker", "worker")
_SOURCE = hashlib.sha256(b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in _FILES))


class World(Protocol):
    """What an environment hands in: plays calls on a copy of `start` and returns the state that they leave.

    A call that the world refuses changes nothing and is no error: a model may try and be told no. What the world
    raises is a fault of ours, and the verdict invalid.
    """

    def __call__(self, start: Any, calls: Sequence[Call]) -> Any: ...


class ToolCallSettings(BaseModel):
    """`turns`: whether all assistant messages count, or the last one alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: Literal["all", "last"] = "all"
    order: Literal["given", "any"] = "given"  # where the reference says nothing


class ToolCallVerifier:
    """Correct when every call is well-formed and the calls, or the end state, are the reference's."""

    id = "tool_calls"

    def __init__(self, settings: ToolCallSettings | None = None, world: World | None = None) -> None:
        self.settings = settings or ToolCallSettings()
        self.world = world
        code = _SOURCE.copy()
        code.update(self.settings.model_dump_json().encode())
        self.version = code.hexdigest()[:12]

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """The calls of the assistant's messages, in order, are what is judged."""
        by_state = "states" in task.reference
        checks = {"reads": False, "valid_arguments": False, "state" if by_state else "calls": False}
        verdict = partial(judged, self, checks=checks, started=perf_counter())

        try:
            tools = _tools(task.reference)
            expected = None if by_state else _expected(task.reference, tools)
            order = _order(task.reference, self.settings.order)
            optional = _optional(task.reference)
        except ReferenceFault as fault:
            return verdict("invalid", f"the reference of task {task.id}: {fault}")
        except worker.WorkerLostError as error:
            return verdict("invalid", f"no worker process to check arguments in: {error}")
        own = self._answers(task, transcript)
        if not own:
            return verdict("incorrect", "no answer")
        try:
            calls = [call for content in own for call in read(content)]
            checks["reads"] = True
            if sum(_size(call.arguments) for call in calls) > MAX_VALUES:
                raise FormError(f"more than {MAX_VALUES} values in the arguments")
            calls = tools.check(calls)
        except FormError as error:
            return verdict("incorrect", str(error))
        except worker.WorkerLostError as error:
            return verdict("invalid", f"no worker process to check arguments in: {error}")
        checks["valid_arguments"] = True
        if expected is not None:
            wrong = difference(expected, calls, order, optional)
            checks["calls"] = wrong is None
            return (
                verdict("correct", f"the {len(calls)} calls expected") if wrong is None else verdict("incorrect", wrong)
            )
        if self.world is None:
            return verdict("invalid", f"the reference of task {task.id} names end states, and no world was given")
        try:
            state = self.world(copy.deepcopy(task.reference.get("start")), calls)
            wrong = compare_states(state, task.reference["states"], task.reference.get("ignore", ()))
        except Exception as error:  # the environment's code
            return verdict("invalid", f"the world of task {task.id} failed: {error!r}")
        checks["state"] = wrong is None
        return verdict("correct", "an accepted end state") if wrong is None else verdict("incorrect", wrong)

    def explain(self, task: Task, transcript: Sequence[Message]) -> list[str]:
        """The calls that are read, and what they are held to: lines for a person."""
        lines = []
        for content in self._answers(task, transcript):
            try:
                lines += [f"read: {_brief(call)}{'' if call.typed else ' as text'}" for call in read(content)]
            except FormError as error:
                lines.append(f"not read: {error}")
        order = task.reference.get("order", self.settings.order)
        wanted = "an end state" if "states" in task.reference else f"the reference's calls in {order} order"
        return [*(lines or ["read: no call"]), f"judged by: {wanted}"]

    def _answers(self, task: Task, transcript: Sequence[Message]) -> list[str]:
        """What the assistant wrote after the prompt, as far as the settings let it count."""
        own = [message.content for message in transcript[len(task.prompt) :] if message.role == "assistant"]
        return own[-1:] if self.settings.turns == "last" else own


def difference(
    expected: Sequence[Call], calls: Sequence[Call], order: Literal["given", "any"], optional: dict[str, list[str]]
) -> str | None:
    """How the calls differ from the expected ones; `None` where they do not."""
    if len(calls) != len(expected):
        return f"{len(calls)} calls, expected {len(expected)}"

    def same_call(a: Call, b: Call) -> bool:
        free = optional.get(a.name, ())
        if a.name != b.name or any(key not in b.arguments and key not in free for key in a.arguments):
            return False
        return all(
            same(a.arguments[key], value) if key in a.arguments else key in free for key, value in b.arguments.items()
        )

    if order == "given":
        for place, (wanted, call) in enumerate(zip(expected, calls, strict=True), 1):
            if not same_call(wanted, call):
                return f"call {place} is {_brief(call)}, expected {_brief(wanted)}"
        return None
    partner: dict[int, int] = {}  # expected call -> call; with optional arguments one call may fit several

    def place_call(number: int, tried: set[int]) -> bool:
        for index, wanted in enumerate(expected):
            if index not in tried and same_call(wanted, calls[number]):
                tried.add(index)
                if index not in partner or place_call(partner[index], tried):
                    partner[index] = number
                    return True
        return False

    for number, call in enumerate(calls):
        if not place_call(number, set()):
            return f"{_brief(call)} is not expected, or not so often"
    return None


def compare_states(state: Any, accepted: Sequence[Any], ignore: Sequence[str] = ()) -> str | None:
    """How `state` differs from the nearest end state in `accepted` (first difference); `None` where it is one of them.

    `ignore` names fields by their path from the top; `*` stands for any key or place.
    """
    if not accepted:
        raise ReferenceFault("no accepted end state")
    paths = [path.split(".") for path in ignore]
    found = [_state_difference(_without(state, paths), _without(other, paths), "state") for other in accepted]
    return None if None in found else found[0]


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: numbers by value, true is not 1."""
    return _state_difference(a, b, "") is None


def _state_difference(a: Any, b: Any, path: str) -> str | None:
    """The path of the first place where two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            if key not in a or key not in b:
                return f"{path}.{key} is {'missing' if key not in a else 'not expected'}"
            inner = _state_difference(a[key], b[key], f"{path}.{key}")
            if inner is not None:
                return inner
        return None
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{path} has {len(a)} entries, expected {len(b)}"
        return next(
            (d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := _state_difference(x, y, f"{path}.{i}"))),
            None,
        )
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    equal = a == b if numbers else type(a) is type(b) and a == b
    if numbers and not equal and (isinstance(a, float) or isinstance(b, float)):
        try:
            equal = math.isclose(a, b, rel_tol=1e-9)
        except OverflowError:
            equal = False
    return None if equal else f"{path} is {str(a)[:60]!r}, expected {str(b)[:60]!r}"


def _without(value: Any, paths: list[list[str]]) -> Any:
    """`value` without the fields that `paths` name."""
    if not paths or not isinstance(value, dict | list):
        return value
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    kept = {}
    for key in keys:
        here = [path for path in paths if path[0] in ("*", str(key))]
        if not any(len(path) == 1 for path in here):
            kept[key] = _without(value[key], [path[1:] for path in here])
    return kept if isinstance(value, dict) else list(kept.values())


def _tools(reference: dict[str, Any]) -> Tools:
    try:
        return load(reference["tools"])
    except KeyError:
        raise ReferenceFault("no list of tools") from None


def _expected(reference: dict[str, Any], tools: Tools) -> list[Call]:
    try:
        calls = [Call(call["name"], call.get("arguments", {})) for call in reference["calls"]]
        if not all(isinstance(call.arguments, dict) for call in calls):
            raise TypeError("arguments that are no object")
        return tools.check(calls)
    except FormError as error:
        raise ReferenceFault(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ReferenceFault(f"calls must be a list of objects with name and arguments: {error!r}") from None


def _optional(reference: dict[str, Any]) -> dict[str, list[str]]:
    optional = reference.get("optional", {})
    if not isinstance(optional, dict) or not all(isinstance(names, list) for names in optional.values()):
        raise ReferenceFault(f'optional is {{"tool": ["argument", ...]}}, not {str(optional)[:100]}')
    return optional


def _order(reference: dict[str, Any], default: Literal["given", "any"]) -> Literal["given", "any"]:
    order = reference.get("order", default)
    if order not in ("given", "any"):
        raise ReferenceFault(f"order is 'given' or 'any', not {order!r}")
    return "any" if order == "any" else "given"


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1


def _brief(call: Call) -> str:
    text = f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)[:100]})"
    return text[:140]
