"""One completion whose thoughts keep within their budget, in as many calls to the engine as that takes.

    a thought is open     sample at most what is left of its budget
                          still open then: force the end of it, and the sentence that the config puts after it
    no thought is open    sample on, up to the next `<think>`

No engine has to know what a thought is: every call is a plain one, and forced tokens are part of the next call's
prompt. What follows them is therefore drawn from the very distribution that the learner scores, whether the engine
drafts or not, and a version that arrives between two calls finds no stale keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr.interfaces import Sampler
from rlvr.rollout.budget import Allowance
from rlvr.types import Completion, FinishReason, SamplingParams, WeightSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtMarks:
    """Tokens around a thought. `closing` is what is forced at a limit: the end of the thought and what goes with it."""

    start: int
    end: int
    closing: tuple[int, ...]


async def complete(
    prompt_ids: tuple[int, ...],
    *,
    allowance: Allowance,
    marks: ThoughtMarks | None,
    thought_open: bool,
    sampler: Sampler,
    group: str,
    temperature: float,
    seed: Callable[[int], int],
) -> Completion:
    """What the policy says to `prompt_ids`, which end inside a thought if `thought_open`.

    `marks` is `None` for a policy without such tokens: its thoughts have no limit. `seed` gives the seed of the n-th
    call. Raises what `sampler` raises.
    """
    draft = _Draft(thought_open=thought_open)
    limited = marks is not None and (allowance.thinking_tokens is not None or allowance.answer_tokens > 0)
    while True:
        left = allowance.max_tokens - len(draft.token_ids)
        if left < 1:
            return draft.finish("length")
        stops: tuple[int, ...] = ()
        if limited and marks is not None:
            if draft.thought_open:
                room = _room_for_thought(allowance, marks, draft.num_thinking_tokens, left)
                if room < 1:
                    draft.force(marks.closing[:left])
                    continue
                left = room
            else:
                stops = (marks.start,)
        params = SamplingParams(
            max_tokens=left, temperature=temperature, seed=seed(draft.num_calls), stop_token_ids=stops
        )
        part = await sampler.sample((*prompt_ids, *draft.token_ids), params, group=group)
        draft.append(part, marks)
        used_up = part.finish_reason == "length" and len(part.token_ids) == left
        at_mark = part.finish_reason == "stop" and part.token_ids[-1] in stops
        if not (used_up or at_mark):
            return draft.finish(part.finish_reason)


def _room_for_thought(allowance: Allowance, marks: ThoughtMarks, spent: int, left: int) -> int:
    room = left if allowance.thinking_tokens is None else min(left, allowance.thinking_tokens - spent)
    if allowance.answer_tokens:
        room = min(room, left - len(marks.closing) - allowance.answer_tokens)
    return room


class _Draft:
    """A completion that grows."""

    def __init__(self, *, thought_open: bool) -> None:
        self.thought_open = thought_open
        self.num_calls = 0
        self.num_thinking_tokens = 0
        self.token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._loss_mask: list[int] = []
        self._spans: list[WeightSpan] = []
        self._num_draft_tokens = 0
        self._num_accepted_tokens = 0

    def append(self, part: Completion, marks: ThoughtMarks | None) -> None:
        offset = len(self.token_ids)
        for version, start, end in part.weight_spans:
            last = self._spans[-1] if self._spans else None
            if last and (last.version, last.end) == (version, start + offset):
                self._spans[-1] = WeightSpan(version, last.start, end + offset)
            else:
                self._spans.append(WeightSpan(version, start + offset, end + offset))
        self.token_ids += part.token_ids
        self._logprobs += part.logprobs
        self._loss_mask += part.loss_mask
        self._num_draft_tokens += part.num_draft_tokens
        self._num_accepted_tokens += part.num_accepted_tokens
        self.num_calls += 1
        if marks is not None:
            num_thinking_tokens, self.thought_open = scan(part.token_ids, marks, thought_open=self.thought_open)
            self.num_thinking_tokens += num_thinking_tokens

    def force(self, token_ids: Sequence[int]) -> None:
        """Tokens that nobody sampled: no loss, no version, and a log-probability that means nothing."""
        self.token_ids += token_ids
        self._logprobs += [0.0] * len(token_ids)
        self._loss_mask += [0] * len(token_ids)
        self.thought_open = False

    def finish(self, reason: FinishReason) -> Completion:
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self._logprobs),
            loss_mask=tuple(self._loss_mask),
            finish_reason=reason,
            weight_spans=tuple(self._spans),
            num_thinking_tokens=self.num_thinking_tokens,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
        )


def scan(token_ids: Sequence[int], marks: ThoughtMarks, *, thought_open: bool) -> tuple[int, bool]:
    """How many of the tokens stand inside a thought, marks apart, and whether one is open at the end."""
    count = 0
    for token in token_ids:
        if thought_open and token != marks.end:
            count += 1
        else:
            thought_open = token == marks.start
    return count, thought_open
