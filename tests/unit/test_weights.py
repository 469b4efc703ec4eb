"""What is unpacked is what was packed, bit for bit; a checksum tells every change, and policy from draft."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rlvr.weights import DRAFT_PREFIX, Fingerprint, PackedWeights, pack, unpack

DRAFT = f"{DRAFT_PREFIX}0.norm.weight"


def tensors() -> dict[str, torch.Tensor]:
    """Of odd sizes, several types, one without elements, one without dimensions, one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed.weight": torch.randn(3, 7, generator=generator),
        "model.half.weight": torch.randn(5, 3, generator=generator).to(torch.bfloat16),
        "model.scalar": torch.tensor(2.5, dtype=torch.float64),
        "model.empty": torch.zeros(0, 4),
        "model.bytes": torch.arange(13, dtype=torch.uint8),
        DRAFT: torch.randn(65, generator=generator).to(torch.bfloat16),
        "model.turned": torch.randn(4, 6, generator=generator).t(),
        "model.special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def unpacked(packed: PackedWeights) -> dict[str, torch.Tensor]:
    return dict(unpack(packed.manifest, torch.from_numpy(packed.buffer)))


def test_unpacked_tensors_are_the_packed_ones_bit_for_bit() -> None:
    packed = pack(3, tensors().items())
    back = unpacked(packed)
    assert packed.version == 3
    assert list(back) == list(tensors()), "in order"
    for name, tensor in tensors().items():
        assert back[name].dtype == tensor.dtype, name
        assert back[name].shape == tensor.shape, name
        assert bits(back[name]) == bits(tensor), name


def test_packing_copies_so_that_the_learners_next_step_changes_nothing() -> None:
    weight = torch.ones(3)
    packed = pack(0, [("w", weight)])
    weight += 1
    assert unpacked(packed)["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_tensor_may_be_reused_for_the_next_one_while_packing() -> None:
    gathered = torch.zeros(3)

    def one_after_another() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            yield f"w{number}", gathered.fill_(number)

    back = unpacked(pack(0, one_after_another()))
    assert [back[f"w{number}"].tolist() for number in range(3)] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]


def test_unpacking_makes_views_and_not_copies() -> None:
    buffer = torch.from_numpy(pack(0, tensors().items()).buffer)
    for entry, (_, tensor) in zip(pack(0, tensors().items()).manifest, unpack_all(buffer), strict=True):
        if entry.size:
            assert tensor.data_ptr() == buffer.data_ptr() + entry.offset


def unpack_all(buffer: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return list(unpack(pack(0, tensors().items()).manifest, buffer))


def test_every_tensor_is_aligned_and_none_overlap() -> None:
    manifest = pack(0, tensors().items()).manifest
    end = 0
    for entry in manifest:
        assert entry.offset % 64 == 0
        assert entry.offset >= end
        end = entry.offset + entry.size


def test_weights_with_gradients_can_be_packed() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    assert unpacked(pack(0, [("w", weight)]))["w"].tolist() == [1.0, 1.0]


def test_weights_survive_a_pickle() -> None:
    packed = pack(5, tensors().items())
    back = pickle.loads(pickle.dumps(packed, protocol=5))
    assert back.manifest == packed.manifest
    assert np.array_equal(back.buffer, packed.buffer)
    assert back.checksums() == packed.checksums()


def changed(name: str) -> dict[str, torch.Tensor]:
    """One bit of one tensor is another."""
    copies = {key: tensor.clone() for key, tensor in tensors().items()}
    copies[name].view(-1).view(torch.uint8)[-1] ^= 1
    return copies


@pytest.mark.parametrize("name", ["model.embed.weight", "model.half.weight", "model.bytes", "model.special"])
def test_one_bit_of_the_policy_changes_the_policys_checksum_alone(name: str) -> None:
    before, after = (pack(0, weights.items()).checksums() for weights in (tensors(), changed(name)))
    assert before.policy != after.policy
    assert before.draft == after.draft


def test_one_bit_of_the_draft_changes_the_drafts_checksum_alone() -> None:
    before, after = (pack(0, weights.items()).checksums() for weights in (tensors(), changed(DRAFT)))
    assert before.draft != after.draft
    assert before.policy == after.policy


def test_equal_weights_have_equal_checksums_whatever_their_version() -> None:
    assert pack(1, tensors().items()).checksums() == pack(2, tensors().items()).checksums()


def test_two_words_that_changed_places_within_a_tensor_change_the_checksum() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    before = pack(0, [("w", weight)]).checksums()
    for one, other in (((0, 0), (0, 1)), ((3, 7), (4, 7)), ((0, 5), (39, 29))):
        swapped = weight.clone()
        swapped[one], swapped[other] = weight[other], weight[one]
        assert pack(0, [("w", swapped)]).checksums() != before
    assert pack(0, [("w", weight.flip(0))]).checksums() != before
    assert pack(0, [("w", weight.reshape(30, 40))]).checksums() == before, "the bytes count, not the shape"


def words_weighted_by_place(tensor: torch.Tensor) -> int:
    words = np.frombuffer(bits(tensor), {1: "u1", 2: "<i2"}.get(tensor.element_size(), "<i4"))
    return sum(int(word) * (2 * place + 1) for place, word in enumerate(words)) % 2**64


def test_a_checksum_is_the_crc_over_each_tensors_words_weighted_by_their_places() -> None:
    expected = 0
    for name, tensor in tensors().items():
        if name != DRAFT:
            expected = zlib.crc32(f"{name}={words_weighted_by_place(tensor)}\n".encode(), expected)
    assert pack(0, tensors().items()).checksums().policy == expected


def test_a_tensor_in_parts_sums_to_the_whole_one() -> None:
    for name, tensor in tensors().items():
        whole, parts = Fingerprint(), Fingerprint()
        whole.add(name, tensor)
        flat = tensor.reshape(-1)
        for start in reversed(range(0, max(1, len(flat)), 4)):
            parts.add(name, flat[start : start + 4], start=start)
        assert parts.checksum() == whole.checksum()


def test_sums_that_overflow_do_so_alike() -> None:
    weight = torch.full((3, 1 << 12), -1, dtype=torch.int16)
    weight[1] = 2**15 - 1
    sums = Fingerprint()
    sums.add("w", weight, start=2**46)
    words = weight.reshape(-1).tolist()
    value = sum(word * (2 * (place + 2**46) + 1) for place, word in enumerate(words)) % 2**64
    assert sums.checksum() == zlib.crc32(f"w={value}\n".encode())


def test_padding_does_not_count() -> None:
    packed = pack(0, tensors().items())
    covered = np.zeros(len(packed.buffer), dtype=bool)
    for entry in packed.manifest:
        covered[entry.offset : entry.offset + entry.size] = True
    other = packed.buffer.copy()
    other[~covered] = 255
    assert not covered.all()
    assert PackedWeights(version=0, manifest=packed.manifest, buffer=other).checksums() == packed.checksums()
