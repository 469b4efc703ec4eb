"""Attention over packed sequences, registered with transformers under the name `rlvr_packed`.

A micro-batch is one row of tokens, sequences end to end. The models are called with `packing=Packing...`, which
transformers hands down to the attention function unchanged; no mask is built, because none is registered by this name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

IMPLEMENTATION = "rlvr_packed"


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
    attend = _attend_varlen if query.is_cuda and query.dtype != torch.float32 else _attend_padded
    return attend(query, key, value, packing, scaling)[None], None


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
    num_sequences, length = len(packing.cu_seqlens) - 1, packing.max_length

    def pad(rows: Tensor) -> Tensor:
        grid = rows.new_zeros(num_sequences * length, *rows.shape[1:]).index_copy(0, packing.slots, rows)
        return grid.view(num_sequences, length, *rows.shape[1:]).transpose(1, 2)

    output: Tensor = F.scaled_dot_product_attention(
        pad(query), pad(key), pad(value), is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).flatten(0, 1)[packing.slots]


AttentionInterface.register(IMPLEMENTATION, packed_attention)
