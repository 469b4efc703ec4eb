from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from rlvr.batching import pack, split_updates
from rlvr.types import LossSettings, MicroBatch, Sample


def sample(length: int, first_token: int) -> Sample:
    """Tokens `first_token, first_token + 1, ...`, so that every token of a batch can be told apart."""
    return Sample(
        token_ids=tuple(range(first_token, first_token + length)),
        loss_mask=(0, *([1] * (length - 1))),
        behaviour_logprobs=tuple(-float(first_token + i) for i in range(length)),
        advantages=tuple(float(first_token % 7) for _ in range(length)),
        oldest_version=0,
    )


def random_samples(seed: int, count: int = 30) -> list[Sample]:
    generator = random.Random(seed)
    return [sample(generator.randint(1, 40), 1000 * (i + 1)) for i in range(count)]


def unpack(micro_batch: MicroBatch) -> list[Sample]:
    """Back to samples; the inverse of packing, written independently."""
    samples = []
    for start, end in zip(micro_batch.cu_seqlens[:-1].tolist(), micro_batch.cu_seqlens[1:].tolist(), strict=True):
        assert micro_batch.position_ids[start:end].tolist() == list(range(end - start))
        samples.append(
            Sample(
                token_ids=tuple(micro_batch.token_ids[start:end].tolist()),
                loss_mask=tuple(int(mask) for mask in micro_batch.loss_mask[start:end].tolist()),
                behaviour_logprobs=tuple(micro_batch.behaviour_logprobs[start:end].tolist()),
                advantages=tuple(micro_batch.advantages[start:end].tolist()),
                oldest_version=0,
            )
        )
    return samples


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_every_sample_is_packed_once_within_the_limit_and_ranks_have_equal_counts(num_ranks: int, seed: int) -> None:
    samples = random_samples(seed)
    batch = pack(samples, num_ranks=num_ranks, micro_batch_tokens=64)
    assert len(batch.shards) == num_ranks
    assert len({len(shard) for shard in batch.shards}) == 1
    micro_batches = [micro_batch for shard in batch.shards for micro_batch in shard]
    assert all(len(micro_batch.token_ids) <= 64 for micro_batch in micro_batches)
    packed = [one for micro_batch in micro_batches for one in unpack(micro_batch) if one.token_ids != (0,)]
    assert sorted(packed, key=lambda one: one.token_ids) == samples
    assert batch.num_tokens == sum(len(one.token_ids) for one in samples)
    assert batch.num_loss_tokens == sum(sum(one.loss_mask) for one in samples)
    assert batch.num_loss_tokens == sum(micro_batch.loss_mask.sum() for micro_batch in micro_batches)


def test_ranks_are_balanced_to_within_one_longest_sample() -> None:
    samples = random_samples(0)
    batch = pack(samples, num_ranks=4, micro_batch_tokens=64)
    loads = [sum(len(micro_batch.token_ids) for micro_batch in shard) for shard in batch.shards]
    assert max(loads) - min(loads) <= max(len(one.token_ids) for one in samples)


def test_more_ranks_than_samples_get_micro_batches_without_loss() -> None:
    batch = pack([sample(5, 1000)], num_ranks=3, micro_batch_tokens=64)
    assert [len(shard) for shard in batch.shards] == [1, 1, 1]
    assert [shard[0].loss_mask.sum().item() for shard in batch.shards] == [4, 0, 0]


def test_packing_is_deterministic() -> None:
    one, other = (pack(random_samples(1), num_ranks=2, micro_batch_tokens=50) for _ in range(2))
    for a, b in zip(one.shards[1], other.shards[1], strict=True):
        assert torch.equal(a.token_ids, b.token_ids)


def test_samples_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"65 tokens .*micro_batch_tokens = 64"):
        pack([sample(65, 0)], num_ranks=1, micro_batch_tokens=64)
    with pytest.raises(ValueError, match="at least one"):
        pack([], num_ranks=1, micro_batch_tokens=64)
    wrong = Sample(token_ids=(1,), loss_mask=(1,), behaviour_logprobs=(0.0,), advantages=(1.0,), oldest_version=0)
    with pytest.raises(ValueError, match="first token"):
        pack([wrong], num_ranks=1, micro_batch_tokens=64)


@pytest.mark.parametrize("num_updates", [1, 2, 4, 50])
def test_updates_share_out_the_samples_evenly(num_updates: int) -> None:
    samples = random_samples(2)
    updates = split_updates(samples, num_updates)
    assert len(updates) == min(num_updates, len(samples))
    assert sorted((one for update in updates for one in update), key=lambda one: one.token_ids) == samples
    assert max(map(len, updates)) - min(map(len, updates)) <= 1


def test_samples_that_are_learned_from_differently_share_no_micro_batch() -> None:
    settings = [LossSettings(temperature=1.0), LossSettings(temperature=0.7), LossSettings(clip_high=0.5)]
    samples = [
        dataclasses.replace(each, loss=settings[number % 3]) for number, each in enumerate(random_samples(0, count=12))
    ]
    batch = pack(samples, num_ranks=2, micro_batch_tokens=60)
    assert len({len(shard) for shard in batch.shards}) == 1
    packed = [
        dataclasses.replace(each, loss=micro.loss)
        for shard in batch.shards
        for micro in shard
        for each in unpack(micro)
        if each.token_ids != (0,)
    ]
    assert sorted(packed, key=lambda each: each.token_ids) == samples


def test_a_micro_batch_moves_with_all_its_tensors_and_keeps_its_settings() -> None:
    samples = [dataclasses.replace(each, loss=LossSettings(clip_high=0.5)) for each in random_samples(0, count=3)]
    batch = pack(samples, num_ranks=1, micro_batch_tokens=200).shards[0][0]
    moved = batch.to(torch.device("meta"))
    assert moved.loss == batch.loss
    for each in dataclasses.fields(batch):
        if each.name != "loss":
            assert getattr(moved, each.name).device.type == "meta"
            assert getattr(moved, each.name).shape == getattr(batch, each.name).shape
