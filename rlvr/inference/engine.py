"""One inference engine: vLLM's `AsyncLLM`, drafting through the policy's own MTP layer.

A plain class; the controller makes it a Ray actor. Weights change *in flight*: running requests are paused and kept,
policy and draft are replaced, requests resume on the keys and values they have. New requests never meet keys of old
weights, because the version salts the prefix cache.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rlvr.errors import DeadlineExceeded, WeightSyncError
from rlvr.inference import orphans
from rlvr.types import Completion, FinishReason, SamplingParams, WeightSpan
from rlvr.weights import Checksums, PackedWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What engine `index` is built from. `dtype`, `enforce_eager` are resolved values, never "auto"."""

    index: int
    model_folder: str
    dtype: str
    enforce_eager: bool
    num_draft_tokens: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    kv_cache_bytes: int | None
    gpu_memory_utilization: float
    seed: int
    deadline_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What an engine says of an update: checksums from its worker process, and how long requests stood still."""

    version: int
    checksums: Checksums
    paused_seconds: float
    total_seconds: float


def environment_variables(*, num_threads: int, on_gpu: bool) -> dict[str, str]:
    """For the process that hosts an engine; they must be set before vLLM is imported."""
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        # libgomp spins at barriers, which on shared cores costs a factor of 10; Intel's OpenMP sleeps.
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(num_threads),
            "KMP_BLOCKTIME": "0",
        } | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})
    return variables


class Engine:
    """Samples completions and takes new weights while it does. Every method runs on one event loop."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.version = 0
        self._request_ids = itertools.count()
        self._update_lock = asyncio.Lock()
        self._llm: Any = None
        self._stop_ids: list[int] = []

    async def start(self, version: int = 0) -> None:
        """Load the model; `version` labels the weights it finds. Raises `DeadlineExceeded`."""
        # Here, not at the top: importing vLLM takes seconds, and only this process needs it.
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from rlvr.inference.vllm_extension import BACKEND, WorkerExtension

        settings = self.settings
        tokenizer = AutoTokenizer.from_pretrained(settings.model_folder)
        self._stop_ids = [tokenizer.eos_token_id]
        options: dict[str, Any] = {}
        if settings.num_draft_tokens:
            # Greedy drafts, the default, are rejected most of the time when the policy samples at temperature 1.
            options["speculative_config"] = {
                "method": "mtp",
                "num_speculative_tokens": settings.num_draft_tokens,
                "draft_sample_method": "probabilistic",
            }
        if settings.kv_cache_bytes is not None:
            options["kv_cache_memory_bytes"] = settings.kv_cache_bytes
        arguments = AsyncEngineArgs(
            model=settings.model_folder,
            dtype=settings.dtype,
            enforce_eager=settings.enforce_eager,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            seed=settings.seed,
            # Of the distribution drawn from, temperature included: what the importance weights need.
            logprobs_mode="processed_logprobs",
            worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
            weight_transfer_config={"backend": BACKEND},
            per_request_spec_decode_metrics="summary" if settings.num_draft_tokens else "none",
            disable_log_stats=True,
            **options,
        )
        orphans.claim()
        async with _deadline(settings.deadline_seconds, "vLLM to load the model"):
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
            await self._llm.init_weight_transfer_engine(_init_request())
            await self._label(version)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Continue `prompt_ids`. Raises vLLM's error when the engine is dead or the prompt too long."""
        output = await self._generate(
            prompt_ids,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed,
            stop_token_ids=[*self._stop_ids, *params.stop_token_ids],
            logprobs=0,
        )
        completion = output.outputs[0]
        token_ids = tuple(completion.token_ids)
        logprobs = tuple(
            float(position[token].logprob) for position, token in zip(completion.logprobs, token_ids, strict=True)
        )
        drafts = completion.spec_decode_metrics
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            loss_mask=(1,) * len(token_ids),
            finish_reason=cast("FinishReason", completion.finish_reason),
            weight_spans=tuple(
                WeightSpan(int(span.version), span.start, span.end) for span in completion.weight_versions or ()
            ),
            num_draft_tokens=drafts.num_draft_tokens if drafts else 0,
            num_accepted_tokens=(
                sum(accepted * count for accepted, count in enumerate(drafts.histogram)) if drafts else 0
            ),
        )

    async def update(self, weights: PackedWeights) -> UpdateReport:
        """Replace policy and draft while requests wait, then let them go on. Raises `WeightSyncError`.

        After an error the engine is half written and must not be used again.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm, seconds = self._llm, self.settings.deadline_seconds
        started = time.perf_counter()
        async with self._update_lock, _deadline(seconds, f"an engine to take version {weights.version}"):
            with _SharedMemory(weights) as path:
                info = {"path": path, "manifest": [list(entry) for entry in weights.manifest]}
                paused = time.perf_counter()
                await llm.pause_generation(mode="keep", clear_cache=False)
                try:
                    starts = [llm.start_weight_update]
                    if self.settings.num_draft_tokens:
                        starts.append(llm.start_draft_weight_update)
                    for start in starts:
                        await start()
                        await llm.update_weights(WeightTransferUpdateRequest(update_info=info))
                        await llm.finish_weight_update()
                    await self._label(weights.version)
                except Exception as error:
                    raise WeightSyncError(f"version {weights.version} was not taken: {error!r}") from error
                await llm.resume_generation()
                resumed = time.perf_counter()
            received = (await llm.collective_rpc("rlvr_checksums"))[0]
        return UpdateReport(
            version=weights.version,
            checksums=Checksums(*received),
            paused_seconds=resumed - paused,
            total_seconds=time.perf_counter() - started,
        )

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural-log probability of each token given those before it, from the second on: a sync is checked by it."""
        output = await self._generate(token_ids, max_tokens=1, temperature=1.0, prompt_logprobs=0)
        return [
            float(position[token].logprob)
            for position, token in zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        ]

    async def process_id(self) -> int:
        """Of the process that holds the model."""
        return cast("int", (await self._llm.collective_rpc("rlvr_process_id"))[0])

    async def stop(self) -> None:
        """End the model's process."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    async def _generate(self, prompt_ids: Sequence[int], **params: Any) -> Any:
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        request = VllmSamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **params)
        # The salt: with a kept cache, a new request would run on keys and values of the weights before.
        prompt = tokens_input(list(prompt_ids), cache_salt=f"version {self.version}")
        final = None
        async for output in self._llm.generate(prompt, request, f"request-{next(self._request_ids)}"):
            final = output
        if final is None:
            raise RuntimeError("vLLM ended a request without an output")
        return final

    async def _label(self, version: int) -> None:
        await self._llm.update_weight_version(str(version))
        self.version = version


def _init_request() -> Any:
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    return WeightTransferInitRequest(init_info={})


class _deadline:  # noqa: N801 - reads as a statement
    """`asyncio.timeout` whose error says what was waited for."""

    def __init__(self, seconds: float, waited_for: str) -> None:
        self._seconds, self._waited_for = seconds, waited_for
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *details: Any) -> None:
        try:
            await self._timeout.__aexit__(*details)
        except TimeoutError:
            raise DeadlineExceeded(self._waited_for, self._seconds) from None


class _SharedMemory:
    """Bytes in anonymous memory that another process of this machine opens by path. Freed when we die, however."""

    def __init__(self, weights: PackedWeights) -> None:
        self._weights = weights

    def __enter__(self) -> str:
        self._file = os.memfd_create("rlvr-weights")
        with open(self._file, "wb", closefd=False) as file:
            file.write(self._weights.buffer.data)
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
