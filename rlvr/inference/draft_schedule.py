"""How many tokens to draft while so many requests run, from what a step costs and what share of drafts is accepted.

Drafting pays while the GPU has time to spare: checking a draft is nearly free for a few requests, and costs a step of
its own for many. A step of n requests, each with d drafts, takes the same time whether they are accepted or not, and
yields 1 + a1 + a1 a2 + ... + a1 a2 ... ad tokens a request, where a_p is the share of p-th drafts accepted among those
whose forerunners all were. The depth for n is the d that yields most tokens a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Literal

# (from, to, depth): so many tokens are drafted while so many requests run, bounds included.
DraftSchedule = tuple[tuple[int, int, int], ...]
# Seconds of a step by the number of running requests, then by depth.
StepCosts = Mapping[int, Sequence[float]]

# What an MTP layer trained with its policy is accepted at, more or less, and how many drafts that belief is worth.
PRIOR_ACCEPTANCE = 0.8
_PRIOR_DRAFTS = 100.0
# A depth is left for one faster by so much, or times measured within noise of each other would swap it to and fro.
_MARGIN = 0.03


class Acceptance:
    """The share of drafts accepted, by position, in a run that goes on learning.

    Each `fade` halves what was counted before. What is no longer drafted is so forgotten, its estimate returns to the
    prior, and drafting is tried again; else a depth left once would never be found to have become good.
    """

    def __init__(self, num_draft_tokens: int) -> None:
        self._tried = [0.0] * num_draft_tokens  # drafts at this position whose forerunners were all accepted
        self._accepted = [0.0] * num_draft_tokens

    def add(self, steps: Iterable[tuple[int, int]]) -> None:
        """Steps of one request each: tokens drafted, and how many of them were accepted."""
        for drafted, accepted in steps:
            for position in range(min(accepted + 1, drafted)):
                self._tried[position] += 1
                self._accepted[position] += accepted > position

    def fade(self) -> None:
        """Count what comes from here on twice as much as what came before."""
        self._tried = [count / 2 for count in self._tried]
        self._accepted = [count / 2 for count in self._accepted]

    def rates(self) -> tuple[float, ...]:
        """a1, a2, ... as the module's head defines them."""
        return tuple(
            (accepted + _PRIOR_DRAFTS * PRIOR_ACCEPTANCE) / (tried + _PRIOR_DRAFTS)
            for accepted, tried in zip(self._accepted, self._tried, strict=True)
        )


def sizes_to_measure(max_num_seqs: int) -> list[int]:
    """1, 4, 16, ... and the most requests that run at once."""
    sizes = [1]
    while sizes[-1] * 4 < max_num_seqs:
        sizes.append(sizes[-1] * 4)
    return sizes if max_num_seqs == 1 else [*sizes, max_num_seqs]


def best_depths(costs: StepCosts, rates: Sequence[float], held: Mapping[int, int]) -> dict[int, int]:
    """The depth of each measured number of requests; `held` is what it has been, and stays unless another is better."""
    tokens = [1.0, *(1.0 + expected for expected in accumulate(accumulate(rates, mul)))]
    depths = {}
    for size, seconds in costs.items():
        speeds = [made / taken for made, taken in zip(tokens, seconds, strict=True)]
        best = max(range(len(speeds)), key=speeds.__getitem__)
        depths[size] = best if speeds[best] > speeds[held[size]] * (1 + _MARGIN) else held[size]
    return depths


def as_schedule(depths: Mapping[int, int]) -> DraftSchedule:
    """Ranges from 1 to the largest measured size: each depth holds half way, by ratio, to the first size of another."""
    entries: list[tuple[int, int, int]] = []
    for size, depth in sorted(depths.items()):
        first, last, held = entries[-1] if entries else (1, size, depth)
        if depth == held:
            entries[-1:] = [(first, size, depth)]
        else:
            middle = round((last * size) ** 0.5)
            entries[-1:] = [(first, middle, held), (middle + 1, size, depth)]
    return tuple(entries)


def check_schedule(schedule: DraftSchedule | Literal["auto"], *, num_draft_tokens: int, max_num_seqs: int) -> None:
    """Raises `ValueError`; names the settings as a configuration has them."""
    if schedule == "auto":
        if not 0 < num_draft_tokens < max_num_seqs:
            raise ValueError(
                "inference.draft_schedule = 'auto' chooses between drafting and not, so inference.num_draft_tokens = "
                f"{num_draft_tokens} must be at least 1, and below inference.max_num_seqs = {max_num_seqs}; remove "
                "draft_schedule, or change one of them"
            )
        return
    begins, ends = [first for first, _, _ in schedule], [last for _, last, _ in schedule]
    follow = begins == [1, *(last + 1 for last in ends)][: len(begins)]
    if not follow or any(first > last or depth > num_draft_tokens for first, last, depth in schedule):
        raise ValueError(
            f"inference.draft_schedule = {schedule}: its ranges start at 1 running request, each begins where the one "
            f"before ended, and all draft at most inference.num_draft_tokens = {num_draft_tokens}, as in "
            "[[1, 64, 1], [65, 512, 0]]"
        )


def every_depth(num_draft_tokens: int, max_num_seqs: int) -> DraftSchedule:
    """What vLLM is built with: it captures CUDA graphs only for depths that stand in its schedule.

    Each depth's graphs reach up to the largest number of requests that it has there, so the shallower ones get the
    last numbers, one each. Needs `max_num_seqs > num_draft_tokens`.
    """
    full = max_num_seqs - num_draft_tokens
    shallower = ((full + less, full + less, num_draft_tokens - less) for less in range(1, num_draft_tokens + 1))
    return ((1, full, num_draft_tokens), *shallower)
