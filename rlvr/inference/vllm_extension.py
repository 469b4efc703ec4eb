"""What rlvr adds to a vLLM worker process. vLLM imports this module there, as the engine's `worker_extension_cls`.

Importing it registers the weight-transfer backends, makes drafts obey a request's seed, and cures two defects of vLLM's
CPU path. The backends are vLLM's own for NCCL and CUDA IPC and one through shared memory for the CPU; all three note
what they loaded, so that an update can be checked.

vLLM 0.32.0 on the CPU samples wrongly when it drafts: `cpu_triton_utils._expand_kernel_impl` fills an int64 *copy* of
its output and never copies back, so `expand_batch_to_tokens` returns uninitialised temperatures, top-p and top-k
(upstream issue 55005). And it dies where a prompt with a seed does not fit one step: it draws a token from every part
of the prompt, throws away all but the last, and rewinds the seed's generator by `set_offset`, which only GPU generators
have. `tests/integration/test_engine.py` holds the tests that fail without the cures.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.spec_decode import llm_base_proposer
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from rlvr.inference.engine import Transport, backend_name
from rlvr.inference.orphans import end_with_owner
from rlvr.weights import Entry, Part, checksum, digest, unpack

_BROKEN_ON_CPU = ("0.32.0",)


class _Recorder:
    """A model whose `load_weights` notes the digest of every tensor before it passes it on."""

    def __init__(self, model: Any, digests: list[tuple[str, torch.Tensor]]) -> None:
        self._model, self._digests = model, digests

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        loaded = list(weights)
        self._digests += [(name, digest(tensor)) for name, tensor in loaded]
        return self._model.load_weights(loaded)


class _Recording:
    """Mixed in before a weight-transfer engine: what the last update of each part brought."""

    model: Any
    _default_model: Any
    digests: dict[Part, list[tuple[str, torch.Tensor]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.digests = {"policy": [], "draft": []}

    def start_weight_update(self) -> None:
        part: Part = "policy" if self.model is self._default_model else "draft"
        self.digests[part] = []
        if part == "policy":  # with which an update begins
            self.digests["draft"] = []
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Recorder(model, self.digests["policy" if model is self._default_model else "draft"])
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model


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


class MemoryTransferEngine(_Recording, _MemoryTransferEngine):
    """Through the memory of this machine."""


class NcclTransferEngine(_Recording, NCCLWeightTransferEngine):
    """vLLM's own, between GPUs."""


class IpcTransferEngine(_Recording, IPCWeightTransferEngine):
    """vLLM's own, within a GPU."""


_BACKENDS: dict[Transport, type[WeightTransferEngine[Any, Any]]] = {
    "memory": MemoryTransferEngine,
    "nccl": NcclTransferEngine,
    "ipc": IpcTransferEngine,
}


class WorkerExtension:
    """Methods that vLLM mixes into its worker; `collective_rpc` reaches them by name."""

    def rlvr_checksums(self) -> tuple[int, int]:
        """Of policy and draft as the last update brought them to this process (`rlvr.weights.Checksums`)."""
        digests = self.weight_transfer_engine.digests  # type: ignore[attr-defined]
        return checksum(digests["policy"]), checksum(digests["draft"])

    def rlvr_process_id(self) -> int:
        """So that a test can kill the process that holds the model."""
        return os.getpid()


def _expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    lengths = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.as_tensor(replace_to, dtype=x.dtype), x)
    return replaced.repeat_interleave(lengths, output_size=num_tokens)


def _cure_cpu_sampling() -> None:
    original = rejection_sampler.apply_sampling_constraints

    def apply_sampling_constraints(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # A step in which no request drafted has no rows here, and top-k without top-p fails on that.
        return logits if logits.shape[0] == 0 else original(logits, *args, **kwargs)

    rejection_sampler.expand_batch_to_tokens = _expand_batch_to_tokens
    rejection_sampler.apply_sampling_constraints = apply_sampling_constraints


def _cure_cpu_rewinding() -> None:
    sample_tokens, bookkeeping = GPUModelRunner.sample_tokens, GPUModelRunner._bookkeeping_sync

    def of_unread_prompts(runner: Any) -> dict[int, torch.Generator]:
        """Generators by row, of requests whose prompt is not read to its end."""
        generators = runner.input_batch.generators
        unread = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0]
        return {int(row): generators[int(row)] for row in unread if int(row) in generators}

    def rewound(runner: Any, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in of_unread_prompts(runner).values()]
        output = sample_tokens(runner, *args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return output

    def without_offsets(runner: Any, *args: Any, **kwargs: Any) -> Any:
        hidden = of_unread_prompts(runner)
        for row in hidden:
            del runner.input_batch.generators[row]
        try:
            return bookkeeping(runner, *args, **kwargs)
        finally:
            runner.input_batch.generators.update(hidden)

    GPUModelRunner.sample_tokens, GPUModelRunner._bookkeeping_sync = rewound, without_offsets


def _seed_drafts() -> None:
    """Draw the drafts of a seeded request from its own generator; vLLM draws them from the process's.

    Without this a seed does not repeat a completion, since which drafts are proposed decides which random numbers the
    policy's tokens are drawn with.
    """
    original = llm_base_proposer.compute_probs_and_sample_next_token

    def seeded(logits: torch.Tensor, metadata: Any, use_fp64_gumbel: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, probs = original(logits, metadata, use_fp64_gumbel)
        if metadata.all_greedy or not metadata.generators or use_fp64_gumbel:
            return token_ids, probs
        for row, generator in metadata.generators.items():
            if metadata.temperature[row] > 0:
                noise = torch.empty_like(probs[row]).exponential_(generator=generator)
                token_ids[row] = (probs[row] / noise).argmax()
        return token_ids, probs

    llm_base_proposer.compute_probs_and_sample_next_token = seeded


end_with_owner()
_seed_drafts()
if current_platform.is_cpu() and vllm.__version__.split("+")[0] in _BROKEN_ON_CPU:
    _cure_cpu_sampling()
    _cure_cpu_rewinding()
for _transport, _backend in _BACKENDS.items():
    if backend_name(_transport) not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(backend_name(_transport), _backend)
