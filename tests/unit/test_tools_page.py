"""docs/tools.md: its environment runs, and says what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlvr.plugins import load_environment
from rlvr.types import Message

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Any:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path_factory.mktemp("page") / "lamps.py"
    file.write_text("\n".join(blocks))
    kind = load_environment(f"{file}:Lamps")
    return kind(kind.Settings())


def say(name: str, **arguments: object) -> Message:
    text = json.dumps({"name": name, "arguments": arguments})
    return Message(role="assistant", content=f"<tool_call>{text}</tool_call>")


def test_the_page_shows_the_spec_that_the_model_sees(environment: Any) -> None:
    [shown] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    task = next(iter(environment.tasks("train")))
    assert task.tools[0] == json.loads(shown)


def test_the_environment_of_the_page_answers_and_judges(environment: Any) -> None:
    task = next(iter(environment.tasks("train")))
    environment.reset(task)
    right, wrong = say("switch_on", lamp="desk", percent=20), say("switch_on", lamp="desk", percent=200)
    for message, text in ((right, "on"), (wrong, "error: switch_on: percent"), (say("dim"), "error: no tool is named")):
        [answer] = environment.step(message).messages
        assert answer.content.startswith(text)
    both = Message(role="assistant", content=wrong.content + right.content)
    assert "not carried out" in environment.step(both).messages[1].content
    assert environment.step(Message(role="assistant", content="Done.")).done
    verifier = environment.verifier()
    assert verifier.verify(task, [*task.prompt, wrong, right]).outcome == "correct"
    assert verifier.verify(task, [*task.prompt, wrong]).outcome == "incorrect"
    alarm = say("switch_on", lamp="alarm")
    verdict = verifier.verify(task, [*task.prompt, right, alarm, say("switch_off", lamp="alarm")])
    assert verdict.outcome == "correct"  # the page's rule looks at the end; a desk that takes notes is tool_use's
    assert verifier.verify(task, [*task.prompt, right, alarm]).reason == "the alarm went off"
