"""Numbers of one step, from the episodes that finished since the last one. Names are `area/quantity[/statistic]`."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from statistics import fmean

from rlvr.errors import TooManyInvalid
from rlvr.types import Episode

_INVALID_WINDOW = 200
_INVALID_AT_LEAST = 50


class RolloutMeter:
    """Counts finished episodes; every `take` starts over. Episodes are counted before any filter."""

    def __init__(self, *, max_invalid_fraction: float) -> None:
        self._max_invalid_fraction = max_invalid_fraction
        self._invalid: deque[bool] = deque(maxlen=_INVALID_WINDOW)
        self._last_reason = ""
        self._clear()

    def add(self, episodes: Iterable[Episode]) -> None:
        """Raises `TooManyInvalid` when too many of the last episodes could not be judged."""
        for episode in episodes:
            self._episodes.append(episode)
            self._invalid.append(episode.verdict.outcome == "invalid")
            if self._invalid[-1]:
                self._last_reason = f"{episode.id}: {episode.verdict.reason}"
        fraction = fmean(self._invalid) if self._invalid else 0.0
        if len(self._invalid) >= _INVALID_AT_LEAST and fraction > self._max_invalid_fraction:
            raise TooManyInvalid(
                f"{fraction:.0%} of the last {len(self._invalid)} episodes could not be judged, "
                f"run.max_invalid_fraction allows {self._max_invalid_fraction:.0%}; the last one: {self._last_reason}"
            )

    def drop(self, reason: str) -> None:
        """A group was dropped."""
        self._dropped[reason] += 1

    def take(self) -> dict[str, float]:
        """Everything since the last call; nothing at all when no episode has ended since then."""
        episodes = self._episodes
        if not episodes:
            return {}
        seconds = max(1e-9, time.perf_counter() - self._since)
        completions = [turn.completion for episode in episodes for turn in episode.turns]
        num_tokens = sum(len(completion.token_ids) for completion in completions)
        drafted = sum(completion.num_draft_tokens for completion in completions)
        accepted = sum(completion.num_accepted_tokens for completion in completions)
        numbers = {
            "rollout/num_episodes": float(len(episodes)),
            "rollout/num_tokens": float(num_tokens),
            "rollout/tokens_per_second": num_tokens / seconds,
            "rollout/invalid_fraction": _mean(episode.verdict.outcome == "invalid" for episode in episodes),
            "rollout/forced_fraction": _mean(0 in completion.loss_mask for completion in completions),
            "rollout/truncated_fraction": _mean(episode.stop == "completion_budget" for episode in episodes),
            "rollout/completion_tokens/mean": _mean(len(completion.token_ids) for completion in completions),
            "rollout/mixed_version_fraction": _mean(len(completion.weight_spans) > 1 for completion in completions),
        }
        if drafted:
            numbers["draft/acceptance"] = accepted / drafted
        rewards: defaultdict[str, list[float]] = defaultdict(list)
        for episode in episodes:
            if episode.verdict.reward is not None:
                rewards[episode.task.environment].append(episode.verdict.reward)
        for name, values in rewards.items():
            numbers[f"env/{name}/reward/mean"] = fmean(values)
        if rewards:
            numbers["reward/mean"] = fmean(itertools.chain.from_iterable(rewards.values()))
        for reason, count in self._dropped.items():
            numbers[f"groups/dropped/{reason}"] = float(count)
        self._clear()
        return numbers

    def _clear(self) -> None:
        self._episodes: list[Episode] = []
        self._dropped: Counter[str] = Counter()
        self._since = time.perf_counter()


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return fmean(kept) if kept else 0.0
