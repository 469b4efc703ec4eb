"""One version of policy and draft on its way from learner to engines.

    learner rank 0                           engine
    PackedWeights      bytes in host memory  copied through shared memory         (CPU, or machines apart)
    DeviceWeights      bytes on its GPU      read in place over CUDA IPC          (learner and engine share a GPU)
    BroadcastWeights   only what will come   received while the learner sends it  (NCCL between GPUs)

All three `offer` what vLLM's `update_weights` takes, for policy and draft apart. A `PackedWeights` pickles its bytes
out of band, so Ray moves it between actors of one machine without a copy.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Part = Literal["policy", "draft"]
PARTS: tuple[Part, Part] = ("policy", "draft")
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
    """As `checksum`, policy and draft apart; 0 for a part that does not travel."""

    policy: int
    draft: int


Offer = dict[Part, dict[str, Any]]


class Weights(Protocol):
    """What `Engine.update` takes."""

    @property
    def version(self) -> int:
        """The learner's."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether a failed transfer can start again without the learner."""
        ...

    def offer(self) -> AbstractContextManager[Offer]:
        """The `update_info` of each part, good until the context ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedWeights:
    """`buffer` (uint8) holds every tensor of `manifest`; draft tensors are those under `DRAFT_PREFIX`."""

    version: int
    manifest: tuple[Entry, ...]
    buffer: NDArray[np.uint8]
    repeatable: ClassVar[bool] = True

    def checksums(self) -> Checksums:
        """Of the bytes as they lie here."""
        import torch

        parts: dict[Part, list[tuple[str, torch.Tensor]]] = {"policy": [], "draft": []}
        for name, tensor in unpack(self.manifest, torch.from_numpy(self.buffer)):
            parts[part_of(name)].append((name, digest(tensor)))
        return Checksums(checksum(parts["policy"]), checksum(parts["draft"]))

    @contextmanager
    def offer(self) -> Iterator[Offer]:
        """In anonymous memory that another process of this machine opens by path; freed when we die, however."""
        file = os.memfd_create("rlvr-weights")
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(self.buffer.data)
            path = f"/proc/{os.getpid()}/fd/{file}"
            yield {
                part: {
                    "path": path,
                    "manifest": [list(entry) for entry in self.manifest if part_of(entry.name) == part],
                }
                for part in PARTS
            }
        finally:
            os.close(file)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceWeights:
    """CUDA IPC handles to buffers of the learner, one a part; the learner keeps them until the next version."""

    version: int
    infos: Offer
    repeatable: ClassVar[bool] = True

    @contextmanager
    def offer(self) -> Iterator[Offer]:
        """The handles."""
        yield self.infos


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BroadcastWeights:
    """Names, types and shapes of what the learner sends, in that order, once the engines wait for it."""

    version: int
    infos: Offer
    repeatable: ClassVar[bool] = False

    @contextmanager
    def offer(self) -> Iterator[Offer]:
        """The announcement."""
        yield self.infos


def part_of(name: str) -> Part:
    """Which model of an engine a tensor belongs to."""
    return "draft" if name.startswith(DRAFT_PREFIX) else "policy"


def description(entries: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> dict[str, list[Any]]:
    """Names, types and shapes, as vLLM's update infos spell them."""
    return {
        "names": [name for name, _, _ in entries],
        "dtype_names": [str(dtype).removeprefix("torch.") for _, dtype, _ in entries],
        "shapes": [list(shape) for _, _, shape in entries],
    }


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


def digest(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's words as 64-bit integers, computed where it lies; int64 without dimensions.

    It tells every changed bit, and with names and order (`checksum`) every missing or stale tensor, in one kernel for
    each: requests wait meanwhile. Words that changed places within a tensor it does not tell.
    """
    import torch

    words = tensor.detach().reshape(-1)
    words = words.view({1: torch.uint8, 2: torch.int16}.get(words.element_size(), torch.int32))
    return words.sum(dtype=torch.int64)


def checksum(digests: Sequence[tuple[str, torch.Tensor]]) -> int:
    """CRC-32 over names and digests in order; 0 for none. Waits for the device."""
    import torch

    if not digests:
        return 0
    result = 0
    for (name, _), value in zip(digests, torch.stack([value for _, value in digests]).tolist(), strict=True):
        result = zlib.crc32(f"{name}={value}\n".encode(), result)
    return result
