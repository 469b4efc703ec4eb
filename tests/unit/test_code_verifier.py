"""Code is judged by its values alone: no trick turns a wrong answer into a right one, or into *invalid*."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlvr.types import Message, Task, Verdict
from sandbox.base import Conversation, Execution, Limits, Program, Sandbox, Talk
from sandbox.shared import Kind, shared_sandbox
from verifiers.code import CodeVerifier, extract
from verifiers.code_box import NotPlain, decode, encode
from verifiers.code_io import same_output

CHECK = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-1, 1) == 0
    assert candidate(40, 2) == 42, "SECRET_EXPECTED_4711"
"""
GOLD = "def add(a, b):\n    return a + b"


KIND: Kind = "bubblewrap"


@pytest.fixture(params=["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)], autouse=True, scope="module")
def kind(request: pytest.FixtureRequest) -> Iterator[None]:
    global KIND
    KIND = request.param
    yield
    KIND = "bubblewrap"


def with_limits(**limits: Any) -> CodeVerifier:
    return CodeVerifier(KIND, Limits(**limits))


def task(reference: dict[str, Any]) -> Task:
    return Task(id="code/train/0", environment="code", prompt=(), reference=reference)


def judge(answer: str, *, verifier: CodeVerifier | None = None, **reference: Any) -> Verdict:
    reference = reference if "io" in reference else {"entry_point": "add", "tests": CHECK} | reference
    verifier = verifier or with_limits(wall_seconds=5.0)
    return verifier.verify(task(reference), [Message(role="assistant", content=answer)])


# ---- what is right


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (GOLD, {}),
        (f"Here:\n```python\n{GOLD}\n```\nIt prints:\n```\n5\n```\n", {}),
        (GOLD, {"tests": "assert add(1, 1) == 2\nassert add(a=1, b=2) == 3"}),
        (GOLD, {"tests": ["assert add(1, 1) == 2", "assert add(0, 0) == 0"]}),
        (GOLD, {"tests": CHECK + "\ncheck(add)\n"}),
        ("class Solution:\n    def add(self, a, b): return a + b", {"entry_point": "Solution.add"}),
        (
            "class Solution:\n    def add(self, a, b): return a + b",
            {"entry_point": "Solution.add", "tests": "assert Solution().add(1, 2) == 3"},
        ),
        ("def add(items): items.sort()", {"tests": "xs = [3, 1, 2]\nadd(xs)\nassert xs == [1, 2, 3]"}),
        ("def add(n):\n    yield from range(n)", {"tests": "assert list(add(3)) == [0, 1, 2]"}),
        (
            "class Odd(ValueError): pass\ndef add(n): raise Odd(n)",
            {"tests": "try:\n    add(1)\nexcept ValueError:\n    pass\nelse:\n    assert False"},
        ),
        ("def add(x): return poly(x)", {"setup": "def poly(x): return 2 * x", "tests": "assert add(3) == poly(3)"}),
        (
            "import math\ndef add(): return (1, {2: {3}}, b'x', 2**80, math.inf, 1j, None, 'ä')",
            {"tests": "assert add() == (1, {2: {3}}, b'x', 2**80, float('inf'), 1j, None, 'ä')"},
        ),
    ],
)
def test_a_right_answer_is_correct(answer: str, reference: dict[str, Any]) -> None:
    verdict = judge(answer, **reference)
    assert verdict.outcome == "correct", verdict.reason
    assert verdict.checks == {"code": True, "loads": True, "tests": True}


def test_arguments_cross_by_value_unless_the_call_works_in_place() -> None:
    # Otherwise `add` could empty the list that the expected value is computed from.
    cheat = "def add(xs):\n    xs.clear()\n    return []"
    assert judge(cheat, tests="xs = [3, 1]\nassert add(xs) == sorted(xs)").outcome == "incorrect"


# ---- tricks; every one a wrong answer

AGREES = """
class Agrees(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def add(a, b): return Agrees(7)
"""
FRAMES = """
import gc, os, sys
def add(a, b):
    frame, texts = sys._getframe(), []
    while frame:
        texts.append(repr(frame.f_locals) + repr(frame.f_globals))
        frame = frame.f_back
    texts += [repr(each)[:10_000] for each in gc.get_objects() if isinstance(each, (str, dict, list, tuple))]
    texts += [repr(sys.argv), repr(os.environ)]
    return a + b if any("1174_DETCEPXE_TERCES"[::-1] in text for text in texts[:]) else None
"""
FILES = """
import glob, os
needle = bytes(reversed(b"1174_DETCEPXE_TERCES"))
def holds(path):
    try:
        with open(path, "rb") as file: return needle in file.read(1 << 20)
    except OSError: return False
def memory(pid):
    try:
        for line in open(f"/proc/{pid}/maps"):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "rw" in line and end - start < 1 << 24:
                with open(f"/proc/{pid}/mem", "rb") as file:
                    file.seek(start)
                    if needle in file.read(end - start): return True
    except OSError: return False
    return False
def add(a, b):
    own = glob.glob("*") + glob.glob("../rlvr-run-*/*")
    pids = [name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())]
    others = [f"/proc/{pid}/{name}" for pid in pids for name in ("cmdline", "environ")]
    boxes = [pid for pid in pids if b"main.py" in open(f"/proc/{pid}/cmdline", "rb").read()]
    # An ordinary user's other processes are open to it unless the kernel forbids ptrace.
    verifier = [os.getppid()] if os.getuid() == 0 else []
    return a + b if any(map(holds, own + others)) or any(map(memory, boxes + verifier)) else None
"""
HARNESS = """
import sys, builtins, json
main = sys.modules["__main__"]
for space in (vars(main), sys._getframe(1).f_globals):
    for name in ("encode", "lookup", "describe"):
        space[name] = lambda *_: True
    space["MAX_DEPTH"] = 10**9
json.dumps = lambda *_, **__: '{"end": "passed", "why": "", "calls": 3}'
builtins.AssertionError = Exception
def add(a, b): return None
"""
TRICKS = {
    "sys.exit at import": "import sys\nsys.exit(0)",
    "sys.exit in a call": "import sys\ndef add(a, b): sys.exit(0)",
    "os._exit at import": "import os\nos._exit(0)",
    "os._exit in a call": "import os\ndef add(a, b): os._exit(0)",
    "exit code 125": "import os\ndef add(a, b): os._exit(125)",
    "exit code 137": "import os\nos._exit(137)",
    "printed passed": 'print("passed")\nprint(\'{"end": "passed", "calls": 3}\')\ndef add(a, b): print("PASSED")',
    "forged end on the channel": (
        "import os\ndef add(a, b):\n    for fd in range(3, 20):\n        try:\n"
        '            os.write(fd, b\'{"end": "passed", "why": "", "calls": 3}\\n\')\n'
        "        except OSError: pass\n    return None"
    ),
    "no such container": (
        "import sys\nprint('Error: No such container: box', file=sys.stderr)\n"
        "print('docker: Cannot connect to the Docker daemon')\nsys.exit(125)"
    ),
    "self SIGKILL at import": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "self SIGKILL in a call": "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGKILL)",
    "SIGKILL to the group": "import os, signal\ndef add(a, b): os.killpg(0, signal.SIGKILL)",
    "SIGKILL to the verifier": "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n    return 1",
    "SIGKILL to everybody": "import os\ndef add(a, b):\n    os.kill(-1, 9)\n    return 1",
    "limits of the verifier": (
        "import os, resource\ndef add(a, b):\n"
        "    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))\n    return 1"
    ),
    "SIGSTOP": "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGSTOP)",
    "segmentation fault": "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    "closed pipes": "import os\ndef add(a, b):\n    os.closerange(0, 100)\n    return a + b",
    "__eq__ that agrees": AGREES,
    "an object that agrees": "class A:\n    def __eq__(self, o): return True\ndef add(a, b): return A()",
    "patched assert": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\ndef add(a, b): return 0",
    "frames and garbage": FRAMES,
    "files and memory": FILES,
    "rewritten harness": HARNESS,
    "import of the tests": "import tests\ndef add(a, b): return tests.expected",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 1",
    "StopIteration": "def add(a, b): raise StopIteration",
    "AssertionError": "def add(a, b): raise AssertionError",
    "KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "GeneratorExit": "def add(a, b): raise GeneratorExit",
    "nan": "def add(a, b): return float('nan')",
    "endless recursion": "def add(a, b): return add(a, b)",
    "endless generator": "def add(a, b):\n    while True: yield 1",
    "nested value": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "self-containing value": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "huge value": "def add(a, b): return 'x' * 10**8",
    "memory bomb": "def add(a, b): return len(bytearray(1 << 34))",
    "endless output": "import sys\ndef add(a, b):\n    while True: sys.stderr.write('x' * 10**6)",
    "does not compile": "def add(a, b) return a + b",
    "nested brackets": "(" * 10_000,
    "null byte": "def add(a, b): return '\0'",
    "surrogate": "def add(a, b): return '\ud800'",
    "entry point missing": "def sub(a, b): return a - b",
    "entry point is no function": "add = 5",
    "wrong": "def add(a, b): return a - b",
    "empty": "",
    "empty block": "```python\n```",
    "prose": "The answer is 5.",
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_is_incorrect_and_never_invalid(name: str) -> None:
    fast = with_limits(wall_seconds=2.0 if name in ("SIGSTOP", "endless output") else 8.0)
    verdict = judge(TRICKS[name], verifier=fast)
    assert verdict.outcome == "incorrect", verdict.reason
    assert verdict.checks["tests"] is False


def test_an_exception_cannot_end_a_loop_of_the_tests_early() -> None:
    tests = "assert all(map(lambda pair: add(*pair) == sum(pair), [(1, 2), (3, 4)]))"
    assert judge("def add(a, b): raise StopIteration", tests=tests).outcome == "incorrect"


@pytest.mark.parametrize("answer", ["I would add the two.", "5", "```python\nadd = '\0'\n```", "\0", "x" * 300_000, ""])
def test_what_cannot_be_the_function_never_enters_a_box(answer: str) -> None:
    class NoBoxes(Broken):
        async def run_together(self, *parts: tuple[Program, Talk]) -> list[Execution]:
            raise AssertionError("a box was used")

    entry_point = "append" if "add" in answer else "add"
    verdict = judge(answer, verifier=with_sandbox(NoBoxes()), entry_point=entry_point)
    assert verdict.outcome == "incorrect", verdict.reason
    assert verdict.checks["code"] is False


@pytest.mark.slow
@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)"])
def test_code_that_never_ends_is_incorrect_within_its_limit(code: str) -> None:
    for answer in (f"```python\n{code}\n```", f"def add(a, b):\n    {code.replace(chr(10), chr(10) + '    ')}"):
        began = time.monotonic()
        verdict = judge(answer, verifier=with_limits(wall_seconds=2.0))
        assert verdict.outcome == "incorrect"
        assert "longer than 2 s" in verdict.reason
        assert time.monotonic() - began < 8.0


def test_a_value_that_makes_the_tests_run_forever_is_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.code_calls.GRACE_SECONDS", 0.0)
    verifier = with_limits(wall_seconds=1.0)
    verdict = judge("def add(): return 10**12", verifier=verifier, tests="n = 0\nfor _ in range(add()): n += 1")
    assert verdict.outcome == "incorrect", verdict.reason


# ---- references that are at fault


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ({"tests": "def check(candidate) assert"}, "SyntaxError"),
        ({"tests": "import no_such_module\nassert add(1, 1) == 2"}, "no_such_module"),
        ({"tests": "assert add(1, 1) == helper(2)"}, "the name 'helper'"),
        ({"tests": "assert 1 + 1 == 2"}, "never call add"),
        ({"tests": "assert False\nadd(1, 1)"}, "AssertionError"),
        ({"tests": "add(lambda: 1, 2)"}, "not plain data"),
        ({"tests": 7}, "entry_point and tests"),
        ({"entry_point": "add; x"}, "entry_point"),
        ({"limits": {"wall": 3}}, "limits.wall"),
        ({"limits": {"wall_seconds": -3}}, "limits.wall_seconds"),
        ({"io": []}, "io"),
        ({"io": [{"input": "1"}]}, "io.0"),
        ({"io": [{"input": "", "output": ""}], "checker": "none"}, "checker"),
    ],
)
def test_a_reference_that_cannot_be_used_is_invalid_and_named(reference: dict[str, Any], named: str) -> None:
    verdict = judge(GOLD, **reference)
    assert verdict.outcome == "invalid"
    assert verdict.reason.startswith("the reference of task code/train/0")
    assert named in verdict.reason


def test_a_name_that_the_models_value_leaves_unbound_is_the_models_fault() -> None:
    tests = "for item in add(1, 2): last = item\nassert last == 3"
    assert judge("def add(a, b): return []", tests=tests).outcome == "incorrect"


# ---- programs on stdin and stdout

SUM = "print(sum(map(int, input().split())))"
IO = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (SUM, "correct"),
        (f"import sys\n{SUM}\nsys.exit(0)", "correct"),
        ("if __name__ == '__main__':\n    " + SUM, "correct"),
        ("print(3)", "incorrect"),
        (f"import os\n{SUM}\nos._exit(0)", "incorrect"),  # nothing was flushed
        (f"{SUM}\nraise SystemExit(125)", "incorrect"),
        (f"{SUM}\n1 / 0", "incorrect"),
        ("import os\nos.kill(os.getpid(), 9)", "incorrect"),
        ("print('Error: No such container: x')\nraise SystemExit(125)", "incorrect"),
        ("while True: print(3)", "incorrect"),
        ("import glob\nprint(open(glob.glob('*out*')[0]).read())", "incorrect"),
    ],
)
def test_a_program_is_judged_by_its_output(answer: str, outcome: str) -> None:
    verdict = judge(answer, io=IO)
    assert verdict.outcome == outcome, verdict.reason


def test_all_runs_of_a_program_share_a_time_limit() -> None:
    many = [{"input": "", "output": "1"}] * 50
    began = time.monotonic()
    verdict = judge("import time\ntime.sleep(0.3)\nprint(1)", io=many, limits={"total_seconds": 1.0})
    assert verdict.outcome == "incorrect"
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize(
    ("expected", "given_", "same"),
    [
        ("3\n", "3", True),
        ("1 2\n3\n", "1  2 \n\n3\n\n", True),
        ("0.333333", "0.3333333333", True),
        ("1.5", "1.6", False),
        ("1e-3", "0.001", True),
        ("1.0", "1", True),
        ("3", "3.0", False),  # a whole number is asked for
        ("3", "4", False),
        ("1 2", "1\n2", False),
        ("1", "", False),
        ("Yes", "yes", False),
        ("0.5", "nan", False),
        ("0.5", "inf", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_the_checker(expected: str, given_: str, same: bool) -> None:
    assert same_output(expected, given_) is same


# ---- whose fault: the canary decides


class Broken:
    """Fails as told: the first `failures` runs; with `at_start` before it holds any program."""

    def __init__(self, failures: int = 10**9, *, healthy: bool = False, at_start: bool = False) -> None:
        self.real, self.left, self.well, self.at_start = shared_sandbox(KIND), failures, healthy, at_start

    async def run(self, program: Program, talk: Talk | None = None) -> Execution:
        if self.left <= 0:
            return await self.real.run(program, talk)
        self.left -= 1
        return Execution(status="sandbox_failure", detail="the engine is gone")

    async def run_together(self, *parts: tuple[Program, Talk]) -> list[Execution]:
        if self.left <= 0:
            return await self.real.run_together(*parts)
        self.left -= 1
        if self.at_start:
            return [Execution(status="sandbox_failure", detail="the engine is gone") for _ in parts]
        *others, (program, talk) = parts

        async def until_loaded(box: Conversation) -> None:
            await talk(_Dying(box))

        *ends, _ = await self.real.run_together(*others, (program, until_loaded))
        return [*ends, Execution(status="sandbox_failure", detail="the engine is gone")]

    async def healthy(self, program: Program) -> bool:
        return self.well


class _Dying:
    """A conversation that ends after two answers."""

    def __init__(self, box: Conversation) -> None:
        self.box, self.send, self.left = box, box.send, 2

    async def receive(self) -> bytes:
        self.left -= 1
        return await self.box.receive() if self.left >= 0 else b""


def with_sandbox(sandbox: Sandbox) -> CodeVerifier:
    return CodeVerifier(sandbox, Limits(wall_seconds=5.0))


def test_a_sandbox_that_fails_its_canary_makes_the_verdict_invalid() -> None:
    for reference in ({}, {"io": IO}):
        verdict = judge(GOLD, verifier=with_sandbox(Broken()), **reference)
        assert verdict.outcome == "invalid"
        assert "the engine is gone" in verdict.reason


def test_a_box_that_is_lost_once_is_tried_again() -> None:
    assert judge(GOLD, verifier=with_sandbox(Broken(1, healthy=True))).outcome == "correct"


def test_a_solution_that_loses_box_after_box_while_canaries_live_is_incorrect() -> None:
    assert judge(GOLD, verifier=with_sandbox(Broken(healthy=True))).outcome == "incorrect"


def test_a_box_that_fails_before_it_held_the_models_code_is_never_the_models_fault() -> None:
    assert judge(GOLD, verifier=with_sandbox(Broken(healthy=True, at_start=True))).outcome == "invalid"


def test_a_sandbox_that_raises_is_invalid() -> None:
    class Raises(Broken):
        async def run_together(self, *parts: tuple[Program, Talk]) -> list[Execution]:
            raise RuntimeError("a bug of ours")

    verdict = judge(GOLD, verifier=with_sandbox(Raises()))
    assert verdict.outcome == "invalid"
    assert "a bug of ours" in verdict.reason


# ---- threads, processes, leftovers


def test_it_works_in_threads_beside_each_other_and_under_a_running_loop() -> None:
    verifier, outcomes = with_limits(), []
    threads = [
        threading.Thread(target=lambda code=code: outcomes.append(judge(code, verifier=verifier).outcome))
        for code in [GOLD, TRICKS["wrong"]] * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["correct"] * 2 + ["incorrect"] * 2

    async def inside() -> str:
        return judge(GOLD, verifier=verifier).outcome

    assert asyncio.run(inside()) == "correct"


# ---- plain data, and extraction

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_data_crosses_unchanged(value: Any) -> None:
    copy = decode(encode(value))
    assert repr(copy) == repr(value)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
@hypothesis_settings(max_examples=50)
def test_what_decoding_makes_of_forged_data_is_built_in_or_an_error(data: Any) -> None:
    try:
        value = decode(data)
    except (KeyError, TypeError, ValueError):
        return
    assert type(value).__module__ == "builtins"


def test_objects_do_not_cross() -> None:
    with pytest.raises(NotPlain):
        encode([object()])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\nx = 1\n```\nb\n```py\nx = 2\n```\n", "x = 2\n"),
        ("```python\nx = 1\n```\nOutput:\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("  ```python\n  x = 1\n  ```", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("~~~\nx = 1\n~~~", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("```python\nx = 1\n```\n```python\nx =", "x = 1\n"),
        ("```python\n```", ""),
    ],
)
def test_extraction(answer: str, code: str) -> None:
    assert extract(answer) == code


@given(st.text(alphabet="`~ \npyx"))
def test_extraction_takes_any_text(answer: str) -> None:
    extract(answer)


@pytest.mark.parametrize("text", ["`" * 10**6, "```" + " " * 10**6 + "`", "```\n" * 10**5, " " * 10**6 + "```"])
def test_extraction_takes_linear_time(text: str) -> None:
    began = time.process_time()
    extract(text)
    assert time.process_time() - began < 1.0
