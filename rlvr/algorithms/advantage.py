"""Group-relative advantages: an episode is judged against the others of its task.

    A_i = r_i - mean(r_j : j != i, j valid)

The leave-one-out baseline (RLOO: Kool et al. 2019; Ahmadian et al., arXiv:2402.14740) is unbiased. Invalid episodes
take part on neither side: they get no advantage and do not shift their siblings'.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev


def has_spread(rewards: Sequence[float | None]) -> bool:
    """Whether two valid rewards differ. `None` is invalid. Without spread every advantage is 0: nothing to learn."""
    return len({reward for reward in rewards if reward is not None}) > 1


def pass_rate(rewards: Sequence[float | None]) -> float | None:
    """The share of the valid rewards that are positive; `None` where none is valid."""
    valid = [reward for reward in rewards if reward is not None]
    return sum(reward > 0 for reward in valid) / len(valid) if valid else None


def group_advantages(rewards: Sequence[float | None], *, normalize_by_std: bool) -> list[float | None]:
    """One advantage a reward, `None` where the reward is; 0.0 for a valid episode that has no valid sibling.

    `normalize_by_std` divides by the population standard deviation of the valid rewards (GRPO, arXiv:2402.03300).
    """
    valid = [reward for reward in rewards if reward is not None]
    if not has_spread(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    total, others = sum(valid), len(valid) - 1
    scale = pstdev(valid) if normalize_by_std else 1.0
    return [None if reward is None else (reward - (total - reward) / others) / scale for reward in rewards]
