"""Python functions as tools: type hints and a docstring become what the model reads, and what its calls are held to.

    def search(query: str, limit: Annotated[int, Field(ge=1, le=20)] = 5) -> list[str]:
        \"\"\"Search the knowledge base.

        Args:
            query: words to look for
            limit: how many articles at most
        \"\"\"

    toolbox = Toolbox(search, desk.close_ticket)              # plain functions, or an object's methods
    Task(..., tools=toolbox.specs)                            # what the model sees: OpenAI's form, with JSON Schema
    toolbox.call("search", {"query": "vpn"})                  # '["KB-3 VPN on a new laptop"]': a tool message's text

A call is looked up by name, its arguments are checked and become typed values, and the function is called with them:
nothing is ever evaluated. What the model did wrong is a `ToolError`, whose text is for the model to read; a tool
refuses by raising one. Any other exception is a fault of ours: it goes through, and makes the episode invalid.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Annotated, Any, NotRequired
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from typing_extensions import TypedDict

MAX_ECHO = 200  # characters of what a model wrote that an error repeats
_ARGS = re.compile(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)*)", re.MULTILINE)
_SECTION = re.compile(r"^(?:Returns|Raises|Yields|Examples?|Notes?):[ \t]*\n.*", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^(\w+)(?:[ \t]*\(.*?\))?:[ \t]*(.*)$")
# Their contents are values, not schemas: a "title" in them is not pydantic's.
_VALUES = ("default", "const", "enum", "examples")


class ToolError(Exception):
    """A call that was not carried out. The model reads the text, and may try otherwise; a tool raises it to refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function: `spec` is what a model sees (OpenAI's form), `arguments` makes keyword arguments of JSON."""

    name: str
    spec: dict[str, Any]
    arguments: TypeAdapter[dict[str, Any]]


class Toolbox:
    """The tools of one episode, by name. Making one is cheap: a function is described once in a process."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        """Raises `TypeError` for a function that cannot be described, and for two of one name."""
        self._functions: dict[str, Callable[..., Any]] = {}
        self._tools: dict[str, Tool] = {}
        for function in functions:
            tool = describe(function)
            if tool.name in self._tools:
                raise TypeError(f"two tools are named {tool.name!r}; rename one")
            if not isinstance(function, MethodType) and "self" in inspect.signature(function).parameters:
                raise TypeError(f"tool {tool.name!r} is a method without its object; pass `object.{tool.name}`")
            self._tools[tool.name] = tool
            self._functions[tool.name] = function

    @property
    def specs(self) -> tuple[dict[str, Any], ...]:
        """The tools as a model sees them, for `Task.tools`."""
        return tuple(tool.spec for tool in self._tools.values())

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The text of the tool's answer: a text as it is, other values as JSON.

        Raises `ToolError` for a name or arguments that do not fit, and what the function raises.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"no tool is named {_short(name)!r}; there are {', '.join(self._tools) or 'none'}")
        try:
            text = json.dumps(_whole(arguments), allow_nan=False)
            values = tool.arguments.validate_json(text, strict=True)
        except ValidationError as error:
            raise ToolError(f"{name}: {_explain(error)}") from None
        except (ValueError, RecursionError) as error:
            raise ToolError(f"{name}: the arguments are no JSON: {_short(str(error))}") from None
        result = self._functions[name](**values)
        return result if isinstance(result, str) else to_json(result).decode()


def describe(function: Callable[..., Any]) -> Tool:
    """The tool that a function or method is; a first parameter `self` is no part of it. Raises `TypeError`."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType) or inspect.iscoroutinefunction(plain) or inspect.isgeneratorfunction(plain):
        raise TypeError(f"{function!r} is no plain Python function; wrap it in one to make it a tool")
    if plain not in _described:
        _described[plain] = _describe(plain)
    return _described[plain]


_described: WeakKeyDictionary[FunctionType, Tool] = WeakKeyDictionary()


def _describe(function: FunctionType) -> Tool:
    name = function.__name__
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {name!r}: a type hint cannot be resolved: {error}") from None
    description, notes = _read_docstring(function)
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[bool(parameters) and parameters[0].name == "self" :]:
        fields[parameter.name] = _field(name, parameter, hints, notes.pop(parameter.name, None))
    if notes:
        raise TypeError(f"tool {name!r}: the docstring describes {', '.join(notes)}, and no parameter is named so")
    try:
        # A TypedDict, because a parameter may have any name; a model's fields may not.
        kind = with_config(ConfigDict(extra="forbid"))(TypedDict(name, fields))  # type: ignore[operator]
        adapter = TypeAdapter[dict[str, Any]](kind)
        schema = adapter.json_schema()
        plain = _plain(schema, schema.get("$defs", {}), ())
    except (PydanticUserError, PydanticSerializationError, RecursionError) as error:
        raise TypeError(f"tool {name!r} has no JSON Schema: {str(error).splitlines()[0]}") from error
    order = ("type", "properties", "required", "additionalProperties")
    schema = {key: plain[key] for key in order if key in plain}
    function_spec = {"name": name, "description": description, "parameters": schema}
    return Tool(name=name, spec={"type": "function", "function": function_spec}, arguments=adapter)


def _field(tool: str, parameter: inspect.Parameter, hints: dict[str, Any], note: str | None) -> Any:
    """One parameter as a field of the TypedDict."""
    place = f"tool {tool!r}, parameter {parameter.name!r}"
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise TypeError(f"{place}: {parameter} cannot be given by name; write each parameter out")
    if parameter.name not in hints:
        raise TypeError(f"{place} has no type hint; write one, for it becomes the JSON Schema")
    hint = hints[parameter.name]
    if note:
        hint = Annotated[hint, Field(description=note)]
    if parameter.default is parameter.empty:
        return hint
    try:
        default = to_jsonable_python(parameter.default)
    except PydanticSerializationError:
        raise TypeError(f"{place}: the default {parameter.default!r} is no JSON; take a plain value") from None
    return NotRequired[Annotated[hint, Field(json_schema_extra={"default": default})]]


def _read_docstring(function: FunctionType) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter under "Args:" (Google's style)."""
    text = inspect.getdoc(function) or ""
    notes: dict[str, str] = {}
    section = _ARGS.search(text)
    for line in textwrap.dedent(section[1]).splitlines() if section else []:
        entry = _ENTRY.match(line)
        if entry:
            notes[entry[1]] = entry[2].strip()
        elif notes and line.strip():
            notes[list(notes)[-1]] += f" {line.strip()}"
    description = " ".join(_SECTION.sub("", _ARGS.sub("", text)).split())
    if not description:
        raise TypeError(f"tool {function.__name__!r} has no docstring; write what it does, for the model reads it")
    return description, notes


def _plain(schema: Any, definitions: dict[str, Any], inside: tuple[str, ...]) -> Any:
    """A schema without pydantic's titles and with every `$ref` written out: shorter, and plainer to a model."""
    if isinstance(schema, list):
        return [_plain(item, definitions, inside) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name in inside:
            raise RecursionError(f"type {name} holds itself")
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain(definitions[name] | beside, definitions, (*inside, name))
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VALUES:
            plain[key] = value
        elif key == "properties":
            plain[key] = {name: _plain(each, definitions, inside) for name, each in value.items()}
        elif key not in ("title", "$defs"):
            plain[key] = _plain(value, definitions, inside)
    return plain


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is an integer there, and here becomes one."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"])) or "the arguments"
    given = "" if first["type"] == "missing" else f", got {_short(json.dumps(first['input'], default=str))}"
    return f"{_short(place)}: {first['msg']}{given}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_ECHO else f"{text[:MAX_ECHO]}..."
