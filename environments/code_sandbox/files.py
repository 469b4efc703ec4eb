"""Problems from a JSONL file, in the three shapes that public sets have.

    HumanEval   {"prompt": "def f(x):\\n    \\"\\"\\"...", "entry_point": "f", "test": "def check(candidate): ...",
                 "canonical_solution": "    return ..."}
    MBPP        {"text" or "prompt": "...", "test_list": ["assert f(1) == 2", ...], "code": "def f(x): ...",
                 "test_imports" or "test_setup_code": ..., "challenge_test_list": [...]}
    contests    {"question" or "description" or "prompt": "...", "inputs": ["..."], "outputs": ["..."],
                 "time_limit": seconds, "num_examples": how many tests stand in the text, "solution" or "solutions"}
                 (or "input_output": the two lists in one object, or in one text of JSON)

Solutions may be missing: such a problem has no gold answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environments.code_sandbox.problem import Problem
from rlvr.errors import ConfigError
from rlvr.splits import lines_of_file

WANTED = 'write a line in the shape of HumanEval ("test"), of MBPP ("test_list") or of a contest ("inputs", "outputs")'
MAX_SECONDS = 60.0
_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_KNOWN = {
    "assert",
    "len",
    "set",
    "sorted",
    "list",
    "tuple",
    "round",
    "abs",
    "math",
    "isclose",
    "all",
    "any",
    "not",
    "sum",
}


class LineProblem(ValueError):
    """Names the field and what is wrong with it."""


def read_jsonl(path: str | Path) -> Iterator[tuple[int, Problem]]:
    """Line number (from 1) and problem of each line that is not blank. Raises `ConfigError`."""
    for number, line in lines_of_file(path, source="code_sandbox"):
        try:
            yield number, _problem(line)
        except LineProblem as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None


def _problem(line: str) -> Problem:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LineProblem(f"not valid JSON ({error}); {WANTED}") from None
    if not isinstance(record, dict):
        raise LineProblem(f"a JSON {type(record).__name__}, not an object; {WANTED}")
    if "test_list" in record:
        return _mbpp(record)
    if "test" in record:
        return _humaneval(record)
    if "inputs" in record or "input_output" in record:
        return _contest(record)
    raise LineProblem(f"no tests; {WANTED}")


def _humaneval(record: dict[str, Any]) -> Problem:
    prompt, test, name = (_text(record, key) for key in ("prompt", "test", "entry_point"))
    found = list(re.finditer(rf"^def {re.escape(name)}\b", prompt, re.MULTILINE))
    if not found:
        raise LineProblem(f"'entry_point' = {name!r} is not defined in 'prompt'")
    start = found[-1].start()
    rest = _text(record, "canonical_solution", optional=True)
    return Problem(
        text=f"Complete this Python function, and write it whole.\n{_fenced(prompt)}",
        # Imports and helpers of the prompt are there for the answer and for the tests.
        reference={"entry_point": name, "tests": _python(test, "test"), "setup": _python(prompt[:start], "prompt")},
        solution=_python(prompt + rest, "canonical_solution") if rest else "",
    )


def _mbpp(record: dict[str, Any]) -> Problem:
    key = "text" if "text" in record else "prompt"
    asked = _text(record, key)
    tests = _texts(record, "test_list", least=1)
    more = _texts(record, "challenge_test_list", least=0) if record.get("challenge_test_list") else []
    setup = record.get("test_setup_code") or record.get("test_imports") or ""
    setup = "\n".join(setup) if isinstance(setup, list) else setup
    if not isinstance(setup, str):
        raise LineProblem(f"'test_setup_code' = {setup!r} is not a text")
    solution = _python(_text(record, "code", optional=True).replace("\r\n", "\n"), "code")
    for number, test in enumerate(tests + more):
        _python(test, f"test_list.{number}")
    name = record.get("entry_point") or _called(tests, solution)
    if not isinstance(name, str):
        raise LineProblem(f"'entry_point' = {name!r} is not a name")
    return Problem(
        # The sets' own words do not name the function; a test does, and is the example.
        text=f"{asked.strip()}\nYour code must pass this test:\n{_fenced(tests[0])}",
        reference={"entry_point": name, "tests": tests + more, "setup": _python(setup, "test_setup_code")},
        public=1,
        solution=solution,
    )


def _contest(record: dict[str, Any]) -> Problem:
    key = next((key for key in ("question", "description", "prompt") if key in record), "question")
    asked = _text(record, key)
    both = record.get("input_output", record)
    if isinstance(both, str):
        try:
            both = json.loads(both)
        except ValueError as error:
            raise LineProblem(f"'input_output' holds no JSON: {error}") from None
    if not isinstance(both, dict):
        raise LineProblem("'input_output' is no object of 'inputs' and 'outputs'")
    if both.get("fn_name"):
        raise LineProblem("'fn_name': calls of a function belong into 'test_list', as asserts")
    inputs, outputs = _texts(both, "inputs", least=1), _texts(both, "outputs", least=1)
    if len(inputs) != len(outputs):
        raise LineProblem(
            f"'inputs' has {len(inputs)} entries, 'outputs' has {len(outputs)}; each input needs an output"
        )
    seconds = record.get("time_limit", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise LineProblem(f"'time_limit' = {seconds!r} is no number of seconds from 0 to {MAX_SECONDS:g}")
    examples = record.get("num_examples", 0)
    if isinstance(examples, bool) or not isinstance(examples, int) or not 0 <= examples <= len(inputs):
        raise LineProblem(f"'num_examples' = {examples!r} is not a number from 0 to the {len(inputs)} tests")
    solution = record.get("solution") or next(iter(record.get("solutions") or []), "")
    if not isinstance(solution, str):
        raise LineProblem(f"'solution' = {solution!r} is not a text")
    io = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    # A contest's limit is of CPU time; a busy machine may take longer for as much.
    limits = {"limits": {"cpu_seconds": seconds, "wall_seconds": 2 * seconds + 2}} if seconds else {}
    return Problem(
        text=f"{asked.strip()}\nWrite a Python program that reads stdin and writes stdout.",
        reference={"io": io, **limits},
        public=examples,
        solution=_python(solution, "solution"),
    )


def _text(record: dict[str, Any], key: str, *, optional: bool = False) -> str:
    value: Any = record.get(key) or ("" if optional else record.get(key))
    if key not in record and not optional:
        raise LineProblem(f"no {key!r}; {WANTED}")
    if not isinstance(value, str) or not (value.strip() or optional):
        raise LineProblem(f"{key!r} = {value!r} is not a text")
    return str(value)


def _texts(record: dict[str, Any], key: str, *, least: int) -> list[str]:
    value: Any = record.get(key)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(item, str) for item in value):
        raise LineProblem(f"{key!r} is no list of {'at least one text' if least else 'texts'}")
    return [str(item) for item in value]


def _python(source: str, key: str) -> str:
    try:
        compile(source, f"<{key}>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise LineProblem(f"{key!r} is no Python: {error}") from None
    return source


def _called(tests: list[str], solution: str) -> str:
    """The function that the tests are about: of the names that they call, one that the solution defines."""
    names: list[str] = list(
        dict.fromkeys(name for test in tests for name in _CALLED.findall(test) if name not in _KNOWN)
    )
    defined = [name for name in names if re.search(rf"^def {name}\b", solution, re.MULTILINE)]
    if not names:
        raise LineProblem("'test_list' calls no function; name it in 'entry_point'")
    return (defined or names)[0]


def _fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"
