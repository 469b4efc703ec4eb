"""The environment keeps its promises."""

from __future__ import annotations

from rlvr.kit.checks import run
from rlvr.kit.subject import open_subject
from rlvr.types import Message, Task

from my_environment import MyEnvironment


def outcome(task: Task, answer: str) -> str:
    environment = MyEnvironment(MyEnvironment.Settings())
    said = Message(role="assistant", content=answer)
    return environment.verifier().verify(task, [*task.prompt, said]).outcome


def test_every_gold_earns_its_point_and_anything_else_does_not() -> None:
    environment = MyEnvironment(MyEnvironment.Settings())
    for task in [*environment.tasks("train"), *environment.tasks("held_out")]:
        right = task.reference["answer"]
        assert outcome(task, environment.gold(task)[0].content) == "correct"
        assert outcome(task, f"answer: {right}0") == "incorrect"
        assert outcome(task, f"answer: {right}\nanswer: 99") == "incorrect"
        assert outcome(task, right) == "incorrect"


def test_the_conformance_kit_finds_nothing() -> None:
    with open_subject("my_environment", {}, num_tasks=10, seconds=30, max_turns=10) as subject:
        results = run(subject)
    assert {result.check.name: result.complaints for result in results if result.status != "passed"} == {}
