"""One inference engine: vLLM's `AsyncLLM`, drafting through the policy's own MTP layer.

A plain class; the controller makes it a Ray actor. Weights change *in flight*: running requests are paused and kept,
policy and draft are replaced, requests resume on the keys and values they have. New requests never meet keys of old
weights, because the version salts the prefix cache.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from rlvr.errors import DeadlineExceeded, EngineLost, RlvrError, WeightSyncError
from rlvr.inference import orphans
from rlvr.inference.cuda_graphs import capture_sizes
from rlvr.inference.depth_by_load import DepthByLoad
from rlvr.inference.draft_schedule import DraftSchedule, every_depth
from rlvr.types import Completion, FinishReason, SamplingParams, WeightSpan
from rlvr.weights import PARTS, Checksums, Part, Weights

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_QUESTIONS = 0.005

Transport = Literal["memory", "ipc", "nccl"]


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
    draft_schedule: DraftSchedule | Literal["auto"] = ()
    transport: Transport = "memory"
    offload: bool = False  # what `fall_asleep` means
    cuda_graph_tokens: int | None = None  # as `capture_sizes` takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What an engine says of an update: checksums from its worker process, and how long requests stood still."""

    version: int
    checksums: Checksums
    paused_seconds: float
    total_seconds: float
    phases: dict[str, float]  # seconds, by what was waited for
    loading: dict[Part, str]  # "in place", or "reload: " and why
    draft_depths: dict[int, int] = field(default_factory=dict)  # by running requests, where they are measured


def backend_name(transport: Transport) -> str:
    """Under which `rlvr.inference.vllm_extension` registers it with vLLM, whose own names are taken."""
    return f"rlvr_{transport}"


def environment_variables(*, num_threads: int, on_gpu: bool) -> dict[str, str]:
    """For the process that hosts an engine; they must be set before vLLM is imported."""
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if on_gpu:
        # CUDA IPC handles are Python objects, which travel to vLLM's worker by pickle. Nobody else talks to it.
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        # vLLM forks unless it sees that CUDA is in use, and does not see it where C++ alone has begun to use it.
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    else:
        # libgomp spins at barriers, which on shared cores costs a factor of 10; Intel's OpenMP sleeps. Told
        # nothing of binding, it holds a forked process to the first core: vLLM's worker, whatever number of threads.
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(num_threads),
            "OMP_PROC_BIND": "false",
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
        self._phases: dict[str, float] = {}
        self._draft_steps: Counter[tuple[int, int]] = Counter()  # by tokens drafted, and how many were accepted
        self.depth_by_load: DepthByLoad | None = None

    async def start(self, version: int = 0) -> None:
        """Load the model, and measure the draft schedule where it is "auto"; `version` labels the weights it finds.

        Raises `DeadlineExceeded`.
        """
        # Here, not at the top: importing vLLM takes seconds, and only this process needs it.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from rlvr.inference.vllm_extension import WorkerExtension
        from rlvr.tokenizer import load_tokenizer

        settings = self.settings
        tokenizer = load_tokenizer(settings.model_folder)
        self._stop_ids = [tokenizer.eos_token_id]
        options: dict[str, Any] = {}
        if settings.num_draft_tokens:
            options["speculative_config"] = self.speculation()
        if settings.draft_schedule == "auto":
            options["scheduler_cls"] = "rlvr.inference.vllm_scheduler.make"
        if current_platform.is_cpu():
            options["distributed_executor_backend"] = "rlvr.inference.vllm_executor.ForkingExecutor"
        if settings.kv_cache_bytes is not None:
            options["kv_cache_memory_bytes"] = settings.kv_cache_bytes
        if not settings.enforce_eager:
            options["cudagraph_capture_sizes"] = capture_sizes(
                max_num_seqs=settings.max_num_seqs,
                num_draft_tokens=settings.num_draft_tokens,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                most=settings.cuda_graph_tokens,
            )
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
            weight_transfer_config={"backend": backend_name(settings.transport)},
            per_request_spec_decode_metrics="detailed" if settings.num_draft_tokens else "none",
            disable_log_stats=True,
            enable_sleep_mode=settings.offload,
            **options,
        )
        orphans.claim()
        async with _deadline(settings.deadline_seconds, "vLLM to load the model"):
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
            await self._label(version)
        if settings.transport != "nccl":  # which needs the learner at the other end
            await self.connect({"packed": True} if settings.transport == "ipc" else {})
        if settings.draft_schedule == "auto":
            self.depth_by_load = DepthByLoad(
                self._llm,
                num_draft_tokens=settings.num_draft_tokens,
                max_num_seqs=settings.max_num_seqs,
                max_model_len=settings.max_model_len,
            )
            async with _deadline(settings.deadline_seconds, f"engine {settings.index} to time its steps"):
                await self.depth_by_load.measure(self._generate)

    def speculation(self) -> dict[str, Any]:
        """vLLM's `speculative_config`."""
        settings = self.settings
        speculation: dict[str, Any] = {
            "method": "mtp",
            "num_speculative_tokens": settings.num_draft_tokens,
            # Greedy drafts, the default, are rejected most of the time when the policy samples at temperature 1.
            "draft_sample_method": "probabilistic",
        }
        schedule = settings.draft_schedule
        if schedule == "auto":
            schedule = every_depth(settings.num_draft_tokens, settings.max_num_seqs)
        if schedule:
            speculation["num_speculative_tokens_per_batch_size"] = [list(entry) for entry in schedule]
        return speculation

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Open the engine's end of the weight transfer; `init_info` is that of vLLM's backend."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with _deadline(self.settings.deadline_seconds, "an engine to open its weight transfer"):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Continue `prompt_ids`. Raises `EngineLost` when vLLM is dead, and its own error for too long a prompt."""
        output = await self._generate(
            prompt_ids,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed,
            stop_token_ids=[*self._stop_ids, *params.stop_token_ids],
            logprobs=0,
            flat_logprobs=True,  # lists of numbers, not an object for every token
        )
        completion = output.outputs[0]
        token_ids = tuple(completion.token_ids)
        logprobs = tuple(map(float, completion.logprobs.logprobs))  # only of the tokens drawn
        drafts = completion.spec_decode_metrics
        draft_steps = list(zip(drafts.per_step_drafted, drafts.per_step_accepted, strict=True)) if drafts else []
        self._draft_steps.update(draft_steps)
        if self.depth_by_load is not None:
            self.depth_by_load.count(draft_steps)
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            loss_mask=(1,) * len(token_ids),
            finish_reason=cast("FinishReason", completion.finish_reason),
            weight_spans=tuple(
                WeightSpan(int(span.version), span.start, span.end) for span in completion.weight_versions or ()
            ),
            num_draft_tokens=sum(drafted for drafted, _ in draft_steps),
            num_accepted_tokens=sum(accepted for _, accepted in draft_steps),
        )

    def acceptance_by_position(self) -> tuple[float, ...]:
        """Of all first drafts the share accepted, of all second ones, ...; since the last call, or the start."""
        counts, self._draft_steps = self._draft_steps, Counter()
        shares = []
        for position in range(self.settings.num_draft_tokens):
            drafts = sum(count for (drafted, _), count in counts.items() if drafted > position)
            accepted = sum(count for (_, accepted), count in counts.items() if accepted > position)
            shares.append(accepted / max(1, drafts))
        return tuple(shares)

    async def update(self, weights: Weights) -> UpdateReport:
        """Replace policy and draft while requests wait, then let them go on.

        What failed half-way is taken again from its beginning, once, where it can be had again. Raises
        `WeightSyncError`, `EngineLost`, and `DeadlineExceeded` for each phase; the engine is then half written, samples
        no more, and must be replaced (`rlvr.fleet`).
        """
        started = time.perf_counter()
        async with self._update_lock:
            self._phases = {}
            paused = time.perf_counter()
            # `pause_generation` is the same, and then sleeps 20 ms while every request waits.
            pausing = self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
            await self._phase("to pause", pausing)
            try:
                loading = await self._receive(weights)
            except WeightSyncError as error:
                if not weights.repeatable:
                    raise
                logger.warning("engine %d takes version %d again: %s", self.settings.index, weights.version, error)
                loading = await self._receive(weights)
            await self._label(weights.version)
            await self._phase("to resume", self._llm.resume_generation())
            resumed = time.perf_counter()
            received = await self._phase("to sum what it loaded", self._checksums())
            if self.depth_by_load is not None:
                await self._phase("to choose its draft depths", self.depth_by_load.choose())
        return UpdateReport(
            version=weights.version,
            checksums=received,
            paused_seconds=resumed - paused,
            total_seconds=time.perf_counter() - started,
            phases=self._phases,
            loading=loading,
            draft_depths=dict(self.depth_by_load.depths) if self.depth_by_load is not None else {},
        )

    async def _receive(self, weights: Weights) -> dict[Part, str]:
        parts = PARTS if self.settings.num_draft_tokens else PARTS[:1]
        with weights.offer() as offer:
            taken = {part: offer[part] for part in parts}
            try:
                update = self._llm.collective_rpc("rlvr_update", args=(taken,))
                ((seconds, loading),) = await self._phase("to take the weights", update)
            except RlvrError:
                raise
            except Exception as error:
                raise WeightSyncError(f"version {weights.version} was not taken: {error!r}") from error
        self._phases |= seconds
        return cast("dict[Part, str]", loading)

    async def _checksums(self) -> Checksums:
        while True:
            (found,) = await self._llm.collective_rpc("rlvr_checksums")
            if found is not None:
                return Checksums(*found)
            await asyncio.sleep(_SECONDS_BETWEEN_QUESTIONS)

    async def _phase(self, waited_for: str, work: Coroutine[Any, Any, Any]) -> Any:
        started = time.perf_counter()
        name = f"engine {self.settings.index}"
        asked = asyncio.ensure_future(work)
        try:
            async with _deadline(self.settings.deadline_seconds, f"{name} {waited_for}"):
                # vLLM never answers what was asked of a process that dies over it.
                while not (await asyncio.wait([asked], timeout=_SECONDS_BETWEEN_LOOKS))[0]:
                    if self._llm.errored:
                        raise EngineLost(name, f"vLLM's process ended while the run waited for it {waited_for}")
        finally:
            asked.cancel()
        self._phases[waited_for] = time.perf_counter() - started
        return asked.result()

    async def fall_asleep(self) -> None:
        """Sample nothing until `wake_up`: what is asked and what is under way waits.

        With `offload` the weights move to host memory meanwhile and the cache is dropped, so that requests under way
        are read again when they go on. Raises as `update`.
        """
        async with self._update_lock:
            await self._phase("to fall asleep", self._llm.sleep(level=int(self.settings.offload), mode="keep"))

    async def wake_up(self) -> None:
        """Go on. Raises as `update`."""
        async with self._update_lock:
            # Without a tag it asks for memory back, which a pause has not given away.
            await self._phase("to wake up", self._llm.wake_up(None if self.settings.offload else ["scheduling"]))

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
        from vllm.v1.engine.exceptions import EngineDeadError

        request = VllmSamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **params)
        # The salt: with a kept cache, a new request would run on keys and values of the weights before.
        prompt = tokens_input(list(prompt_ids), cache_salt=f"version {self.version}")
        final = None
        try:
            async for output in self._llm.generate(prompt, request, f"request-{next(self._request_ids)}"):
                final = output
        except EngineDeadError as error:
            raise EngineLost(f"engine {self.settings.index}", str(error)) from error
        if final is None:
            raise RuntimeError("vLLM ended a request without an output")
        return final

    async def _label(self, version: int) -> None:
        await self._llm.update_weight_version(str(version))
        self.version = version


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
