"""The gradients that an optimizer step applies, wherever DeepSpeed keeps them, and their clipping by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def group_gradients(engine: Any, zero_stage: int) -> list[list[Tensor]]:
    """The gradients that the next `engine.step()` will apply, by parameter group; changing them in place counts.

    After the backward pass at an accumulation boundary, ZeRO 1 to 3 hold this rank's share of the averaged gradient in
    `averaged_gradients`: by parameter group in stages 1 and 2, by sub-group in stage 3. Stage 1 in bfloat16 has an
    optimizer of its own (BF16_Optimizer), with one flat share a group. Read in DeepSpeed 0.19.8.
    """
    optimizer = engine.optimizer
    if zero_stage == 0:
        return [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):
        return [[share] for share in optimizer.fp32_groups_gradient_flat_partition]
    groups: list[list[Tensor]] = [[] for _ in optimizer.param_groups]
    for index, gradients in optimizer.averaged_gradients.items():
        groups[optimizer.sub_group_to_group_id[index] if zero_stage == 3 else index] += gradients
    return groups


def clip_apart(groups: Sequence[Sequence[Tensor]], limits: Sequence[float], partitioned: bool) -> list[float]:
    """Scale each group of gradients, in place, to at most its own limit of the global L2 norm; the norms before.

    `partitioned`: each rank holds a share of every gradient, so squares are added up over ranks.
    """
    device = groups[0][0].device
    squares = [torch.stack([_sum_of_squares(gradient) for gradient in group]).sum() for group in groups]
    totals = torch.stack(squares).to(device)
    if partitioned:
        dist.all_reduce(totals)
    norms: list[float] = totals.sqrt().tolist()
    for group, norm, limit in zip(groups, norms, limits, strict=True):
        if norm > limit:
            for gradient in group:
                gradient.mul_(limit / norm)
    return norms


def _sum_of_squares(gradient: Tensor) -> Tensor:
    """In float64, piece by piece: a copy of a whole partition would be the largest tensor of the run."""
    return torch.stack([piece.double().square().sum() for piece in torch.split(gradient.flatten(), 2**24)]).sum()
