"""How the draws of a mixture are shared out, by what was seen lately. Pure.

Levels of a curriculum are drawn by what they can teach. The gradient of a group-relative method grows with the spread
of a task's rewards, p (1 - p) where p is the policy's pass rate: nothing comes of what always or never succeeds
(learnability: Tzannetos et al., arXiv:2304.12877; Foster & Foerster, arXiv:2502.12272). So a level's share moves from
easy to hard by itself, as the policy gets there, and comes back when it forgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

# Weights held by tokens change the number of tasks at most by so much, or an environment that is never trained on,
# because its rewards have no spread, would take all draws.
MAX_TOKEN_FACTOR = 4.0


def level_weights(passed: Mapping[str, Sequence[float]], *, floor: float) -> dict[str, float]:
    """Weight of each level, from `floor` to 1; `passed` are the pass rates of its last tasks.

    A level of which nothing is known yet counts as half passed, so it is tried.
    """
    weights = {}
    for level, rates in passed.items():
        rate = (sum(rates) + 1) / (len(rates) + 2)
        weights[level] = max(floor, 4 * rate * (1 - rate))
    return weights


def token_factors(tokens: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """By how much each environment's weight in tasks differs from its weight in tokens.

    `tokens` are those trained on of each environment's last tasks, 0 for a task that was dropped.
    """
    means = {name: fmean(counts) for name, counts in tokens.items() if counts}
    usual = fmean(means.values()) if means else 0.0
    factors = {}
    for name in tokens:
        mean = means.get(name, usual)
        factor = usual / mean if mean else MAX_TOKEN_FACTOR if usual else 1.0
        factors[name] = min(MAX_TOKEN_FACTOR, max(1 / MAX_TOKEN_FACTOR, factor))
    return factors
