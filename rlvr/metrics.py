"""Numbers of one step, from the episodes that finished since the last one. Names are `area/quantity[/statistic]`.

The areas `rollout`, `reward`, `draft` and `groups` are over all environments; `env/<name>/...` says the same of one.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from rlvr.errors import TooManyInvalid
from rlvr.evaluation import draft_acceptance
from rlvr.types import Completion, Episode, Task

_INVALID_WINDOW = 200
_INVALID_AT_LEAST = 50


class RolloutMeter:
    """Counts finished episodes; every `take` starts over. Episodes are counted before any filter."""

    def __init__(self, *, max_invalid_fraction: float) -> None:
        self._max_invalid_fraction = max_invalid_fraction
        self._invalid: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=_INVALID_WINDOW))
        self._clear()

    def add(self, episodes: Iterable[Episode]) -> None:
        """Raises `TooManyInvalid` when too many of an environment's last episodes could not be judged."""
        for episode in episodes:
            self._episodes.append(episode)
            invalid = self._invalid[episode.task.environment]
            invalid.append(episode.verdict.outcome == "invalid")
            fraction = fmean(invalid)
            if invalid[-1] and len(invalid) >= _INVALID_AT_LEAST and fraction > self._max_invalid_fraction:
                raise TooManyInvalid(
                    f"environment {episode.task.environment!r}: {fraction:.0%} of its last {len(invalid)} episodes "
                    f"could not be judged, run.max_invalid_fraction allows {self._max_invalid_fraction:.0%}; the last "
                    f"one: {episode.id}: {episode.verdict.reason}"
                )

    def drop(self, reason: str) -> None:
        """A group was dropped."""
        self._dropped[reason] += 1

    def trained(self, task: Task, staleness: Sequence[int], num_tokens: int) -> None:
        """The samples of a task's group went into a step: how old each was, and the tokens that carried loss."""
        self._staleness[task.environment] += staleness
        self._trained_tokens[task.environment] += num_tokens

    def take(self) -> dict[str, float]:
        """Everything since the last call; nothing at all when no episode has ended since then."""
        episodes = self._episodes
        if not episodes:
            return {}
        seconds = max(1e-9, time.perf_counter() - self._since)
        num_tokens = sum(len(completion.token_ids) for completion in _completions(episodes))
        numbers = {
            "rollout/num_episodes": float(len(episodes)),
            "rollout/num_tokens": float(num_tokens),
            "rollout/tokens_per_second": num_tokens / seconds,
            **{f"rollout/{name}": value for name, value in _of_episodes(episodes).items()},
            **{f"groups/dropped/{reason}": float(count) for reason, count in self._dropped.items()},
        }
        accepted = draft_acceptance(episodes)
        if accepted is not None:
            numbers["draft/acceptance"] = accepted
        numbers |= _reward("reward/mean", episodes)
        by_environment: defaultdict[str, list[Episode]] = defaultdict(list)
        for episode in episodes:
            by_environment[episode.task.environment].append(episode)
        for name, own in by_environment.items():
            numbers[f"env/{name}/num_episodes"] = float(len(own))
            numbers |= {f"env/{name}/{quantity}": value for quantity, value in _of_episodes(own).items()}
            numbers |= _reward(f"env/{name}/reward/mean", own)
            for level in {episode.task.level for episode in own} - {""}:
                at_level = [episode for episode in own if episode.task.level == level]
                numbers |= _reward(f"env/{name}/level/{level}/reward/mean", at_level)
        for name, staleness in self._staleness.items():
            numbers[f"env/{name}/staleness/mean"] = _mean(staleness)
            numbers[f"env/{name}/trained_tokens"] = float(self._trained_tokens[name])
        self._clear()
        return numbers

    def _clear(self) -> None:
        self._episodes: list[Episode] = []
        self._dropped: Counter[str] = Counter()
        self._staleness: defaultdict[str, list[int]] = defaultdict(list)
        self._trained_tokens: Counter[str] = Counter()
        self._since = time.perf_counter()


def _of_episodes(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over completions, and over episodes."""
    completions = _completions(episodes)

    def share(holds: Callable[[Completion], bool]) -> float:
        return _mean(holds(completion) for completion in completions)

    return {
        "completion_tokens/mean": _mean(len(completion.token_ids) for completion in completions),
        "thinking_tokens/mean": _mean(completion.num_thinking_tokens for completion in completions),
        "forced_fraction": share(lambda completion: 0 in completion.loss_mask),
        "mixed_version_fraction": share(lambda completion: len({span.version for span in completion.weight_spans}) > 1),
        "forced_tokens/mean": _mean(completion.loss_mask.count(0) for completion in completions),
        "invalid_fraction": _mean(episode.verdict.outcome == "invalid" for episode in episodes),
        "truncated_fraction": _mean(episode.stop == "completion_budget" for episode in episodes),
        "turns/mean": _mean(len(episode.turns) for episode in episodes),
        "tool_calls/mean": _mean(_num_tool_calls(episode) for episode in episodes),
    }


def _reward(name: str, episodes: Iterable[Episode]) -> dict[str, float]:
    """The mean of the rewards under `name`; nothing where none was judged."""
    rewards = [episode.verdict.reward for episode in episodes if episode.verdict.reward is not None]
    return {name: fmean(rewards)} if rewards else {}


def _num_tool_calls(episode: Episode) -> int:
    return sum(message.role == "tool" for turn in episode.turns for message in turn.reply.messages)


def _completions(episodes: Iterable[Episode]) -> list[Completion]:
    return [turn.completion for episode in episodes for turn in episode.turns]


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return fmean(kept) if kept else 0.0
