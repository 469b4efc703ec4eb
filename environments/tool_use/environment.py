"""A caller at the IT service desk: tools to work with, a policy to keep, and a world to leave in the right state."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from environments.tool_use import scenarios
from environments.tool_use.office import BYE, call
from environments.tool_use.session import Session
from rlvr import interfaces, tools
from rlvr.splits import tasks_of
from rlvr.types import Message, Reply, Split, Task
from verifiers import tool_dispatch, tool_forms
from verifiers.tool_forms import read
from verifiers.world import WorldVerifier

# Of worked examples, so many are golds; the others slip in the way that is nearest.
CAREFUL_SHARE = 0.5
# One goodbye is like another: so many of them are enough to learn it.
GOODBYE_SHARE = 0.2

Level = Annotated[int, Field(ge=min(scenarios.FAMILIES), le=max(scenarios.FAMILIES))]


class ToolUseSettings(interfaces.EnvironmentSettings):
    """The `settings` table of this environment."""

    levels: tuple[Level, ...] = Field((1,), min_length=1, description="difficulties to draw from, 1 to 3")
    seed: int = 0
    num_train: PositiveInt | None = Field(None, description="default: endless")
    num_held_out: PositiveInt = Field(512, description="distinct ones")


class ToolUse(interfaces.Environment):
    """Generated calls to the desk, endless for training."""

    name = "tool_use"
    summary = "an IT service desk: typed tools, a policy, a caller with a script"
    Settings = ToolUseSettings
    settings: ToolUseSettings
    session: Session

    def tasks(self, split: Split) -> Iterable[Task]:
        settings = self.settings
        return tasks_of(
            scenarios.generate(settings.seed, settings.levels, split),
            lambda key, draw: scenarios.make_task(f"{self.name}/{split}/{key}", draw),
            split=split,
            num_train=settings.num_train,
            num_held_out=settings.num_held_out,
            source=f"{self.name}: levels {settings.levels}",
        )

    def reset(self, task: Task) -> Sequence[Message]:
        self.session = Session(task.reference)
        return task.prompt

    def step(self, message: Message) -> Reply:
        return self.session.answer(message)

    def verifier(self) -> WorldVerifier:
        return _verifier()

    def gold(self, task: Task) -> Sequence[Message]:
        return [Message(role="assistant", content=content) for content in task.reference["gold"]]

    def worked_examples(self, seed: int) -> Iterator[interfaces.WorkedExample]:
        """Endless; each message of a conversation with all that came before it. Training tasks only.

        They are of uneven quality on purpose: one half does what the policy says, the other slips.
        """
        rng = random.Random(f"{seed}/worked")
        for draw in scenarios.generate(seed, self.settings.levels, "train"):
            scenario = draw.scenario
            conversation = scenario.golds[0] if rng.random() < CAREFUL_SHARE else scenario.slips[0].says
            for example in scenarios.examples(scenario, conversation):
                if example.answer != BYE or rng.random() < GOODBYE_SHARE:
                    yield example

    def mistakes(self, task: Task) -> Iterator[tuple[Literal["altered", "hedge"], Sequence[Message]]]:
        """For `rlvr env check`, which cannot know what is only talk: the gold with its last call left out, or with an
        argument of it changed, or with such calls tried around it."""
        gold = self.gold(task)
        place, last = [(index, made) for index, message in enumerate(gold) for made in read(message.content)][-1]
        before, after = gold[:place], gold[place + 1 :]
        keys = sorted(last.arguments.keys() - {"subject"})  # free text, which is not judged
        wrong = [call(last.name, **(last.arguments | {key: f"{last.arguments[key]}1"})) for key in keys]
        yield "altered", [*before, *after]
        for changed in wrong:
            yield "altered", [*before, changed, *after]
        hedge = "\n".join(message.content for message in (wrong[0], gold[place], wrong[-1]))
        yield "hedge", [*before, Message(role="assistant", content=hedge), *after]


@cache
def _verifier() -> WorldVerifier:
    """One for all: it keeps nothing, and its version is a hash of files."""
    code = [Path(inspect.getfile(module)) for module in (tools, tool_dispatch, tool_forms)]
    return WorldVerifier(ToolUse.name, Session, [*sorted(Path(__file__).parent.glob("*.py")), *code])
