"""Everything rlvr raises on purpose.

    RlvrError
    ├── ConfigError          a setting is wrong; found before anything starts
    ├── PluginError          an environment cannot be found or loaded
    ├── RemoteError          an environment behind a URL did not answer as it should
    ├── DeadlineExceeded     a wait took too long; says what it waited for
    ├── ComponentDied        an actor or a background loop ended by itself; carries its traceback
    │   └── EngineLost       an engine ended while it was sampling; an update that replaces it saves the episodes
    ├── WeightSyncError      an engine did not take, or does not hold, the version published to it
    │   └── UpdateFailed     names the engines that did not come through an update
    ├── CheckpointError      a checkpoint is missing, damaged or belongs to another run
    └── TooManyInvalid       more episodes could not be judged than the run allows

A bad rollout is data, not an error: it becomes an episode with an *invalid* verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RlvrError(Exception):
    """The root: `except RlvrError` catches what is meant for the user and lets programming errors through."""


class ConfigError(RlvrError):
    """Names the value, the rule and the way out."""


class PluginError(RlvrError):
    """An environment's name or `file.py:Class` does not lead to an environment class."""


class RemoteError(RlvrError):
    """Ends one episode as invalid, not the run. The text begins with the URL that was asked."""


class DeadlineExceeded(RlvrError):
    """A wait ran out. `waited_for` is a phrase: "engine 0 to load the model"."""

    def __init__(self, waited_for: str, seconds: float, hint: str = "") -> None:
        self.waited_for = waited_for
        self.seconds = seconds
        self.hint = hint
        super().__init__(f"waited {seconds:.0f} s for {waited_for}, in vain" + (f"; {hint}" if hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # By pickle, which errors travel by between actors, an exception is otherwise made again from its text alone.
        return type(self), (self.waited_for, self.seconds, self.hint)


class ComponentDied(RlvrError):
    """A part of the run is gone. `component` names it; the text ends with its own traceback where there is one."""

    def __init__(self, component: str, detail: str) -> None:
        self.component = component
        self.detail = detail
        super().__init__(f"{component} died:\n{detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.component, self.detail)


class EngineLost(ComponentDied):
    """What an engine was asked to sample will not come. It ends a run where no update replaces the engine."""


class WeightSyncError(RlvrError):
    """Policy or draft weights of an engine are not the published ones."""


class UpdateFailed(WeightSyncError):
    """`engines` are the names of those that did not come through an update: they may be half written."""

    def __init__(self, version: int, reasons: Mapping[str, str]) -> None:
        self.version = version
        self.reasons = dict(reasons)
        super().__init__(
            f"version {version} did not reach every engine:\n"
            + "\n".join(f"{engine}: {reason}" for engine, reason in reasons.items())
        )

    @property
    def engines(self) -> frozenset[str]:
        return frozenset(self.reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.version, self.reasons)


class CheckpointError(RlvrError):
    """A checkpoint cannot be written or resumed from."""


class TooManyInvalid(RlvrError):
    """The share of invalid verdicts passed the run's limit: the environment, not the model, needs attention."""
