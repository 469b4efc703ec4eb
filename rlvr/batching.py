"""Samples -> packed batches: balanced over ranks, sequences end to end, as many micro-batches on every rank. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlvr.types import LossSettings, MicroBatch, Sample, TrainBatch


def split_updates(samples: Sequence[Sample], num_updates: int) -> list[list[Sample]]:
    """Deal a batch out to `num_updates` optimizer steps, neighbours (episodes of one task) to different ones.

    Fewer steps where there are fewer samples; none is empty.
    """
    return [list(samples[start::num_updates]) for start in range(min(num_updates, len(samples)))]


def pack(samples: Sequence[Sample], *, num_ranks: int, micro_batch_tokens: int) -> TrainBatch:
    """Pack one optimizer step. The same samples give the same batch.

    Ranks get nearly equal numbers of tokens: the longest remaining sample goes to the emptiest rank. Within a rank,
    samples fill micro-batches longest first, so that those of one micro-batch are of like length; samples that are
    learned from in different ways (`Sample.loss`) do not share one. A rank that needs
    fewer micro-batches than another gets empty ones (one token, no loss), because under ZeRO-3 each forward pass is a
    collective and a rank without one would leave the others waiting.

    Raises `ValueError` for no samples, for one longer than `micro_batch_tokens`, and for loss on a first token.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    for sample in samples:
        if len(sample.token_ids) > micro_batch_tokens:
            raise ValueError(
                f"a sample of {len(sample.token_ids)} tokens does not fit learner.micro_batch_tokens = "
                f"{micro_batch_tokens}; raise it to at least inference.max_model_len"
            )
        if sample.loss_mask[0]:
            raise ValueError("the first token of a sample has a loss mask of 1, but nothing comes before to predict it")
    ranks: list[list[Sample]] = [[] for _ in range(num_ranks)]
    for sample in sorted(samples, key=lambda sample: -len(sample.token_ids)):
        min(ranks, key=_num_tokens).append(sample)
    shards = [[_micro_batch(part) for part in _fill(rank, micro_batch_tokens)] for rank in ranks]
    longest = max(len(shard) for shard in shards)
    return TrainBatch(
        shards=tuple(tuple(shard + [_micro_batch([_EMPTY])] * (longest - len(shard))) for shard in shards),
        num_loss_tokens=sum(sum(sample.loss_mask) for sample in samples),
        num_tokens=_num_tokens(samples),
    )


_EMPTY = Sample(token_ids=(0,), loss_mask=(0,), behaviour_logprobs=(0.0,), advantages=(0.0,), oldest_version=0)


def _num_tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.token_ids) for sample in samples)


def _fill(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Consecutive samples of one kind of loss together, as many as fit."""
    parts: list[list[Sample]] = []
    filling: dict[LossSettings, list[Sample]] = {}
    for sample in samples:
        part = filling.get(sample.loss)
        if part is None or _num_tokens(part) + len(sample.token_ids) > max_tokens:
            part = filling[sample.loss] = []
            parts.append(part)
        part.append(sample)
    return parts


def _micro_batch(samples: Sequence[Sample]) -> MicroBatch:
    lengths = torch.tensor([0, *(len(sample.token_ids) for sample in samples)])

    def joined(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([value for sample in samples for value in getattr(sample, name)], dtype=dtype)

    return MicroBatch(
        token_ids=joined("token_ids", torch.int64),
        position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()]),
        cu_seqlens=lengths.cumsum(0).to(torch.int32),
        loss_mask=joined("loss_mask", torch.float32),
        behaviour_logprobs=joined("behaviour_logprobs", torch.float32),
        advantages=joined("advantages", torch.float32),
        loss=samples[0].loss,
    )
