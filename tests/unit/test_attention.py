"""Attention over packed rows: FlashAttention 4 is asked for the right thing, and differentiated rightly."""

from __future__ import annotations

import itertools
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.learner import attention
from rlvr.learner.attention import Packing, _attend_fa4, _attend_padded

LENGTHS = (5, 1, 12, 3)
HEADS, GROUPS, SIZE = 4, 2, 8


def probabilities(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """[heads, length, length] of one sequence; `query` and `key` [length, heads or groups, size]."""
    length = len(query)
    scores = torch.einsum("ihd,jhd->hij", query, shared(key)) * scaling
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")).softmax(2)


def shared(rows: Tensor) -> Tensor:
    """A group's rows for each of its heads."""
    return rows.repeat_interleave(HEADS // GROUPS, 1)


def forward(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Any:
    """`_flash_attn_fwd`, one sequence at a time."""
    assert arguments["causal"]
    assert arguments["return_lse"]
    assert arguments["max_seqlen_q"] == arguments["max_seqlen_k"] == max(LENGTHS)
    output = torch.empty_like(query)
    for rows in sequences(arguments["cu_seqlens_q"]):
        found = probabilities(query[rows], key[rows], arguments["softmax_scale"])
        output[rows] = torch.einsum("hij,jhd->ihd", found, shared(value[rows]))
    return output, torch.zeros(HEADS, len(query)), None, None, None


def backward(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, grad: Tensor, _: Tensor, **arguments: Any
) -> Any:
    """`_flash_attn_bwd`, by the softmax's closed form: autograd is off where the kernel is called."""
    assert arguments["causal"]
    assert arguments["max_seqlen_q"] == arguments["max_seqlen_k"] == max(LENGTHS)
    scaling = arguments["softmax_scale"]
    grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
    for rows in sequences(arguments["cu_seqlens_k"]):
        found = probabilities(query[rows], key[rows], scaling)
        of_output = (grad[rows] * output[rows]).sum(2).t()[:, :, None]
        slope = found * (torch.einsum("ihd,jhd->hij", grad[rows], shared(value[rows])) - of_output) * scaling
        grads[0][rows] = torch.einsum("hij,jhd->ihd", slope, shared(key[rows]))
        for place, weights, tensor in ((1, slope, query[rows]), (2, found, grad[rows])):
            of_heads = torch.einsum("hij,ihd->jhd", weights, tensor)
            grads[place][rows] = of_heads.unflatten(1, (GROUPS, HEADS // GROUPS)).sum(2)
    return tuple(grads)


def sequences(cu_seqlens: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in itertools.pairwise(cu_seqlens.tolist())]


@pytest.mark.parametrize("compiled", [False, True])
def test_flash_attention_4_is_asked_for_what_padded_attention_computes(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    monkeypatch.setattr(attention, "_fa4", lambda: kernels)
    torch.manual_seed(0)
    position_ids = torch.cat([torch.arange(length) for length in LENGTHS])
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    packing = Packing.of(cu_seqlens, position_ids)
    inputs = [torch.randn(n, sum(LENGTHS), SIZE) for n in (HEADS, GROUPS, GROUPS)]
    target = torch.randn(sum(LENGTHS), HEADS, SIZE)
    results = []
    for attend in (_attend_padded, _attend_fa4):
        # As they come from a model: heads first, so that a token's heads lie apart.
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        function = torch.compile(attend, backend="aot_eager") if compiled else attend
        output = function(*(leaf.transpose(0, 1) for leaf in leaves), packing, SIZE**-0.5)
        (output * target).sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for exact, found in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "installed", "imports", "expected"),
    [(8, True, True, False), (9, False, True, False), (9, True, False, False), (9, True, True, True)],
    ids=["an older GPU", "not installed", "installed, but broken", "there"],
)
def test_flash_attention_4_is_used_where_it_works_and_a_broken_one_is_told(
    capability: int, installed: bool, imports: bool, expected: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def version(name: str) -> str:
        assert name == "flash-attn-4"
        if not installed:
            raise PackageNotFoundError
        return "4.0"

    def kernels() -> None:
        if not imports:
            raise ImportError("No module named 'cutlass.cute'")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(attention, "version", version)
    monkeypatch.setattr(attention, "_fa4", kernels)
    assert attention.has_fa4.__wrapped__() is expected
    told = "installed but cannot be used, so attention is FlashAttention 2's: ImportError" in caplog.text
    assert told == (capability == 9 and installed and not imports)
