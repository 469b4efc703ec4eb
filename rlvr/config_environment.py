"""The `[[environments]]` tables of a configuration: what is asked, under which budgets, and how it is learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from rlvr.types import LossSettings, OverBudget

NonNegativeInt = Annotated[int, Field(ge=0)]
Unlimited = Literal["unlimited"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


# What a `tell_budget` template may name.
TOLD = ("thinking_tokens", "answer_tokens", "completion_tokens", "turns", "tool_calls", "seconds")


_LOSS_BOUNDS = ("clip_low", "clip_high", "importance_min", "importance_max")


class Section(BaseModel):
    """Base of every table: frozen, unknown keys refused, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class AlgorithmSection(Section):
    """GRPO with masked importance sampling (the loss: `rlvr/algorithms/loss.py`)."""

    clip_low: PositiveFloat = Field(0.2, description="the ratio is clipped below 1 - clip_low")
    clip_high: PositiveFloat = Field(0.28, description="and above 1 + clip_high")
    importance_min: PositiveFloat = Field(0.5, description="tokens whose learner/behaviour ratio is below are masked")
    importance_max: PositiveFloat = Field(2.0, description="and those above")
    normalize_by_std: bool = Field(False, description="divide the group's advantages by their standard deviation")
    mask_truncated: bool = Field(False, description="no loss on episodes that ran out of completion tokens")


class ThinkingBudget(Section):
    """One of the budgets that are drawn for a task, as often as its weight says."""

    tokens: NonNegativeInt | Unlimited
    weight: PositiveFloat = 1.0


def _thinking_budgets(value: Any) -> Any:
    """A number, "unlimited", or a list of these and of tables with a weight."""
    several = value if isinstance(value, list | tuple) else [value]
    return [item if isinstance(item, dict | ThinkingBudget) else {"tokens": item} for item in several]


class CurriculumSection(Section):
    """Draws an environment's levels by what they have to teach: `rlvr/shares.py`."""

    window: PositiveInt = Field(32, description="tasks of a level over which its pass rate is taken")
    floor: float = Field(0.1, gt=0, le=1, description="the least weight of a level, where 1 is the most")


class EnvironmentSection(Section):
    """One member of the mixture. Every budget may be "unlimited"; the thinking budget is drawn for each task."""

    name: str = Field(description="an installed environment's name, path/to/file.py:Class, or http://host:port")
    label: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="stands for it in metrics and task ids (default: its own name); tells two of one name apart",
    )
    weight: PositiveFloat = 1.0
    settings: dict[str, Any] = Field(default_factory=dict)
    thinking_tokens: Annotated[tuple[ThinkingBudget, ...], BeforeValidator(_thinking_budgets)] = Field(
        (ThinkingBudget(tokens="unlimited"),), min_length=1
    )
    answer_tokens: NonNegativeInt = Field(0, description="a thought is closed early to leave so many to the answer")
    closing: str = Field("", description="forced after the end of a thought that came to its limit")
    completion_tokens: PositiveInt | Unlimited = 256
    turns: PositiveInt | Unlimited = 1
    tool_calls: NonNegativeInt | Unlimited = "unlimited"
    seconds: PositiveFloat | Unlimited = 120.0
    over_budget: OverBudget = Field("judge", description="or 'incorrect': -1 for running out of tokens, turns or calls")
    tell_budget: bool | str = Field(False, description="a line of the prompt; a text may hold {thinking_tokens} etc.")
    curriculum: CurriculumSection | None = Field(None, description="for environments with a setting `levels`")
    # These three are the run's own where they are not given.
    group_size: int = Field(8, description="default: rollout.group_size")
    temperature: float = Field(1.0, description="default: rollout.temperature")
    algorithm: AlgorithmSection = Field(AlgorithmSection(), description="default: what [algorithm] says, key by key")

    @field_validator("tell_budget")
    @classmethod
    def _known_fields(cls, text: bool | str) -> bool | str:
        try:
            for value in (0, "unlimited"):
                str(text).format(**dict.fromkeys(TOLD, value))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"not a template ({error!r}); it may hold {', '.join(f'{{{name}}}' for name in TOLD)}"
            ) from None
        return text

    @property
    def loss(self) -> LossSettings:
        """What goes with every sample of it into the loss."""
        bounds = {name: getattr(self.algorithm, name) for name in _LOSS_BOUNDS}
        return LossSettings(temperature=self.temperature, **bounds)

    @field_validator("name")
    @classmethod
    def _absolute(cls, name: str) -> str:
        # Actors on a cluster have working folders of their own.
        path, colon, attribute = name.rpartition(":")
        return f"{Path(path).absolute()}:{attribute}" if colon and path.endswith(".py") else name


def check_sampling(where: str, group_size: int, temperature: float) -> None:
    """Raises `ValueError`."""
    if group_size < 2:
        raise ValueError(
            f"{where}.group_size = {group_size}: an advantage compares episodes of one task, so a group needs at least "
            f"2; set {where}.group_size to 2 or more (8 is usual)"
        )
    if not temperature > 0:
        raise ValueError(
            f"{where}.temperature = {temperature}: training samples, so it must be above 0; 1.0 is usual (evaluation "
            "is greedy by itself)"
        )


def check_importance(where: str, algorithm: AlgorithmSection) -> None:
    """Raises `ValueError`."""
    if not algorithm.importance_min < 1.0 < algorithm.importance_max:
        raise ValueError(
            f"{where}.importance_min = {algorithm.importance_min}, importance_max = {algorithm.importance_max}: the "
            "interval must contain 1, or tokens on which both policies agree are masked; 0.5 and 2.0 are usual"
        )


def check_environment(section: EnvironmentSection, *, max_model_len: int) -> None:
    """Raises `ValueError` where the section contradicts itself or the engine's context."""
    where = f"environment {section.label or section.name!r}"
    check_sampling(where, section.group_size, section.temperature)
    check_importance(f"{where}: algorithm", section.algorithm)
    if section.completion_tokens == "unlimited":
        return
    if section.completion_tokens >= max_model_len:
        raise ValueError(
            f"{where}: completion_tokens = {section.completion_tokens} leaves no room for a prompt in "
            f"inference.max_model_len = {max_model_len}; raise the latter"
        )
    if section.answer_tokens >= section.completion_tokens:
        raise ValueError(
            f"{where}: answer_tokens = {section.answer_tokens} leaves no room for a thought in completion_tokens = "
            f"{section.completion_tokens}; raise the latter, or set thinking_tokens = 0"
        )
