"""Everything rlvr raises on purpose.

    RlvrError
    ├── ConfigError          a setting is wrong; found before anything starts
    ├── PluginError          an environment cannot be found or loaded
    ├── RemoteError          an environment behind a URL did not answer as it should
    ├── DeadlineExceeded     a wait took too long; says what it waited for
    ├── ComponentDied        an actor or a background loop ended by itself; carries its traceback
    ├── WeightSyncError      an engine did not take, or does not hold, the version published to it
    ├── CheckpointError      a checkpoint is missing, damaged or belongs to another run
    └── TooManyInvalid       more episodes could not be judged than the run allows

A bad rollout is data, not an error: it becomes an episode with an *invalid* verdict.
"""

from __future__ import annotations


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
        super().__init__(f"waited {seconds:.0f} s for {waited_for}, in vain" + (f"; {hint}" if hint else ""))


class ComponentDied(RlvrError):
    """A part of the run is gone. `component` names it; the text ends with its own traceback where there is one."""

    def __init__(self, component: str, detail: str) -> None:
        self.component = component
        super().__init__(f"{component} died, and the run with it:\n{detail}")


class WeightSyncError(RlvrError):
    """Policy or draft weights of an engine are not the published ones."""


class CheckpointError(RlvrError):
    """A checkpoint cannot be written or resumed from."""


class TooManyInvalid(RlvrError):
    """The share of invalid verdicts passed the run's limit: the environment, not the model, needs attention."""
