"""Tool calls as open models write them, read from the text of an answer.

    Hermes, Qwen 2.5 and 3   <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
    Qwen3-Coder              <tool_call><function=f><parameter=x>1</parameter></function></tool_call>
    OpenAI                   {"tool_calls": [{"function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]}, or that list

An answer is read as one form only: XML or JSON inside `<tool_call>`, bare `<function=...>`, or, where there is no such
tag, a whole text that is OpenAI's JSON (a fence around it does not matter). Prose around tags is not read. A tag that
does not close, or holds anything else, is an error: a call that nothing could execute earns nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_TEXT = 200_000  # characters of an answer that are read
MAX_CALLS = 128
MAX_DEPTH = 64
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^<>\n]{1,200})>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>(.*?)</parameter>", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)


class FormError(ValueError):
    """The answer holds no calls that can be executed as written. Says why."""


class Call(NamedTuple):
    """`typed` is False where the form carries text only (XML): the tool's schema then says what the text means."""

    name: str
    arguments: dict[str, Any]
    typed: bool = True


def read(content: str) -> list[Call]:
    """The calls of an answer, in order; none is an empty list. Raises `FormError`, and nothing else, on any text."""
    answer = content.rpartition("</think>")[2]
    if "<think>" in answer:
        raise FormError("the thought never ends")
    if len(answer) > MAX_TEXT:
        raise FormError(f"{len(answer)} characters, and at most {MAX_TEXT} are read")
    if "<tool_call>" in answer or "</tool_call>" in answer:
        bodies = _CALL.findall(answer)
        if answer.count("<tool_call>") != len(bodies) or answer.count("</tool_call>") != len(bodies):
            raise FormError("a <tool_call> without its end, or an end without its start")
        calls = [call for body in bodies for call in _inside(body.strip())]
    elif "<function=" in answer:
        if answer.count("<function=") != answer.count("</function>"):
            raise FormError("a <function=...> without its end")
        calls = [_xml(match) for match in _FUNCTION.finditer(answer)]
    else:
        calls = _openai(answer.strip())
    if len(calls) > MAX_CALLS:
        raise FormError(f"{len(calls)} calls, and at most {MAX_CALLS} are read")
    return calls


def from_message(tool_calls: Any) -> list[Call]:
    """The calls of an OpenAI message's `tool_calls` field. Raises `FormError`."""
    if not isinstance(tool_calls, list):
        raise FormError("tool_calls is no list")
    return [_call(item.get("function", item) if isinstance(item, dict) else item) for item in tool_calls]


def _inside(body: str) -> list[Call]:
    """What one `<tool_call>` holds: one JSON call, or one function in XML."""
    if body.startswith("<function="):
        matches = list(_FUNCTION.finditer(body))
        if len(matches) != 1 or matches[0].span() != (0, len(body)):
            raise FormError("a <tool_call> holds exactly one <function=...> and nothing beside it")
        return [_xml(matches[0])]
    return [_call(_json(body))]


def _xml(match: re.Match[str]) -> Call:
    """One newline after an opening tag and one before a closing tag belong to the form, not to the value."""
    name, body = match[1].strip(), match[2]
    if _PARAMETER.sub("", body).strip():
        raise FormError(f"the call of {name!r} holds something other than parameters")
    arguments: dict[str, Any] = {}
    for parameter in _PARAMETER.finditer(body):
        key = parameter[1].strip()
        if key in arguments:
            raise FormError(f"the call of {name!r} gives {key!r} twice")
        arguments[key] = parameter[2].removeprefix("\n").removesuffix("\n")
    return Call(name, arguments, typed=False)


def _openai(text: str) -> list[Call]:
    fenced = _FENCE.match(text)
    text = fenced[1].strip() if fenced else text
    if not text.startswith(("{", "[")):
        return []
    try:
        value = _json(text)
    except FormError:
        if '"tool_calls"' in text or '"arguments"' in text:
            raise
        return []  # prose that happens to begin with a bracket
    if isinstance(value, dict) and "tool_calls" in value:
        return from_message(value["tool_calls"] or [])
    if isinstance(value, dict) and ("arguments" in value or "function" in value):
        return from_message([value])
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return from_message(value) if any("function" in item or "arguments" in item for item in value) else []
    return []


def _call(value: Any) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise FormError('a call is an object with a "name"')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise FormError(f"the arguments of {value['name']!r} are no object")
    return Call(value["name"], arguments)


def _json(text: str) -> Any:
    """Strict JSON: no NaN, no key twice, no deep nesting."""
    depth = deepest = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        if match.group() in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match.group() in "]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise FormError(f"JSON nested {deepest} deep, and at most {MAX_DEPTH} are read")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormError(f"no JSON: {str(error)[:120]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise FormError("a key stands twice in one object")
    return value


def _refuse(name: str) -> Any:
    raise FormError(f"{name} is no JSON")
