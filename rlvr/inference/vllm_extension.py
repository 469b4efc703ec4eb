"""What rlvr adds to a vLLM worker process. vLLM imports this module there, as the engine's `worker_extension_cls`.

Importing it registers the weight-transfer backends and cures what is wrong in vLLM's own code (`vllm_cures`). The
backends are vLLM's own for NCCL and CUDA IPC and one through shared memory for the CPU; all three copy in place where
they can (`rlvr.inference.in_place`), and sum what they loaded, so that an update can be checked.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlvr.inference import vllm_cures
from rlvr.inference.engine import Transport, backend_name
from rlvr.inference.in_place import Incoming, NotInPlace, PackedLoad, Plan
from rlvr.inference.orphans import end_with_owner
from rlvr.weights import PARTS, Checksums, Entry, Fingerprint, Part, checksums, cut, unpack

_SUMMER = ThreadPoolExecutor(1, "rlvr-sums")
_SECONDS_TO_SUM = 0.001  # for which a step may as well wait


class _Receiver:
    """Stands in for the model while a backend receives: each bucket goes to `load`, and is remembered by name."""

    def __init__(self, load: Callable[[list[tuple[str, torch.Tensor]]], Any]) -> None:
        self._load = load
        self.received: list[Incoming] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        loaded = list(weights)
        self.received += [Incoming(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in loaded]
        return self._load(loaded)


class _Expected(NamedTuple):
    """What an update brings, as it was described, and how a plan loads it."""

    plan: Plan
    described: tuple[Any, ...]
    incoming: list[Incoming]
    loads: list[PackedLoad]


class _InPlace:
    """Mixed in before a weight-transfer engine: loads without vLLM's reload where that can be, and sums what it loaded.

    The first update of each part is vLLM's own from start to finish. From it a `Plan` is made, or the reason against
    one is remembered; with a plan nothing is initialised or finalised, and each bucket is copied where it belongs.
    """

    model: Any
    model_config: Any
    _default_model: Any
    device: torch.device
    _sum_stream: torch.cuda.Stream | None = None
    _summing: Future[Checksums] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plans: dict[Part, Plan | NotInPlace] = {}
        self._receiver = _Receiver(lambda _: None)
        self._sums: dict[Part, Callable[[], Fingerprint]] = {}
        self._expected: dict[Part, _Expected] = {}

    @property
    def part(self) -> Part:
        """Which model the update under way is for."""
        return "policy" if self.model is self._default_model else "draft"

    def how_loaded(self, part: Part) -> str:
        """How the next update of a part will be loaded, in words."""
        plan = self._plans.get(part)
        return "in place" if isinstance(plan, Plan) else f"reload: {plan or 'the first update'}"

    def checksums(self) -> Checksums:
        """Of both parts as the last update brought them; of live parameters where it wrote those itself."""
        with self._beside_steps():
            sums = {part: self._sums[part]() if part in self._sums else Fingerprint() for part in PARTS}
            self._sums = {}
            return checksums(sums)

    def summed(self) -> Checksums | None:
        """`checksums`, by a thread that the first call starts; None until it is done. No step begins during a call."""
        if self._summing is None:
            self._summing = _SUMMER.submit(self.checksums)
        if not wait([self._summing], _SECONDS_TO_SUM).done:
            return None
        summing, self._summing = self._summing, None
        return summing.result()

    def _beside_steps(self) -> AbstractContextManager[Any]:
        """On a GPU a stream of its own, which steps do not wait for."""
        if self.device.type != "cuda":
            return nullcontext()
        if self._sum_stream is None:
            self._sum_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._sum_stream)

    def start_weight_update(self) -> None:
        if self.part == "policy":  # with which an update begins
            self._sums = {}
        plan = self._plan
        if plan is not None and not plan.holds():
            del self._plans[self.part]
        model, found = self.model, Fingerprint()

        def reload(weights: list[tuple[str, torch.Tensor]]) -> Any:
            for name, tensor in weights:
                found.add(name, tensor)
            return model.load_weights(weights)

        plan = self._plan
        self._receiver = _Receiver(reload if plan is None else plan.load)
        if plan is None:
            self._sums[self.part] = lambda: found
            super().start_weight_update()  # type: ignore[misc]

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self._plan is None:
            super().update_weights(update_info)  # type: ignore[misc]
        else:  # without waiting for the GPU: that is done once, when both parts are queued
            self.receive_weights(self.parse_update_info(update_info))  # type: ignore[attr-defined]

    def receive_weights(self, update_info: Any) -> None:
        if (plan := self._plan) is None:
            self._receive_by_backend(update_info)
        else:
            self.receive_in_place(plan, update_info)

    def receive_in_place(self, plan: Plan, update_info: Any) -> None:
        """Receive and load by the plan, or have it queued on the GPU; here by the loop that the backend has."""
        self._receive_by_backend(update_info)

    def _receive_by_backend(self, update_info: Any) -> None:
        model, self.model = self.model, self._receiver
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def expected(self, plan: Plan, update_info: Any, limit: int = sys.maxsize) -> list[PackedLoad]:
        """For a backend that receives by itself: what comes, in buckets of more than `limit` bytes.

        From here on it counts as received. It is the same from version to version, and found once.
        """
        described = (update_info.names, update_info.dtype_names, update_info.shapes, limit)
        found = self._expected.get(self.part)
        if found is None or found.plan is not plan or found.described != described:
            rows = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
            incoming = [Incoming(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]
            loads = [plan.packed(bucket) for bucket, _ in cut(incoming, lambda each: each.num_bytes, limit)]
            found = self._expected[self.part] = _Expected(plan, described, incoming, loads)
        self._receiver.received += found.incoming
        return found.loads

    def finish_weight_update(self) -> None:
        part, plan, received = self.part, self._plan, self._receiver.received
        if plan is not None:
            names = [incoming.name for incoming in received]
            plan.check_complete(names)
            self._sums[part] = lambda: plan.fingerprint(names)
            return
        super().finish_weight_update()  # type: ignore[misc]
        if part not in self._plans:
            try:
                self._plans[part] = Plan.of(self.model, self.model_config, received)
            except NotInPlace as reason:
                self._plans[part] = reason

    @property
    def _plan(self) -> Plan | None:
        plan = self._plans.get(self.part)
        return plan if isinstance(plan, Plan) else None


@dataclass
class MemoryUpdateInfo(WeightTransferUpdateInfo):
    """A shared-memory file of another process of this machine, and what lies in it (`rlvr.weights.Entry` fields)."""

    path: str
    manifest: list[list[Any]]


class _MemoryTransferEngine(WeightTransferEngine[WeightTransferInitInfo, MemoryUpdateInfo]):
    """Loads packed weights out of shared memory into whichever model the session targets, policy or draft."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = MemoryUpdateInfo

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing to shake hands about: the memory is named in every update."""

    def start_weight_update(self) -> None:
        # Plain `load_weights` fails on the CPU, where linear weights are packed and emptied after the first load.
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: MemoryUpdateInfo) -> None:
        manifest = [
            Entry(name, dtype, tuple(shape), offset, size) for name, dtype, shape, offset, size in update_info.manifest
        ]
        with Path(update_info.path).open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with disable_mtp_completeness_check():
            self.model.load_weights(unpack(manifest, torch.frombuffer(memory, dtype=torch.uint8)))

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class MemoryTransferEngine(_InPlace, _MemoryTransferEngine):
    """Through the memory of this machine."""


class NcclTransferEngine(_InPlace, NCCLWeightTransferEngine):
    """vLLM's own, between GPUs. It can meet the learner again, in another group than before.

    In place it receives by itself: vLLM's loop waits for each buffer on the host and makes views of every tensor in it,
    while requests stand still. Here the GPU is told once when to receive and when to copy what.
    """

    _buffers: list[torch.Tensor] | None = None
    _streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None  # to receive, and to copy

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self.shutdown()
        super().init_transfer_engine(init_info)

    def receive_in_place(self, plan: Plan, update_info: Any) -> None:
        loads = self.expected(plan, update_info, self.packed_buffer_size_bytes)
        if self._streams is None:
            self._streams = (torch.cuda.Stream(), torch.cuda.Stream())  # type: ignore[no-untyped-call]
        receiving, copying = self._streams
        buffers = self._buffers_for(max(load.num_bytes for load in loads))
        copying.wait_stream(torch.cuda.current_stream())  # on which the model may still be read
        copied: list[torch.cuda.Event | None] = [None] * len(buffers)  # when each buffer was last read
        for number, load in enumerate(loads):
            slot = number % len(buffers)
            packed = buffers[slot][: load.num_bytes]
            if (free := copied[slot]) is not None:
                receiving.wait_event(free)
            self.model_update_group.broadcast(packed, src=0, stream=receiving)
            copying.wait_event(receiving.record_event())
            with torch.cuda.stream(copying):
                load(packed)
            copied[slot] = copying.record_event()
        copying.synchronize()

    def _buffers_for(self, num_bytes: int) -> list[torch.Tensor]:
        """As many as the transfer has, of at least that size each; kept for the next update."""
        if self._buffers is None or len(self._buffers[0]) < num_bytes:
            self._buffers = None
            self._buffers = [
                torch.empty(num_bytes, dtype=torch.uint8, device=self.device) for _ in range(self.packed_num_buffers)
            ]
        return self._buffers


class IpcTransferEngine(_InPlace, IPCWeightTransferEngine):
    """vLLM's own, within a GPU. In place it copies out of the learner's memory, without a copy in between.

    That memory stays where it is from version to version, and is mapped once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mapped: dict[Part, tuple[tuple[Any, ...], torch.Tensor]] = {}

    def receive_in_place(self, plan: Plan, update_info: Any) -> None:
        (load,) = self.expected(plan, update_info)
        handle = tuple(update_info.ipc_handles[str(torch.cuda.get_device_properties(self.device.index).uuid)])
        known, packed = self._mapped.get(self.part, (None, None))
        if packed is None or known != handle:
            here = (*handle[:6], self.device.index, *handle[7:])  # the device as this process counts it
            packed = rebuild_cuda_tensor(*here)  # type: ignore[no-untyped-call]
            self._mapped[self.part] = (handle, packed)
        load(packed[: load.num_bytes])

    def shutdown(self) -> None:
        self._mapped.clear()
        super().shutdown()


_BACKENDS: dict[Transport, type[WeightTransferEngine[Any, Any]]] = {
    "memory": MemoryTransferEngine,
    "nccl": NcclTransferEngine,
    "ipc": IpcTransferEngine,
}


class WorkerExtension:
    """Methods that vLLM mixes into its worker; `collective_rpc` reaches them by name."""

    def rlvr_update(self, offer: dict[Part, dict[str, Any]]) -> tuple[dict[str, float], dict[Part, str]]:
        """Start, update and finish, for each part of `offer`: seconds by step, and how each part was loaded.

        These are the steps of vLLM's own API, taken by the methods that it calls for them. They are one call here
        because requests stand still: one by one, each goes through the engine's queue and back.
        """
        seconds: dict[str, float] = {}
        loading: dict[Part, str] = {}
        worker: Any = self
        for part, update_info in offer.items():
            loading[part] = worker.weight_transfer_engine.how_loaded(part)
            steps = {
                "prepare": worker.start_weight_update if part == "policy" else worker.start_draft_weight_update,
                "load": partial(worker.update_weights, update_info),
                "finish": worker.finish_weight_update,
            }
            for name, step in steps.items():
                started = time.perf_counter()
                try:
                    step()
                except Exception as error:
                    raise RuntimeError(f"could not {name} its {part}: {error!r}") from error
                seconds[f"to {name} its {part}"] = time.perf_counter() - started
        started = time.perf_counter()
        torch.accelerator.synchronize()
        seconds["to load its last bytes"] = time.perf_counter() - started
        return seconds, loading

    def rlvr_checksums(self) -> Checksums | None:
        """Of policy and draft as the last update brought them to this process; None while they are being summed."""
        worker: Any = self
        engine: _InPlace = worker.weight_transfer_engine
        return engine.summed()

    def rlvr_process_id(self) -> int:
        """So that a test can kill the process that holds the model."""
        return os.getpid()


end_with_owner()
vllm_cures.apply()
for _transport, _backend in _BACKENDS.items():
    if backend_name(_transport) not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(backend_name(_transport), _backend)
