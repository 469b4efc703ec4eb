"""Attention over packed rows on one GPU: FlashAttention 4, where installed, and 2, in time and against float32.

    scripts/bench/gpu_attention.py [--tokens 32768] [--lengths 2048 8192]

Qwen2.5-1.5B's heads (12, in 2 groups, of 128) in bfloat16, causal, all sequences of a length. TFLOP/s count half of
the full square: 2 matrix products forward, 5 backward. The error is that of output and gradients together, in the
Euclidean norm, against padded attention in float32 over 4,096 of the tokens in sequences of uneven lengths.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from gpu_common import device, report
from torch import Tensor

from rlvr.learner.attention import Packing, _attend_fa4, _attend_padded, _attend_varlen, has_fa4

HEADS, GROUPS, SIZE = 12, 2, 128
UNEVEN = (1500, 1, 130, 2000, 17, 448)
Attend = Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    arguments = parser.parse_args()
    kinds: dict[str, Attend] = {"fa2": _attend_varlen} | ({"fa4": _attend_fa4} if has_fa4() else {})
    exact = run(_attend_padded, UNEVEN, torch.float32)
    for name, attend in kinds.items():
        began = time.perf_counter()
        found = run(attend, UNEVEN, torch.bfloat16)
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        for length in arguments.lengths:
            forward, both = timed(attend, (length,) * (arguments.tokens // length))
            flops = 2 * arguments.tokens * length * HEADS * SIZE  # of two matrix products over half of the square
            report(
                program="gpu_attention", kind=name, tokens=arguments.tokens, length=length, errors=errors,
                first_seconds=first, forward_ms=1e3 * forward, backward_ms=1e3 * (both - forward),
                forward_tflops=flops / forward / 1e12, backward_tflops=2.5 * flops / (both - forward) / 1e12,
                device=device(),
            )  # fmt: skip


def inputs(lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Packing]:
    torch.manual_seed(0)
    total = sum(lengths)
    leaves = [torch.randn(total, n, SIZE, device="cuda").to(dtype).requires_grad_() for n in (HEADS, GROUPS, GROUPS)]
    position_ids = torch.cat([torch.arange(length) for length in lengths]).cuda()
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32).cuda()
    return leaves, Packing.of(cu_seqlens, position_ids)


def run(attend: Attend, lengths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    leaves, packing = inputs(lengths, dtype)
    output = attend(*leaves, packing, SIZE**-0.5)
    (output.float() * torch.linspace(-1, 1, SIZE, device="cuda")).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def timed(attend: Attend, lengths: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of forward alone, and of forward and backward; medians of 10 after 3."""
    leaves, packing = inputs(lengths, torch.bfloat16)
    grad = torch.randn(sum(lengths), HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    found: list[list[float]] = [[], []]
    for _ in range(13):
        for backward in (False, True):
            torch.cuda.synchronize()
            began = time.perf_counter()
            output = attend(*leaves, packing, SIZE**-0.5)
            if backward:
                torch.autograd.grad(output, leaves, grad)
            torch.cuda.synchronize()
            found[backward].append(time.perf_counter() - began)
    return median(found[0][3:]), median(found[1][3:])


if __name__ == "__main__":
    main()
