"""What the tests of `rlvr verify` share: records of each verifier, and an environment that does as it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlvr.cli import main

MATH = {"verifier": "math", "completion": "so \\boxed{4}", "reference": "4"}
WRONG = MATH | {"completion": "\\boxed{5}"}
NO_REFERENCE = MATH | {"reference": {}}
CODE = {
    "verifier": "code",
    "completion": "```python\ndef f(x): return x + 1\n```",
    "reference": {"entry_point": "f", "tests": "def check(candidate): assert candidate(1) == 2", "solution": "f = abs"},
}
PROGRAM = {
    "verifier": "code",
    "completion": "print(sum(map(int, input().split())))",
    "reference": {"io": [{"input": "1 2\n", "output": "3\n"}]},
}
SQL = {
    "verifier": "sql",
    "completion": "SELECT a FROM t",
    "reference": {"schema": "CREATE TABLE t(a INT); INSERT INTO t VALUES (1)", "query": "SELECT a FROM t"},
}
TOOL_CALLS = {"verifier": "tool_calls", "completion": "none", "reference": {"tools": [], "calls": []}}
# An environment whose verifier does as the answer says, and has a setting.
ODD = """
import os, random, time
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.types import Message, Reply, Task, Verdict
class OddSettings(EnvironmentSettings):
    wanted: str = "default"
class Judge:
    id, version = "odd", "1"
    def __init__(self, wanted): self.wanted = wanted
    def verify(self, task, transcript):
        text = transcript[-1].content
        if text == "die": os.kill(os.getpid(), 9)
        if text == "hang": time.sleep(600)
        if text == "slow": time.sleep(0.05)
        if text == "raise": raise RuntimeError("a fault")
        right = text == self.wanted if text != "flaky" else random.random() < 0.5
        checks = {"last": right, "length": len(transcript) < 10}
        outcome, reward = ("correct", 1.0) if right else ("incorrect", -1.0)
        reason = f"{len(transcript)} messages"
        return Verdict(outcome=outcome, reward=reward, reason=reason, checks=checks, verifier="odd", version="1")
class Odd(Environment):
    name = "odd"
    Settings = OddSettings
    def tasks(self, split): return []
    def verifier(self): return Judge(self.settings.wanted)
    def gold(self, task): return [Message(role="assistant", content=self.settings.wanted)]
"""


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def verify(*arguments: object) -> int:
    return main(["verify", "--workers", "2", *map(str, arguments)])


def odd_record(odd: str, answer: str) -> dict[str, Any]:
    return {"environment": odd, "completion": answer, "reference": {}}
