"""The three seams: who samples, who asks, who judges. Everything else is code that meets in the controller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from rlvr.errors import ConfigError
from rlvr.types import Completion, Message, Reply, SamplingParams, Split, Task, Verdict


class Sampler(Protocol):
    """Draws completions from the policy. The rollout worker sees nothing else of the inference engines."""

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        """Continue `prompt_ids` (the whole prefix). Calls of one `group` share an engine, and so a prefix cache."""
        ...


class Verifier(Protocol):
    """Judges a transcript. Never raises on what a model wrote, works in any thread and process.

    `id` names it ("math"), `version` is a hash of its code and settings.
    """

    id: str
    version: str

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """`transcript` is all messages of the episode, the prompt first."""
        ...


class EnvironmentSettings(BaseModel):
    """Base of an environment's typed settings: the `settings` table of its entry in the config."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkedExample(NamedTuple):
    """One assistant message to learn from before any reward; `prompt` is all that comes before it.

    An environment whose `worked_examples(seed)` yields these without end, of training tasks only, can teach the
    starter policy; one that has none under its settings yields nothing.
    """

    prompt: tuple[Message, ...]
    answer: Message
    tools: tuple[dict[str, Any], ...] = ()


class Environment(ABC):
    """What the model is asked, and what answers it. An episode has an environment object of its own.

    A single-turn environment writes `tasks` and `verifier`. Blocking code is welcome: the worker runs every method off
    its event loop. An exception in `reset`, `step` or `verifier` makes the episode invalid; it is recorded, not fatal.

    A setting called `levels`, a list of difficulties from easy to hard, lets a run's curriculum choose among them: it
    makes one object of the environment for each, with that level alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    Settings: ClassVar[type[EnvironmentSettings]] = EnvironmentSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings

    @abstractmethod
    def tasks(self, split: Split) -> Iterable[Task]:
        """The tasks of a split, the same ones in the same order on every call. Sized or endless."""

    @abstractmethod
    def verifier(self) -> Verifier:
        """The judge of this environment's episodes, online and offline."""

    def reset(self, task: Task) -> Sequence[Message] | Awaitable[Sequence[Message]]:
        """Start the episode; the messages that the model sees first."""
        return task.prompt

    def step(self, message: Message) -> Reply | Awaitable[Reply]:
        """Answer the model's message. The default ends the episode: single-turn.

        Output of tools goes into messages of role "tool", one a call: that is how calls are counted.
        """
        return Reply(done=True)

    def gold(self, task: Task) -> Sequence[Message]:
        """Assistant messages that must earn +1 on `task`: the proof that its reference can be met."""
        raise ConfigError(f"environment {self.name!r} has no gold answers; write `gold(task)` to have them checked")

    def setup(self) -> None:  # noqa: B027 - optional
        """Called once a worker, before its first episode: make what the episodes share (a pool, a database template).

        Each episode then gets a shallow copy of this object.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Called once a worker, at its end."""
