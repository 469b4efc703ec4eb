"""One version of policy and draft, packed: a manifest and one run of bytes. What travels from learner to engines.

A `PackedWeights` pickles its bytes out of band, so Ray moves it between actors of one machine without a copy.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# Checkpoints name the tensors of the MTP layers so (MiMo's names, which vLLM's draft model reads).
DRAFT_PREFIX = "model.mtp_layers."
_ALIGNMENT = 64


class Entry(NamedTuple):
    """Where one tensor lies: `dtype` is torch's name ("float32"), `offset` and `size` are bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Checksums(NamedTuple):
    """CRC-32 over the bytes of all tensors in manifest order, policy and draft apart."""

    policy: int
    draft: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedWeights:
    """`buffer` (uint8) holds every tensor of `manifest`; draft tensors are those under `DRAFT_PREFIX`."""

    version: int
    manifest: tuple[Entry, ...]
    buffer: NDArray[np.uint8]

    def checksums(self) -> Checksums:
        """Of the bytes as they lie here."""
        return checksums(self.manifest, self.buffer)


def pack(version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> PackedWeights:
    """Copy named tensors of any device end to end."""
    import torch

    manifest: list[Entry] = []
    chunks: list[NDArray[np.uint8]] = []
    offset = 0
    for name, tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        padding = -flat.nbytes % _ALIGNMENT
        dtype = str(tensor.dtype).removeprefix("torch.")
        manifest.append(Entry(name, dtype, tuple(tensor.shape), offset, flat.nbytes))
        chunks.append(flat.copy())
        if padding:
            chunks.append(np.zeros(padding, dtype=np.uint8))
        offset += flat.nbytes + padding
    return PackedWeights(version=version, manifest=tuple(manifest), buffer=np.concatenate(chunks))


def unpack(manifest: Iterable[Entry], buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Views (no copy) into a flat uint8 tensor, by name."""
    import torch

    for entry in manifest:
        flat = buffer[entry.offset : entry.offset + entry.size]
        yield entry.name, flat.view(getattr(torch, entry.dtype)).reshape(entry.shape)


def checksums(manifest: Iterable[Entry], buffer: NDArray[np.uint8]) -> Checksums:
    """CRC-32 of policy and draft, reading `buffer` through `manifest`."""
    policy = draft = 0
    for entry in manifest:
        data = buffer[entry.offset : entry.offset + entry.size]
        if entry.name.startswith(DRAFT_PREFIX):
            draft = zlib.crc32(data.data, draft)
        else:
            policy = zlib.crc32(data.data, policy)
    return Checksums(policy, draft)
