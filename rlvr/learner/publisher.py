"""The learner's end of the weight sync: one class for each way that weights travel (`rlvr.weights`).

Every rank has one, and calls its methods in the same order: under ZeRO-3 what is sent must first be gathered, which all
ranks take part in. Version n is what the parameters hold when `offer` is called; `wait` returns once nothing reads them
any more, and the optimizer steps only then.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlvr.errors import DeadlineExceeded, WeightSyncError
from rlvr.weights import (
    BROADCAST_BUFFERS,
    BROADCAST_BYTES,
    BroadcastWeights,
    Checksums,
    DeviceWeights,
    Offer,
    PackedWeights,
    Part,
    Weights,
    checksums,
    cut,
    description,
    fingerprints,
    pack,
    part_of,
)

# What was being sent ends within this once its group is gone.
ABANDON_SECONDS = 30.0
_SECONDS_BETWEEN_LOOKS = 0.001

Stream = Callable[[], Iterator[tuple[str, Tensor]]]  # whole tensors, in place, one bucket at a time; a collective
NamedParameters = Sequence[tuple[str, nn.Parameter]]


class Publisher(ABC):
    """What a learner rank does for one version after another."""

    def __init__(self, parameters: NamedParameters, stream: Stream, *, rank: int) -> None:
        """`stream` yields `parameters` whole and in order, on every rank."""
        self.parameters = parameters
        self.stream = stream
        self.rank = rank

    def connect(self, *, master_addr: str, master_port: int, num_engines: int) -> None:  # noqa: B027 - most need not
        """Meet the engines, where they must be met; blocks until all are there."""

    def abandon(self) -> None:  # noqa: B027 - most have no group
        """Leave the engines: what is being sent to them ends, and they can be met anew. Called beside all else."""

    @abstractmethod
    def offer(self, version: int) -> Weights | None:
        """What the engines are told, on rank 0. A version may be offered and sent again while it is the parameters'."""

    @abstractmethod
    def send(self) -> Checksums | None:
        """Let the offered version go, and say on rank 0 what it was."""

    def wait(self, seconds: float) -> None:  # noqa: B027 - most have nothing under way
        """Until the parameters may change. Raises `DeadlineExceeded` and what broke the transfer."""


class MemoryPublisher(Publisher):
    """A copy in host memory."""

    _packed: PackedWeights | None = None

    def offer(self, version: int) -> PackedWeights | None:
        # On the other ranks the stream is run for its gathering alone.
        tensors = ((name, tensor) for name, tensor in self.stream())
        if self.rank == 0:
            self._packed = pack(version, tensors)
        else:
            for _ in tensors:
                pass
        return self._packed

    def send(self) -> Checksums | None:
        packed, self._packed = self._packed, None
        return packed.checksums() if packed else None


class IpcPublisher(Publisher):
    """A copy in the memory of each rank's own GPU, which the engine beside it reads through a CUDA IPC handle.

    The copy is what lets the next step go on while engines still load. Every version is written into the same buffers,
    under the same handles; the controller publishes one only when the one before is live.
    """

    _buffers: dict[Part, Tensor] | None = None
    _infos: Offer | None = None
    _checksums: Checksums | None = None

    def offer(self, version: int) -> DeviceWeights | None:
        if self._buffers is None:
            self._buffers = {part: self._new_buffer(entries) for part, entries in _by_part(self.parameters).items()}
        ends = dict.fromkeys(self._buffers, 0)
        sums = fingerprints()
        for name, tensor in self.stream():
            part = part_of(name)
            flat = _bytes(tensor)
            self._buffers[part][ends[part] : ends[part] + len(flat)].copy_(flat)
            ends[part] += len(flat)
            sums[part].add(name, tensor)
        self._checksums = checksums(sums)
        torch.cuda.synchronize()
        if self._infos is None:
            self._infos = self._exported(self._buffers)
        return DeviceWeights(version=version, infos=self._infos) if self.rank == 0 else None

    def send(self) -> Checksums | None:
        return self._checksums if self.rank == 0 else None

    def _exported(self, buffers: dict[Part, Tensor]) -> Offer:
        """What all engines are told: each finds the handle of its own GPU. A collective."""
        export: Any = import_module("torch.multiprocessing.reductions").reduce_tensor  # untyped
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        infos: Offer = {}
        for part, parameters in _by_part(self.parameters).items():
            handles: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(handles, {gpu: export(buffers[part])[1]})
            infos[part] = {
                **_described(parameters),
                "ipc_handles": {key: value for each in handles for key, value in each.items()},
                "tensor_sizes": [_num_bytes(parameter) for _, parameter in parameters],
            }
        return infos

    def _new_buffer(self, parameters: NamedParameters) -> Tensor:
        size = sum(_num_bytes(parameter) for _, parameter in parameters)
        return torch.empty(size, dtype=torch.uint8, device=parameters[0][1].device)


class NcclPublisher(Publisher):
    """Rank 0 broadcasts to all engines at once, out of the parameters themselves, bucket by bucket.

    `send` only queues what the GPU is to pack and send, on streams of its own, under the next step's forward and
    backward passes. No thread does it: it would wait for Python's lock while those passes are launched. Under ZeRO-3
    every rank queues, and each bucket is gathered before it is packed.
    """

    def __init__(self, parameters: NamedParameters, stream: Stream, *, rank: int, partitioned: bool) -> None:
        super().__init__(parameters, stream, rank=rank)
        self._partitioned = partitioned
        self._group: Any = None
        self._buffers: list[Tensor] = []
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None  # to pack, and to send
        self._sent: torch.cuda.Event | None = None

    def connect(self, *, master_addr: str, master_port: int, num_engines: int) -> None:
        if self.rank == 0:
            from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

            self._wait("the learner's sending to end with its group", ABANDON_SECONDS)
            self._group = stateless_init_process_group(
                master_addr, master_port, 0, 1 + num_engines, torch.cuda.current_device()
            )

    def abandon(self) -> None:
        # What is under way in the group, kernels included, ends with it, whoever waits for them.
        if self._group is not None:
            self._group.destroy()

    def offer(self, version: int) -> BroadcastWeights | None:
        infos: Offer = {part: _described(parameters) for part, parameters in _by_part(self.parameters).items()}
        return BroadcastWeights(version=version, infos=infos) if self.rank == 0 else None

    def send(self) -> Checksums | None:
        if self.rank > 0 and not self._partitioned:
            return None
        failure: Exception | None = None
        try:
            self._queue()
        except Exception as error:  # the other ranks gather to the end
            failure = error
        sums = fingerprints()
        for name, tensor in self.stream():  # while it is sent: the engines' requests wait for that, nobody for the sums
            sums[part_of(name)].add(name, tensor)
        if failure is not None:
            raise WeightSyncError(f"the learner could not send its weights: {failure!r}") from failure
        return checksums(sums) if self.rank == 0 else None

    def wait(self, seconds: float) -> None:
        self._wait("the engines to receive what the learner sends", seconds)

    def _wait(self, waited_for: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._sent is not None and not self._sent.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                raise DeadlineExceeded(waited_for, seconds)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._sent = None

    def _queue(self) -> None:
        # What the last step wrote must be there for streams that did not see it happen.
        torch.cuda.synchronize()
        if self._streams is None:
            # Before all else that the GPU has to do, or the engines' requests wait for it.
            self._streams = (torch.cuda.Stream(priority=-1), torch.cuda.Stream(priority=-1))  # type: ignore[no-untyped-call]
        packing, sending = self._streams
        left: list[torch.cuda.Event | None] = [None] * BROADCAST_BUFFERS  # when each buffer was last sent
        failure: Exception | None = None
        for number, (parameters, size) in enumerate(self._buckets()):
            slot = number % BROADCAST_BUFFERS
            if (sent := left[slot]) is not None:
                packing.wait_event(sent)
            with torch.cuda.stream(packing):
                pieces = self._pieces(parameters)
                if self.rank == 0:
                    torch.cat(pieces, out=self._buffers[slot][:size])
            packed = self._sent = packing.record_event()
            if self.rank > 0 or failure is not None:
                continue
            try:
                sending.wait_event(packed)
                self._group.broadcast(self._buffers[slot][:size], src=0, stream=sending)
                left[slot] = self._sent = sending.record_event()
            except Exception as error:  # the other ranks gather to the end
                failure = error
        if failure is not None:
            raise failure

    def _buckets(self) -> list[tuple[list[nn.Parameter], int]]:
        """What is sent together, and its bytes; an engine cuts by its own list, so policy and draft never share one."""
        found: list[tuple[list[nn.Parameter], int]] = []
        for parameters in _by_part(self.parameters).values():
            found += cut((parameter for _, parameter in parameters), _num_bytes, BROADCAST_BYTES)
        if not self._buffers and self.rank == 0:
            largest, device = max(size for _, size in found), self.parameters[0][1].device
            self._buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(BROADCAST_BUFFERS)]
        return found

    def _pieces(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The bytes of whole parameters, in pieces that follow each other; under ZeRO-3 a collective.

        DeepSpeed's own gathering takes Python a tenth of a millisecond a parameter, while requests stand still.
        """
        if not self._partitioned:
            return [_bytes(parameter) for parameter in parameters]
        shares = [_bytes(parameter.ds_tensor) for parameter in parameters]  # type: ignore[attr-defined]
        mine, num_ranks = torch.cat(shares), dist.get_world_size()
        gathered = mine
        if num_ranks > 1:
            gathered = torch.empty(num_ranks * len(mine), dtype=torch.uint8, device=mine.device)
            dist.all_gather_into_tensor(gathered, mine)
        of_ranks = gathered.view(num_ranks, -1)
        pieces: list[Tensor] = []
        start = 0
        for parameter, share in zip(parameters, shares, strict=True):
            left = _num_bytes(parameter)  # all shares are equally long, so the last ones may end with padding
            for of_rank in of_ranks:
                pieces.append(of_rank[start : start + min(len(share), left)])
                left -= len(pieces[-1])
            start += len(share)
        return pieces


def _by_part(parameters: NamedParameters) -> dict[Part, NamedParameters]:
    parts: dict[Part, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        parts.setdefault(part_of(name), []).append((name, parameter))
    return dict(parts)


def _described(parameters: NamedParameters) -> dict[str, list[Any]]:
    return description([(name, parameter.dtype, _shape(parameter)) for name, parameter in parameters])


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole one, also where ZeRO-3 holds a share."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _num_bytes(parameter: nn.Parameter) -> int:
    return torch.Size(_shape(parameter)).numel() * parameter.element_size()
