from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.algorithms.loss import policy_loss

LIMITS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "importance_min": 0.5, "importance_max": 2.0}


def brute_force(current: Tensor, proximal: Tensor, behaviour: Tensor, advantages: Tensor, mask: Tensor) -> float:
    loss = 0.0
    for c, p, b, a, m in zip(*(t.tolist() for t in (current, proximal, behaviour, advantages, mask)), strict=True):
        w, r = math.exp(p - b), math.exp(c - p)
        if m and 0.5 <= w <= 2.0:
            loss -= w * min(r * a, min(max(r, 0.8), 1.3) * a) / 7
    return loss


def random_tokens(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    proximal = -torch.rand(50, generator=generator)
    current = (proximal + 0.4 * torch.randn(50, generator=generator)).requires_grad_()
    behaviour = proximal + 0.7 * torch.randn(50, generator=generator)
    mask = (torch.rand(50, generator=generator) < 0.7).float()
    return current, proximal, behaviour, torch.randn(50, generator=generator), mask


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_sums_equal_the_formula_token_by_token(seed: int) -> None:
    current, proximal, behaviour, advantages, mask = tokens = random_tokens(seed)
    loss, sums = policy_loss(*tokens, **LIMITS, num_loss_tokens=7)
    assert loss.item() == pytest.approx(brute_force(*tokens), rel=1e-5)

    used = [i for i in range(50) if mask[i]]
    diff = {i: (proximal[i] - behaviour[i]).item() for i in used}
    kept = [i for i in used if 0.5 <= math.exp(diff[i]) <= 2.0]
    ratio = {i: math.exp((current[i] - proximal[i]).item()) for i in kept}
    assert sums["importance_masked"] == len(used) - len(kept) > 0
    assert sums["clipped"] == sum(ratio[i] > 1.3 if advantages[i] > 0 else ratio[i] < 0.8 for i in kept) > 0
    assert sums["logprob_diff"].item() == pytest.approx(sum(diff.values()), abs=1e-4)
    assert sums["logprob_diff_abs"].item() == pytest.approx(sum(map(abs, diff.values())), rel=1e-5)
    assert sums["logprob_diff_max"].item() == pytest.approx(max(map(abs, diff.values())), rel=1e-5)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    current, _, _, advantages, mask = random_tokens(0)
    loss, sums = policy_loss(current, current.detach(), current.detach(), advantages, mask, **LIMITS, num_loss_tokens=7)
    loss.backward()
    assert current.grad is not None
    torch.testing.assert_close(current.grad, -mask * advantages / 7)
    assert not any(sums.values())


def test_masked_importance_and_masked_tokens_get_no_gradient_even_where_weights_overflow() -> None:
    current = torch.full((3,), -0.5, requires_grad=True)
    behaviour = torch.tensor([-1000.0, -0.5, -1000.0])
    loss, sums = policy_loss(
        current, current.detach(), behaviour, torch.ones(3), torch.tensor([1.0, 1.0, 0.0]), **LIMITS, num_loss_tokens=1
    )
    loss.backward()
    assert current.grad is not None
    assert current.grad.tolist() == [0.0, -1.0, 0.0]
    assert sums["importance_masked"] == 1


def test_clipping_stops_the_gradient_only_in_the_direction_of_the_advantage() -> None:
    current = torch.log(torch.tensor([1.4, 1.4, 0.7, 0.7])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, sums = policy_loss(
        current, torch.zeros(4), torch.zeros(4), advantages, torch.ones(4), **LIMITS, num_loss_tokens=1
    )
    loss.backward()
    assert current.grad is not None
    assert current.grad.tolist() == pytest.approx([0.0, 1.4, -0.7, 0.0])
    assert sums["clipped"] == 2
