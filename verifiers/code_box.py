"""What runs inside the two boxes of a function test. Sent there as source, so it imports nothing of ours.

    box "solution"   loads the model's code, then answers calls of its entry point
    box "tests"      runs the task's tests; the function under test is a proxy whose calls leave the box

Between them only lines of JSON travel, relayed by `verifiers.code_calls`:

    tests -> solution   {"args": [...], "kwargs": {...}}
    solution -> tests   {"value": ...}, {"value": null, "args": [...]} or {"error": [type names], "text": ...}
    tests -> verifier   {"end": "passed" | "failed" | "reference", "why": ..., "calls": n}

Values cross by value, as plain data (`encode`); nothing is pickled, and no class of the model's code reaches the tests.
Arguments that a call changed in place cross back when it returned None, as functions that work in place do.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice
from types import ModuleType, TracebackType
from typing import Any

MAX_DEPTH = 100
MAX_NODES = 500_000
MAX_LINE = 8_000_000
# Raised by a call inside `map` or `for`, these would end the test's loop early instead of failing it.
SILENT = {"StopIteration", "StopAsyncIteration"}


class NotPlain(Exception):
    """A value that cannot cross; the text names its type or the bound."""


class TooLarge(NotPlain):
    """Deeper, longer or wider than what crosses."""


def encode(value: Any) -> Any:
    """`value` as JSON: itself where JSON has it, else {"t": kind, "v": content}. Raises `NotPlain`."""
    count = 0

    def one(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise TooLarge(f"a value of more than {MAX_DEPTH} levels or {MAX_NODES} parts")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            value = int(value)
            return value if -(2**53) < value < 2**53 else {"t": "int", "v": hex(value)}
        if isinstance(value, float):
            value = float(value)
            return value if value - value == 0 else {"t": "float", "v": repr(value)}
        if isinstance(value, list):
            return [one(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {"t": "dict", "v": [[one(key, depth + 1), one(item, depth + 1)] for key, item in value.items()]}
        for kind, types in SEQUENCES.items():
            if isinstance(value, types):
                return {"t": kind, "v": [one(item, depth + 1) for item in islice(value, MAX_NODES + 1)]}
        if isinstance(value, (bytes, bytearray)):
            return {"t": "bytearray" if isinstance(value, bytearray) else "bytes", "v": value.hex()}
        if isinstance(value, complex):
            return {"t": "complex", "v": [repr(value.real), repr(value.imag)]}
        if isinstance(value, range):
            return {"t": "range", "v": [one(part, depth + 1) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, Fraction):
            return {"t": "fraction", "v": [one(value.numerator, depth + 1), one(value.denominator, depth + 1)]}
        if isinstance(value, Decimal):
            return {"t": "decimal", "v": str(value)}
        if hasattr(value, "tolist") and not isinstance(value, type):  # numpy's scalars and arrays
            return one(value.tolist(), depth + 1)
        raise NotPlain(f"a value of type {type(value).__name__}, which is not plain data")

    return one(value, 0)


SEQUENCES: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "keys": type({}.keys()),
    "values": type({}.values()),
    "items": type({}.items()),
    "iterator": Iterator,
}
BUILD: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "iterator": iter,
    "range": lambda parts: range(*parts),
    "fraction": lambda parts: Fraction(*parts),
    "dict": dict,
}
LEAVES: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "decimal": Decimal,
}


def decode(data: Any) -> Any:
    """The value that `encode` wrote; of built-in types only, whoever wrote it. Raises on anything else."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if isinstance(data, dict):
        if data["t"] in LEAVES:
            return LEAVES[data["t"]](data["v"])
        return BUILD[data["t"]](decode(data["v"]))
    return data


class Channel:
    """The stdin and stdout that the box was started with, put out of reach of `print` and `input`."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "rb")
        self._out = os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)

    def send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise TooLarge(f"a value of {len(line)} bytes")
        while line:
            line = line[os.write(self._out, line) :]

    def receive(self) -> dict[str, Any]:
        line = self._in.readline()
        if not line:
            os._exit(0)
        message: dict[str, Any] = json.loads(line)
        return message


# ---- box "solution"


def serve(channel: Channel, job: dict[str, Any]) -> None:
    """Load the model's code and answer calls, until nobody asks any more."""
    module = ModuleType("solution")
    sys.modules["solution"] = module
    try:
        for name, source in (("setup", job["setup"]), ("solution", job["source"])):
            exec(compile(source, f"<{name}>", "exec"), module.__dict__)
        function = lookup(module, job["entry_point"])
    except BaseException as error:
        channel.send({"failed": describe(error)})
        os._exit(0)
    channel.send({"loaded": True})
    while True:
        call = channel.receive()
        reply: dict[str, Any]
        try:
            args = decode(call["args"])
            value = function(*args, **{name: decode(item) for name, item in call["kwargs"].items()})
            reply = {"value": encode(value)}
            if value is None and (after := encode(args)) != call["args"]:
                reply["args"] = after
            channel.send(reply)
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            channel.send({"error": names, "text": describe(error)})


def lookup(module: ModuleType, entry_point: str) -> Callable[..., Any]:
    """`f`, or the method `Class.f` of a new object."""
    name, _, method = entry_point.partition(".")
    if not hasattr(module, name):
        raise NameError(f"it defines no {name!r}")
    found: Any = getattr(module, name)
    if method:
        found = getattr(found(), method)
    if not callable(found):
        raise TypeError(f"{entry_point!r} is not callable")
    return found  # type: ignore[no-any-return]


def describe(error: BaseException) -> str:
    """One line, whatever the error's own `__str__` does."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:500]


# ---- box "tests"


class SolutionError(Exception):
    """An exception of the model's own type."""


def run_tests(channel: Channel, job: dict[str, Any]) -> None:
    """Run the tests against the proxy, and say how they ended."""
    calls = 0

    def end(how: str, why: str) -> None:
        channel.send({"end": how, "why": why[:500], "calls": calls})
        os._exit(0)

    def candidate(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        try:
            call = {"args": encode(list(args)), "kwargs": {name: encode(value) for name, value in kwargs.items()}}
            channel.send(call)
        except TooLarge as error:
            end("failed" if calls else "reference", f"a call with {error}")
        except NotPlain as error:
            end("reference", f"the tests call the function with {error}")
        calls += 1
        problem: Exception | None = None
        value: Any = None
        try:
            reply = channel.receive()
            if "error" in reply:
                problem = exception(reply["error"], str(reply["text"]))
            else:
                value = decode(reply["value"])
                for mine, after in zip(args, decode(reply.get("args", [])), strict=False):
                    if isinstance(mine, (list, bytearray)) and type(mine) is type(after):
                        mine[:] = after
                    elif isinstance(mine, (dict, set, deque)) and type(mine) is type(after):
                        mine.clear()
                        mine.extend(after) if isinstance(mine, deque) else mine.update(after)
        except BaseException:
            end("failed", "the answer to a call was no plain data")
        if problem is not None:
            raise problem
        return value

    entry_point = job["entry_point"]
    candidate.__name__ = candidate.__qualname__ = entry_point.rpartition(".")[2]
    module = ModuleType("tests")
    sys.modules["tests"] = module
    space = module.__dict__
    try:
        setup, code = compile(job["setup"], "<setup>", "exec"), compile(job["tests"], "<tests>", "exec")
        given = {"candidate", entry_point.rpartition(".")[2], entry_point.partition(".")[0]}
        if lack := lacking(job["setup"] + "\n" + job["tests"], given):
            end("reference", f"the tests use {lack}, which nothing provides")
        exec(setup, space)
        space[candidate.__name__] = space["candidate"] = candidate
        if "." in entry_point:  # tests may write Class().method(...)
            space[entry_point.partition(".")[0]] = type("Proxy", (), {candidate.__name__: staticmethod(candidate)})
        exec(code, space)
        if not calls and callable(space.get("check")):
            space["check"](candidate)
    except BaseException as error:
        # Before the first call nothing of the model's has reached this box.
        end("failed" if calls else "reference", f"{describe(error)}{where(error.__traceback__, job['tests'])}")
    if calls == 0:
        end("reference", f"the tests never call {entry_point}")
    end("passed", f"{calls} calls")


def exception(names: list[str], text: str) -> Exception:
    """The nearest built-in exception to one that the model's code raised."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and name not in SILENT and kind is not Exception:
            try:
                return kind(text)
            except TypeError:  # some want more than a text
                continue
    return SolutionError(text)


def where(traceback: TracebackType | None, tests: str) -> str:
    """The last line of the tests that was running."""
    line = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<tests>":
            text = tests.splitlines()[traceback.tb_lineno - 1 : traceback.tb_lineno]
            line = f" at tests line {traceback.tb_lineno}: {text[0].strip()[:200] if text else ''}"
        traceback = traceback.tb_next
    return line


def lacking(source: str, given: set[str]) -> str:
    """What the tests use and nobody provides: "the module 'x'" or "the name 'x'"; empty when there is no such thing.

    Looked for before the tests run, because later a missing name could be the work of a value that the model returned.
    """
    bound, used, open_ended = given | set(dir(builtins)) | {"__name__", "__file__"}, set[str](), False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in (module.partition(".")[0] for module in modules):
                if name and find_spec(name) is None:
                    return f"the module {name!r}"
            for alias in node.names:
                open_ended |= alias.name == "*"
                bound.add(alias.asname or alias.name.partition(".")[0])
    missing = sorted(used - bound)
    return f"the name {missing[0]!r}" if missing and not open_ended else ""


def main() -> None:
    channel = Channel()
    channel.send({"ready": True})
    job = channel.receive()
    (serve if job["role"] == "solution" else run_tests)(channel, job)


if __name__ == "__main__":
    main()
