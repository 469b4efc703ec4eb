"""From sums over a rank's tokens to a step's metrics over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed_over_ranks(totals: dict[str, Tensor], *, mtp: bool) -> dict[str, float]:
    """`totals` are this rank's sums (and maxima, named `..._max`) as `Learner` collects them. A collective."""
    sums = {name: value for name, value in totals.items() if not name.endswith("_max")}
    summed = torch.stack([value.double() for value in sums.values()])
    dist.all_reduce(summed)
    largest = totals["logprob_diff_max"].clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    total = dict(zip(sums, summed.tolist(), strict=True))
    tokens = max(1.0, total["num_loss_tokens"])
    predicted = max(1.0, total["mtp_count"])
    metrics = {
        "loss/policy": total["loss"] / tokens,
        "policy/entropy": total["entropy"] / tokens,
        "policy/clip_fraction": total["clipped"] / tokens,
        "importance/masked_fraction": total["importance_masked"] / tokens,
        "importance/logprob_diff/mean": total["logprob_diff"] / tokens,
        "importance/logprob_diff/mean_abs": total["logprob_diff_abs"] / tokens,
        "importance/logprob_diff/max": float(largest),
        "learner/num_loss_tokens": total["num_loss_tokens"],
        "learner/num_tokens": total["num_tokens"],
    }
    if mtp:
        metrics |= {
            "mtp/loss": total["mtp_loss"] / predicted,
            "mtp/top1_agreement": total["mtp_top1"] / predicted,
            "mtp/expected_acceptance": total["mtp_acceptance"] / predicted,
        }
    return metrics
