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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
Part = Literal["policy", "draft"]
PARTS: tuple[Part, Part] = ("policy", "draft")
# Checkpoints name the tensors of the MTP layers so: MiMo's, and Qwen3.5's. vLLM's draft models read these names.
DRAFT_PREFIX = "model.mtp_layers."
_DRAFT_PREFIXES = (DRAFT_PREFIX, "mtp.")
_ALIGNMENT = 64
# A bucket is broadcast once it holds more than this, and two of them are held on either side.
BROADCAST_BYTES = 256 * 2**20
BROADCAST_BUFFERS = 2


class Entry(NamedTuple):
    """Where one tensor lies: `dtype` is torch's name ("float32"), `offset` and `size` are bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Checksums(NamedTuple):
    """As `Fingerprint.checksum`, policy and draft apart; 0 for a part that does not travel."""

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
    """`buffer` (uint8) holds every tensor of `manifest`; `part_of` tells which are the draft's."""

    version: int
    manifest: tuple[Entry, ...]
    buffer: NDArray[np.uint8]
    repeatable: ClassVar[bool] = True

    def checksums(self) -> Checksums:
        """Of the bytes as they lie here."""
        import torch

        parts = fingerprints()
        for name, tensor in unpack(self.manifest, torch.from_numpy(self.buffer)):
            parts[part_of(name)].add(name, tensor)
        return checksums(parts)

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
    return "draft" if name.startswith(_DRAFT_PREFIXES) else "policy"


def description(entries: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> dict[str, list[Any]]:
    """Names, types and shapes, as vLLM's update infos spell them."""
    return {
        "names": [name for name, _, _ in entries],
        "dtype_names": [str(dtype).removeprefix("torch.") for _, dtype, _ in entries],
        "shapes": [list(shape) for _, _, shape in entries],
    }


def nccl_init_info(*, master_addr: str, master_port: int, num_engines: int, index: int) -> dict[str, Any]:
    """What engine `index` is told for meeting the learner's `NcclPublisher`."""
    return {
        "master_address": master_addr,
        "master_port": master_port,
        "rank_offset": 1 + index,
        "world_size": 1 + num_engines,
        "packed": True,
        "packed_buffer_size_bytes": BROADCAST_BYTES,
        "packed_num_buffers": BROADCAST_BUFFERS,
    }


def cut(items: Iterable[_T], num_bytes: Callable[[_T], int], limit: int) -> Iterator[tuple[list[_T], int]]:
    """Consecutive items together, each time until they exceed `limit` bytes, and how many they are.

    So vLLM cuts a packed broadcast at both ends.
    """
    bucket: list[_T] = []
    size = 0
    for item in items:
        bucket.append(item)
        size += num_bytes(item)
        if size > limit:
            yield bucket, size
            bucket, size = [], 0
    if bucket:
        yield bucket, size


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


class Fingerprint:
    """A checksum over named tensors, summed up where they lie, one after another: requests or the learner wait.

    A tensor's digest is the sum of its words, each times an odd number that grows with its place, modulo 2**64. It
    tells every changed word, and any two that changed places; names and order then tell every missing or stale tensor.
    Twice over a tensor's rows and columns instead of once over weighted words, because that needs no memory beside it.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[torch.Tensor] = []  # of rows, then of columns, of one tensor after the other
        self._factors: list[tuple[int, int]] = []  # (a, b): entry i of those sums counts a * i + b times

    def add(self, name: str, tensor: torch.Tensor, *, start: int = 0) -> None:
        """`start`: the element at which the tensor of that name continues here; its parts may come in any order."""
        import torch

        width = max(1, tensor.shape[-1] if tensor.dim() else 1)
        words = tensor.detach().reshape(-1, width).contiguous()
        words = words.view({1: torch.uint8, 2: torch.int16}.get(words.element_size(), torch.int32))
        self._names.append(name)
        self._sums += [words.sum(1, dtype=torch.int64), words.sum(0, dtype=torch.int64)]
        self._factors += [(2 * words.shape[1], 2 * start * (words.shape[1] // width)), (2, 1)]

    def checksum(self) -> int:
        """CRC-32 over names and digests, in the order in which the names came first; 0 for none. Waits for the device.

        To be asked for once: the sums are let go.
        """
        result = 0
        for name, value in self._digests().items():
            result = zlib.crc32(f"{name}={value}\n".encode(), result)
        return result

    def _digests(self) -> dict[str, int]:
        import torch

        sums, self._sums = self._sums, []
        if not sums:
            return {}
        device = sums[0].device
        lengths = torch.tensor([len(each) for each in sums], device=device)
        places = torch.arange(max(map(len, sums)), device=device)
        factors = torch.tensor(self._factors, device=device).repeat_interleave(lengths, dim=0)
        weights = torch.cat([places[: len(each)] for each in sums]) * factors[:, 0] + factors[:, 1]
        # Sums of segments as differences of one running sum; whatever overflows does so on both sides alike.
        running = (torch.cat(sums) * weights).cumsum(0)
        ends = running[lengths.cumsum(0)[1::2] - 1]
        digests: dict[str, int] = {}
        for name, value in zip(self._names, ends.diff(prepend=ends.new_zeros(1)).tolist(), strict=True):
            digests[name] = (digests.get(name, 0) + value) % 2**64
        return digests


def fingerprints() -> dict[Part, Fingerprint]:
    """One for each part, empty."""
    return {part: Fingerprint() for part in PARTS}


def checksums(fingerprints: dict[Part, Fingerprint]) -> Checksums:
    """Of both parts."""
    return Checksums(fingerprints["policy"].checksum(), fingerprints["draft"].checksum())
