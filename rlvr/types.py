"""The values that travel between the parts. Each stage returns a new frozen value, born whole.

    Task -> Turn, Turn, ... -> Episode -> Group -> Sample -> TrainBatch

One concrete chain, for a group of two:

    Task(id="math_solver/train/17", prompt=(Message(role="user", content="12+30"),), reference={"answer": "42"})
    Completion(token_ids=(9, 4, 2), logprobs=(-0.1, -0.7, 0.0), loss_mask=(1, 1, 0), weight_spans=((3, 0, 2),))
        two tokens sampled by version 3, one forced
    Episode(..., verdict=Verdict(outcome="correct", reward=1.0, ...))
    Group(task, episodes=(correct one, incorrect one), birth_version=3)
    Sample(token_ids=prompt + completion, advantages=(0, ..., 2.0, 2.0, 2.0), oldest_version=3)

Nothing before `TrainBatch` needs torch, and every value up to `Episode` is plain data: one JSON line is one episode
(`to_json_line`, `episode_from_json`) and reads back equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import TypeAdapter

if TYPE_CHECKING:
    import torch

Split = Literal["train", "held_out"]
Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]
# The marks around a thought, one token each in the policies that have them.
THINK_START, THINK_END = "<think>", "</think>"

Outcome = Literal["correct", "incorrect", "invalid"]
Stop = Literal["answered", "completion_budget", "turn_budget", "tool_call_budget", "time_budget", "error"]
OverBudget = Literal["judge", "incorrect"]
# What the model itself has used up; time is the machine's.
OVER_BUDGET_STOPS: tuple[Stop, ...] = ("completion_budget", "turn_budget", "tool_call_budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one episode may spend, and what happens at the limits. `None` is unlimited. A run's config sets it.

    `thinking_tokens` counts sampled tokens inside `<think>`; 0 turns reasoning off. `completion_tokens` counts all
    that the model writes over the whole episode, thoughts and forced tokens included. `tool_calls` counts the `tool`
    messages in replies: calls of one message are answered together, and past the limit there is no next call to the
    model. `seconds` is wall time of the whole episode.

    A thought at its limit is closed with forced tokens: the template's end of a thought, then `closing`. It is closed
    early where the answer would otherwise have fewer than `answer_tokens` of the completion left. `note` is a line of
    the prompt that tells the model its budget ("" tells nothing). `over_budget` is the verdict on an episode that ran
    out of completion tokens, turns or tool calls: judge what there is, or incorrect.
    """

    thinking_tokens: int | None = None
    completion_tokens: int | None = None
    turns: int | None = 1
    tool_calls: int | None = None
    seconds: float | None = None
    answer_tokens: int = 0
    closing: str = ""
    note: str = ""
    over_budget: OverBudget = "judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. `thinking` is an assistant's thought, before `</think>`; it earns no reward."""

    role: Role
    content: str
    thinking: str = ""


def last_answer(transcript: Sequence[Message]) -> str:
    """What the assistant wrote last, its thought apart; empty where it wrote nothing."""
    return next((message.content for message in reversed(transcript) if message.role == "assistant"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `reference` (plain JSON) is what the verifier judges by; the model never sees it.

    `id` is "<environment>/<split>/<key>", unique in its environment and stable from a seed. `tools` are what the
    model may call, and see: OpenAI's function specs, `{"type": "function", "function": {"name", "description",
    "parameters": <JSON Schema>}}`. `level` names a difficulty, for the curriculum and for metrics.
    """

    id: str
    environment: str
    prompt: tuple[Message, ...]
    reference: dict[str, Any]
    tools: tuple[dict[str, Any], ...] = ()
    level: str = ""
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one completion is drawn.

    It ends with the policy's end-of-turn token or one of `stop_token_ids`. `temperature` 0 is greedy. `seed` fixes the
    draw for one request.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


class WeightSpan(NamedTuple):
    """Tokens `start` (inclusive) to `end` (exclusive) of a completion were sampled by policy version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the policy wrote in one turn; the first three sequences have one entry a token.

    `logprobs` are natural-log probabilities under the distribution drawn from (temperature included).
    `loss_mask` is 0 on forced tokens, 1 on sampled ones; `weight_spans` cover the sampled ones. `num_thinking_tokens`
    of these stand inside a thought. Of `num_draft_tokens` that the MTP layer proposed on the way, the policy took
    `num_accepted_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    loss_mask: tuple[int, ...]
    finish_reason: FinishReason
    weight_spans: tuple[WeightSpan, ...]
    num_thinking_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.logprobs), len(self.loss_mask)}
        if len(lengths) != 1:
            raise ValueError(f"token_ids, logprobs and loss_mask differ in length: {sorted(lengths)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an environment answers to a message: new messages for the model, and whether the episode is over."""

    messages: tuple[Message, ...] = ()
    done: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call to the model: the *new* prompt tokens, what was sampled, the message it parses to, the reply."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    message: Message
    reply: Reply


REWARDS: dict[Outcome, float | None] = {"correct": 1.0, "incorrect": -1.0, "invalid": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reward` is +1.0 for correct, -1.0 for incorrect, `None` for invalid (could not be judged; never trained on)."""

    outcome: Outcome
    reward: float | None
    reason: str
    checks: dict[str, bool] = field(default_factory=dict)
    verifier: str
    version: str
    seconds: float = 0.0

    def __post_init__(self) -> None:
        expected = REWARDS[self.outcome]
        if self.reward != expected:
            raise ValueError(f"outcome {self.outcome!r} carries reward {expected}, not {self.reward}")


class Judge(Protocol):
    """Who gives a verdict; the whole of it is `rlvr.interfaces.Verifier`."""

    id: str
    version: str


def judged(judge: Judge, outcome: Outcome, reason: str, *, checks: dict[str, bool], started: float) -> Verdict:
    """The verdict of `judge`, with the reward of its outcome; `started` is when it began, by `time.perf_counter`."""
    return Verdict(
        outcome=outcome,
        reward=REWARDS[outcome],
        reason=reason,
        checks=checks,
        verifier=judge.id,
        version=judge.version,
        seconds=perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt at a task, judged. `timings` are seconds by name ("sample", "verify", "total").

    `id` is like no other in a run: "math_solver/train/17@train-000.57#3" is the fourth of ticket 57's group, in the
    run's first start; "...@eval-000.2.5#0" was played by that start's third evaluation.
    """

    id: str
    task: Task
    turns: tuple[Turn, ...]
    stop: Stop
    verdict: Verdict
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def oldest_version(self) -> int | None:
        """The oldest policy version that sampled a token of it; `None` when nothing was sampled."""
        versions = [span.version for turn in self.turns for span in turn.completion.weight_spans]
        return min(versions, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The episodes of one task. `birth_version` was live in every engine when the task was admitted."""

    task: Task
    episodes: tuple[Episode, ...]
    birth_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """How an environment's samples are learned from: the temperature they were drawn at, and the loss's four bounds."""

    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_min: float = 0.5
    importance_max: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sequence: the tokens of an episode and, for each of them, what the loss needs.

    Entry `i` belongs to token `i` itself (predicted from the tokens before it). Prompt tokens, tool output and forced
    tokens carry `loss_mask` 0. `behaviour_logprobs` are at temperature of the rollout.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    oldest_version: int
    loss: LossSettings = LossSettings()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Sequences laid end to end, without padding: what one forward pass takes. All of shape [num_tokens].

    Sequence `j` is tokens `cu_seqlens[j]` to `cu_seqlens[j + 1]`; `position_ids` restart at 0 in each. The entries of
    `loss_mask`, `behaviour_logprobs` and `advantages` belong to the token at the same index, and the first token of a
    sequence always has `loss_mask` 0. All of its samples share their loss settings.
    """

    token_ids: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64
    cu_seqlens: torch.Tensor  # int32, shape [num_sequences + 1]
    loss_mask: torch.Tensor  # float32, 0 or 1
    behaviour_logprobs: torch.Tensor  # float32
    advantages: torch.Tensor  # float32
    loss: LossSettings = LossSettings()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; unchanged where it is there already."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if hasattr(part, "device")}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainBatch:
    """One optimizer step over all ranks: `shards[rank]` are that rank's micro-batches, as many for every rank.

    `num_loss_tokens` counts unmasked tokens over all shards: the divisor of the token-level loss.
    """

    shards: tuple[tuple[MicroBatch, ...], ...]
    num_loss_tokens: int
    num_tokens: int


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_json_line(value: Any) -> str:
    """A value of this module (up to `Group`) as one line of JSON, without the newline."""
    text: str = _adapter(type(value)).dump_json(value).decode()
    return text


def from_json(kind: type, line: str | bytes) -> Any:
    """The value that `to_json_line` wrote. Raises pydantic's `ValidationError`, which names the field that is wrong."""
    return _adapter(kind).validate_json(line)


def episode_from_json(line: str | bytes) -> Episode:
    """One line of an episode log, read back equal to what was written."""
    episode: Episode = from_json(Episode, line)
    return episode
