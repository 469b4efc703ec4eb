"""The policy loss: token-level clipped surrogate, with masked importance sampling for asynchronous rollouts.

Three policies meet in it. *Behaviour* sampled the token (in the engine, maybe some versions ago); *proximal* is the
learner before this batch; *current* is the learner now. With one update a batch, proximal equals current, detached.

    r = exp(current - proximal)                           the ratio that is clipped
    w = exp(proximal - behaviour)                         corrects for who sampled; constant
    m = 1 where importance_min <= w <= importance_max     a token too far off is left out, not cut to size
    loss = -sum(m * w * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)) / num_loss_tokens

Sources: clipping, PPO (arXiv:1707.06347); group-relative A, GRPO (arXiv:2402.03300); asymmetric clip and one mean over
all tokens of the batch, DAPO (arXiv:2503.14476); proximal apart from behaviour, decoupled PPO (Hilton et al.,
arXiv:2110.00641; AReaL, arXiv:2505.24298); masking by w on both sides, IcePop (Ring-1T, arXiv:2510.18855), as in
Nemotron 3's RLVR.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor,
    proximal: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    importance_min: float,
    importance_max: float,
    num_loss_tokens: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (a scalar, a *sum* over these tokens over `num_loss_tokens` of the whole step) and sums for metrics.

    All tensors have shape [num_tokens]; `mask` is 0 or 1; log-probabilities are natural and at one temperature.
    Sums over the tokens under `mask`, detached: `importance_masked` and `clipped` count tokens; `logprob_diff` and
    `logprob_diff_abs` add up learner minus behaviour (proximal policy); `logprob_diff_max` is a maximum of the latter.
    """
    proximal = proximal.detach()
    diff = torch.where(mask > 0, proximal - behaviour, 0.0)
    weight = diff.exp()
    kept = mask * ((weight >= importance_min) & (weight <= importance_max))
    ratio = torch.where(kept > 0, logprobs - proximal, 0.0).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    # where, not a product: an overflowing weight that is masked out must not become 0 * inf.
    surrogate = torch.where(kept > 0, weight * torch.minimum(unclipped, clipped), 0.0)
    sums = {
        "importance_masked": (mask - kept).sum(),
        "clipped": (kept * (clipped < unclipped)).sum(),
        "logprob_diff": diff.sum(),
        "logprob_diff_abs": diff.abs().sum(),
        "logprob_diff_max": diff.abs().max(),
    }
    return -surrogate.sum() / num_loss_tokens, {name: value.detach() for name, value in sums.items()}
