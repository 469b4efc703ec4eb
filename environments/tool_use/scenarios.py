"""From scenarios to tasks: which comes next, on which side of the split it falls, and which ends are accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from environments.tool_use import policy
from environments.tool_use.desk import TOOLS
from environments.tool_use.level_1 import LEVEL_1
from environments.tool_use.level_2 import LEVEL_2
from environments.tool_use.level_3 import LEVEL_3
from environments.tool_use.office import Conversation, Scenario
from environments.tool_use.session import Session
from rlvr.interfaces import WorkedExample
from rlvr.splits import split_of
from rlvr.tools import describe
from rlvr.types import Budget, Message, Split, Task
from verifiers.world import changes

FAMILIES = {1: LEVEL_1, 2: LEVEL_2, 3: LEVEL_3}
# Where no config says otherwise; the longest gold takes 13.
MAX_TURNS = 24
# Free text: what it says is not judged.
IGNORED = ["notes", "tickets.*.subject"]


class Draw(NamedTuple):
    """One scenario, and where it came from. `text` is all that the model reads at first: what is asked."""

    level: int
    family: str
    scenario: Scenario
    text: str


def generate(seed: int, levels: tuple[int, ...], split: Split) -> Iterator[Draw]:
    """Endless; the same in the same order for the same arguments."""
    rng = random.Random(f"{seed}/{split}")
    while True:
        level = rng.choice(levels)
        family = rng.choice(FAMILIES[level])
        scenario = family(rng)
        text = "\n".join(message.content for message in prompt_of(scenario))
        # Generated texts have the white space of their templates: none to make even.
        if split_of(text, exactly=True) == split:
            yield Draw(level, family.__name__, scenario, text)


def prompt_of(scenario: Scenario) -> tuple[Message, ...]:
    """The policy, and what the caller says first."""
    return (
        Message(role="system", content=policy.document(scenario.rules, scenario.note)),
        Message(role="user", content=scenario.opening),
    )


def make_task(task_id: str, draw: Draw) -> Task:
    """The accepted end states are those that the scenario's golds lead to."""
    scenario = draw.scenario
    start = _start(scenario)
    states: list[Any] = []
    for conversation in scenario.golds:
        session = Session(start)
        before = session.state()
        for message in conversation:
            session.answer(message)
        end = changes(before, session.state())
        if end not in states:
            states.append(end)
    gold = [message.content for message in scenario.golds[0]]
    environment, _, key = task_id.partition("/")
    return Task(
        id=task_id,
        environment=environment,
        prompt=prompt_of(scenario),
        reference={"family": draw.family, **start, "states": states, "ignore": IGNORED, "gold": gold},
        tools=_specs(scenario),
        level=str(draw.level),
        budget=Budget(turns=MAX_TURNS),
        seed=int(key.rpartition("/")[2]),
    )


def examples(scenario: Scenario, conversation: Conversation) -> Iterator[WorkedExample]:
    """Each message of the assistant, after all that came before it."""
    session = Session(_start(scenario))
    before = prompt_of(scenario)
    for message in conversation:
        yield WorkedExample(prompt=before, answer=message, tools=_specs(scenario))
        before = (*before, message, *session.answer(message).messages)


def _start(scenario: Scenario) -> dict[str, Any]:
    """What a session starts from."""
    return {"world": scenario.world, "caller": scenario.caller, "tools": list(scenario.tools)}


def _specs(scenario: Scenario) -> tuple[dict[str, Any], ...]:
    return tuple(describe(TOOLS[name]).spec for name in scenario.tools)
