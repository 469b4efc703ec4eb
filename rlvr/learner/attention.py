"""Attention over packed sequences, registered with transformers under the name `rlvr_packed`.

A micro-batch is one row of tokens, sequences end to end. The models are called with `packing=Packing...`, which
transformers hands down to the attention function unchanged; no mask is built, because none is registered by this name.

On a GPU in half precision it is FlashAttention 4, where that is installed and made for the GPU, else the
FlashAttention 2 that torch brings; elsewhere sequences are padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

logger = logging.getLogger(__name__)

IMPLEMENTATION = "rlvr_packed"
_FA4_LARGEST_HEAD = 128  # on every GPU that it is made for


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a packed row lie.

    `slots[i]` is token `i`'s place in a grid of [num_sequences, max_length], flattened.
    """

    cu_seqlens: Tensor  # int32, shape [num_sequences + 1]
    max_length: int
    slots: Tensor  # int64, shape [num_tokens]

    @classmethod
    def of(cls, cu_seqlens: Tensor, position_ids: Tensor) -> Packing:
        """From a micro-batch's `cu_seqlens` and `position_ids`."""
        lengths = cu_seqlens.diff().long()
        max_length = int(lengths.max())
        sequence = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        return cls(cu_seqlens, max_length, sequence * max_length + position_ids)

    def pad(self, rows: Tensor) -> Tensor:
        """[num_tokens, ...] -> [num_sequences, max_length, ...], zeros behind each sequence."""
        num_sequences = len(self.cu_seqlens) - 1
        grid = rows.new_zeros(num_sequences * self.max_length, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return grid.view(num_sequences, self.max_length, *rows.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """The tokens of what `pad` made."""
        return grid.flatten(0, 1)[self.slots]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence. `query` [1, heads, tokens, size], `key` and `value` with key-value heads.

    Returns [1, tokens, heads, size], and no attention weights. Raises `NotImplementedError` for sliding windows shorter
    than a sequence and for dropout.
    """
    if (sliding_window is not None and sliding_window < packing.max_length) or dropout:
        raise NotImplementedError(
            f"packed attention has no sliding window ({sliding_window}) and no dropout ({dropout})"
        )
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attend = _attend_padded
    if query.is_cuda and query.dtype != torch.float32:
        attend = _attend_fa4 if query.shape[2] <= _FA4_LARGEST_HEAD and has_fa4() else _attend_varlen
    return attend(query, key, value, packing, scaling)[None], None


@cache
def has_fa4() -> bool:
    """Whether FlashAttention 4 is installed and can be used here, on a Hopper or a datacenter Blackwell."""
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        return False
    try:
        version("flash-attn-4")
        _fa4()
    except PackageNotFoundError:
        return False
    except Exception as error:  # whatever its import runs into: half the speed is better than no run
        logger.warning("flash-attn-4 is installed but cannot be used, so attention is FlashAttention 2's: %r", error)
        return False
    return True


@cache
def _fa4() -> Any:
    return import_module("flash_attn.cute.interface")


# Opaque to torch.compile. FlashAttention 4's own autograd function is not, and torch 2.13's adapter to it
# (`torch.nn.attention.activate_flash_attention_impl`) expects a release older than any on the package index.
@torch.library.custom_op("rlvr::fa4_forward", mutates_args=())
def _fa4_forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    output, log_sum, *_ = _fa4()._flash_attn_fwd(
        query, key, value, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=longest,
        max_seqlen_k=longest, softmax_scale=scaling, causal=True, return_lse=True,
    )  # fmt: skip
    return output, log_sum


@_fa4_forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


@torch.library.custom_op("rlvr::fa4_backward", mutates_args=())
def _fa4_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, cu_seqlens: Tensor,
    longest: int, scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, *_ = _fa4()._flash_attn_bwd(
        query, key, value, output, grad, log_sum, softmax_scale=scaling, causal=True, cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens, max_seqlen_q=longest, max_seqlen_k=longest,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return dq, dk, dv


@_fa4_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.longest, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, cu_seqlens, output, log_sum = ctx.saved_tensors
    grads = _fa4_backward(grad.contiguous(), query, key, value, output, log_sum, cu_seqlens, ctx.longest, ctx.scaling)
    return *grads, None, None, None


_fa4_forward.register_autograd(_differentiate, setup_context=_remember)


def _attend_fa4(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """[tokens, heads, size] in and out, half precision only."""
    inputs = (tensor.contiguous() for tensor in (query, key, value))
    output: Tensor = _fa4_forward(*inputs, packing.cu_seqlens, packing.max_length, scaling)[0]
    return output


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """FlashAttention; [tokens, heads, size] in and out, half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = packing.cu_seqlens, packing.max_length
    grouped = query.shape[1] != key.shape[1]
    output = varlen_attn(
        query, key, value, cu, cu, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(output, Tensor)  # a tuple only where auxiliary outputs are asked for
    return output


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """Pad every sequence to the longest, attend, gather back; [tokens, heads, size] in and out."""
    q, k, v = (packing.pad(rows).transpose(1, 2) for rows in (query, key, value))
    output: Tensor = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return packing.unpad(output.transpose(1, 2))


def keep_sequences_apart(policy: torch.nn.Module) -> None:
    """Let linear-attention layers (Qwen3.5's gated delta net) start anew with each sequence of a packed row.

    They are called with the sequences padded behind, which no token sees: transformers' own code for packed rows needs
    kernels that are not installed everywhere, and without them runs one sequence into the next.
    """
    for layer in policy.modules():
        if (mixer := getattr(layer, "linear_attn", None)) is not None:
            mixer.forward = partial(_apart, mixer.forward)


def _apart(forward: Callable[..., Tensor], hidden_states: Tensor, *, packing: Packing, **unused: Any) -> Tensor:
    return packing.unpad(forward(hidden_states=packing.pad(hidden_states[0])))[None]


AttentionInterface.register(IMPLEMENTATION, packed_attention)
