"""The parts as Ray actors: where each runs, on what resources, and how its failures reach the controller.

Every actor is a plain class made remote here, and every wait for one goes through `ask`: it has a deadline that says
what it waited for, and a dead actor becomes `ComponentDied` with the actor's own traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rlvr.config import RunConfig
from rlvr.errors import ComponentDied, DeadlineExceeded, EngineLost, RlvrError
from rlvr.inference.engine import Engine, EngineSettings, UpdateReport, environment_variables
from rlvr.inference.router import Router
from rlvr.placement import Placement
from rlvr.rollout.worker import Order, RolloutWorker
from rlvr.types import Completion, Group, MicroBatch, SamplingParams
from rlvr.weights import Checksums, nccl_init_info

# Requests wait inside the actors; only their number is bounded here, and far above what slots allow.
_MAX_CONCURRENCY = 10_000
# The learner's other methods run one at a time, in the order in which they were called.
_BESIDE = "beside"


async def ask(component: str, waited_for: str, reference: Any, seconds: float) -> Any:
    """The value of a Ray reference. Raises `DeadlineExceeded`, `ComponentDied`, or the rlvr error that was raised."""
    try:
        async with asyncio.timeout(seconds):
            return await reference
    except TimeoutError:
        hint = "run.deadline_seconds sets the limit"
        if waited_for in ("to start", "to be placed"):
            hint += "; `ray status` shows whether the cluster has free resources for it"
        raise DeadlineExceeded(f"{component} {waited_for}", seconds, hint) from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RlvrError):
            raise cause from error
        raise ComponentDied(component, str(error)) from error
    except RayActorError as error:
        raise ComponentDied(component, str(error)) from error


class EngineHandle:
    """One engine in its actor."""

    def __init__(
        self,
        index: int,
        config: RunConfig,
        model_folder: str,
        placement: Placement,
        engine_class: type[Engine] = Engine,
    ) -> None:
        self.name = f"engine {index}"
        self._seconds = config.run.deadline_seconds
        inference = config.inference
        on_gpu = inference.gpus_per_engine > 0
        self._settings = EngineSettings(
            index=index,
            model_folder=model_folder,
            dtype=("bfloat16" if on_gpu else "float32") if inference.dtype == "auto" else inference.dtype,
            enforce_eager=not on_gpu if inference.enforce_eager == "auto" else inference.enforce_eager,
            num_draft_tokens=inference.num_draft_tokens,
            draft_schedule=inference.draft_schedule,
            transport=config.transport,
            offload=inference.sleep == "offload",
            cuda_graph_tokens=inference.cuda_graph_tokens,
            max_num_seqs=inference.max_num_seqs,
            max_model_len=inference.max_model_len,
            max_num_batched_tokens=inference.max_num_batched_tokens,
            kv_cache_bytes=inference.kv_cache_bytes or (None if on_gpu else 2**30),
            gpu_memory_utilization=config.gpu_memory_utilization,
            seed=config.run.seed,
            deadline_seconds=self._seconds,
        )
        self._remote = ray.remote(engine_class).options(
            num_cpus=inference.cpus_per_engine,
            num_gpus=inference.gpus_per_engine,
            **placement.options(index),
            max_concurrency=_MAX_CONCURRENCY,
            runtime_env={"env_vars": environment_variables(num_threads=inference.num_threads, on_gpu=on_gpu)},
        )
        self.actor = self._remote.remote(self._settings)
        self._folder_version = 0
        self._to_publish: Any = None

    async def start(self, version: int) -> None:
        """Load the model; `version` is that of its folder."""
        self._folder_version = version
        await ask(self.name, "to start", self.actor.start.remote(version), self._seconds)

    async def restart(self) -> None:
        """End the engine, whatever state it is in, and start another in its place, with the weights of its folder."""
        # By force: its loop may wait for a transfer that never ends. vLLM's processes end with it (`orphans`).
        ray.kill(self.actor)
        self.actor = self._remote.remote(self._settings)
        await self.start(self._folder_version)

    async def connect(self, init_info: dict[str, Any]) -> None:
        """As `Engine.connect`."""
        await ask(self.name, "to meet the learner", self.actor.connect.remote(init_info), self._seconds)

    def to_publish(self, weights: Any) -> None:
        """A reference to the `Weights` that the next `update` takes."""
        self._to_publish = weights

    async def update(self) -> UpdateReport:
        """As `rlvr.weight_sync.SyncTarget`."""
        report: UpdateReport = await ask(
            self.name, "to take new weights", self.actor.update.remote(self._to_publish), self._seconds
        )
        return report

    async def fall_asleep(self) -> None:
        """As `Engine.fall_asleep`."""
        await ask(self.name, "to fall asleep", self.actor.fall_asleep.remote(), self._seconds)

    async def wake_up(self) -> None:
        """As `Engine.wake_up`."""
        await ask(self.name, "to wake up", self.actor.wake_up.remote(), self._seconds)

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """As `rlvr.weight_sync.SyncTarget`."""
        values: list[float] = await ask(
            self.name, "to score the probe", self.actor.logprobs.remote(token_ids), self._seconds
        )
        return values

    async def stop(self) -> None:
        """End the engine's processes, kindly and then by force."""
        with contextlib.suppress(Exception):
            await ask(self.name, "to stop", self.actor.stop.remote(), 10)
        ray.kill(self.actor)


class _WorkerActor:
    """A rollout worker and its router, made inside the actor, where the tokenizer is loaded."""

    def __init__(
        self,
        *,
        environments: Sequence[tuple[str, dict[str, Any]]],
        model_folder: str,
        engines: list[Any],
        max_model_len: int,
    ) -> None:
        from rlvr.tokenizer import load_tokenizer

        self._engines = engines

        def call(index: int) -> Any:
            async def sample(prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
                try:
                    completion: Completion = await self._engines[index].sample.remote(prompt_ids, params)
                    return completion
                except RayTaskError as error:
                    if isinstance(error.cause, EngineLost):
                        raise error.cause from error
                    raise
                except RayActorError as error:
                    raise EngineLost(f"engine {index}", str(error)) from error

            return sample

        self._worker = RolloutWorker(
            environments=environments,
            tokenizer=load_tokenizer(model_folder),
            sampler=Router([call(index) for index in range(len(engines))]),
            max_model_len=max_model_len,
        )

    async def ready(self) -> bool:
        """Answers once the constructor is done."""
        return True

    async def play(self, order: Order) -> Group:
        """As `RolloutWorker.play`."""
        return await self._worker.play(order)

    async def replace(self, index: int, engine: Any) -> None:
        """From now on ask this actor for what engine `index` samples."""
        self._engines[index] = engine

    async def close(self) -> None:
        """As `RolloutWorker.close`."""
        await self._worker.close()


class WorkerHandle:
    """One rollout worker in its actor."""

    def __init__(self, index: int, config: RunConfig, model_folder: str, engines: Sequence[EngineHandle]) -> None:
        self.name = f"rollout worker {index}"
        self.num_playing = 0
        self._seconds = config.run.deadline_seconds
        self.actor = (
            ray.remote(_WorkerActor)
            .options(
                num_cpus=config.rollout.cpus_per_worker,
                max_concurrency=_MAX_CONCURRENCY,
                # The worker renders and verifies; threads of numeric libraries would only take cores from the engines.
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}},
            )
            .remote(
                environments=[(section.name, section.settings) for section in config.environments],
                model_folder=model_folder,
                engines=[engine.actor for engine in engines],
                max_model_len=config.inference.max_model_len,
            )
        )

    async def start(self) -> None:
        """Wait for the environments' `setup`."""
        await ask(self.name, "to start", self.actor.ready.remote(), self._seconds)

    async def play(self, order: Order) -> Group:
        """Play one group; the wait is bounded by the episodes' own budgets and, past them, the run's deadline."""
        seconds = self._seconds + (order.task.budget.seconds or self._seconds)
        self.num_playing += 1
        reference = self.actor.play.remote(order)
        try:
            group: Group = await ask(self.name, f"to play {order.task.id}", reference, seconds)
            return group
        except asyncio.CancelledError:
            # Down to the engine, which would go on sampling for nobody.
            ray.cancel(reference)
            raise
        finally:
            self.num_playing -= 1

    async def replace(self, index: int, engine: EngineHandle) -> None:
        """As `_WorkerActor.replace`."""
        await ask(self.name, "to note a new engine", self.actor.replace.remote(index, engine.actor), self._seconds)

    async def stop(self) -> None:
        """Close the environments, then end the actor."""
        with contextlib.suppress(Exception):
            await ask(self.name, "to close its environments", self.actor.close.remote(), 10)
        ray.kill(self.actor)


class _LearnerActor:
    """One rank, made inside its actor once rank 0's address is known."""

    def rendezvous(self) -> tuple[str, int]:
        """Where the ranks meet: this machine, and a port that is free on it."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), listener.getsockname()[1]

    def start(self, checkpoint: str | None, address: tuple[str, int], arguments: dict[str, Any]) -> None:
        """Build the learner, and load the checkpoint's state if there is one."""
        from rlvr.learner.learner import Learner

        self._learner = Learner(master_addr=address[0], master_port=address[1], **arguments)
        if checkpoint is not None:
            self._learner.load(checkpoint)

    def call(self, method: str, *arguments: Any) -> Any:
        """Any other method of `Learner`."""
        return getattr(self._learner, method)(*arguments)

    @ray.method(concurrency_group=_BESIDE)  # type: ignore[untyped-decorator]
    def abandon(self) -> None:
        """As `Learner.abandon`, while another method is under way: it may be waiting for the engines."""
        self._learner.abandon()


class LearnerHandle:
    """All ranks of the learner: each method runs on every one of them, in the same order."""

    def __init__(self, config: RunConfig, model_folder: str, placement: Placement) -> None:
        learner = config.learner
        self._seconds = config.run.deadline_seconds
        self._transport = config.transport
        self._arguments = {"config": config, "model_folder": model_folder, "world_size": learner.num_ranks}
        variables = {
            "OMP_NUM_THREADS": str(learner.num_threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        actor = ray.remote(concurrency_groups={_BESIDE: 1})(_LearnerActor)
        self.ranks = [
            actor.options(
                num_cpus=learner.cpus_per_rank,
                num_gpus=learner.gpus_per_rank,
                runtime_env={"env_vars": variables},
                **placement.options(rank),
            ).remote()
            for rank in range(learner.num_ranks)
        ]

    async def start(self, checkpoint: str | None) -> None:
        """Wait until all ranks have met and loaded the model, and the checkpoint's state if there is one."""
        address = await ask("learner rank 0", "to be placed", self.ranks[0].rendezvous.remote(), self._seconds)
        await self._gather(
            "to start",
            [
                actor.start.remote(checkpoint, address, self._arguments | {"rank": rank})
                for rank, actor in enumerate(self.ranks)
            ],
        )

    async def step(
        self,
        updates: Sequence[tuple[tuple[tuple[MicroBatch, ...], ...], int]],
        may_change: Callable[[], Awaitable[None]],
    ) -> dict[str, float]:
        """Train on one batch: per update the shards by rank, and the number of loss tokens.

        The weights stay as they are until `may_change` returns: until then they can be sent, and sent again.
        """
        calls = [
            rank.call.remote("begin", [(shards[index], num_loss_tokens) for shards, num_loss_tokens in updates])
            for index, rank in enumerate(self.ranks)
        ]
        await self._gather("to go through a batch", calls)
        await may_change()
        metrics: list[dict[str, float]] = await self._all("to take a step", "finish")
        return metrics[0]

    def weights(self, version: int) -> tuple[Any, Any]:
        """References to what the engines take and to its checksums, from rank 0; nothing is waited for.

        Until the second resolves, the learner may be waiting for the engines to receive.
        """
        offers = [rank.call.remote("weights", version) for rank in self.ranks]
        checksums = [rank.call.remote("send") for rank in self.ranks]
        return offers[0], checksums[0]

    async def checksums(self, reference: Any) -> Checksums:
        """Wait for what `weights` returned second."""
        checksums: Checksums = await ask("learner rank 0", "to send its weights", reference, self._seconds)
        return checksums

    async def connect(self, engines: Sequence[EngineHandle]) -> None:
        """Let learner and engines meet, where the transport has them meet."""
        if self._transport != "nccl":
            return
        addr, port = await ask("learner rank 0", "to find a port", self.ranks[0].rendezvous.remote(), self._seconds)
        place = {"master_addr": addr, "master_port": port, "num_engines": len(engines)}
        await asyncio.gather(
            self._all("to meet the engines", "connect", addr, port, len(engines)),
            *(engine.connect(nccl_init_info(**place, index=index)) for index, engine in enumerate(engines)),
        )

    async def abandon(self) -> None:
        """End whatever is being sent, so that the engines can be met anew."""
        await ask("learner rank 0", "to leave its engines", self.ranks[0].abandon.remote(), self._seconds)

    def logprobs(self, token_ids: Sequence[int]) -> Any:
        """A reference to the log-probabilities of fixed tokens under the weights as they are now."""
        calls = [rank.call.remote("logprobs", token_ids) for rank in self.ranks]
        return calls[0]

    async def value(self, reference: Any) -> Any:
        """Wait for what `logprobs` returned."""
        return await ask("learner rank 0", "to score the probe", reference, self._seconds)

    async def save(self, state_folder: str, model_folder: str) -> None:
        """State to resume from, and an export that vLLM loads."""
        await self._all("to save its state", "save", state_folder)
        await self._all("to export the model", "export", model_folder)

    async def stop(self) -> None:
        """End the actors."""
        for rank in self.ranks:
            ray.kill(rank)

    async def _all(self, waited_for: str, method: str, *arguments: Any) -> list[Any]:
        return await self._gather(waited_for, [rank.call.remote(method, *arguments) for rank in self.ranks])

    async def _gather(self, waited_for: str, calls: Sequence[Any]) -> list[Any]:
        return list(
            await asyncio.gather(
                *(ask(f"learner rank {rank}", waited_for, call, self._seconds) for rank, call in enumerate(calls))
            )
        )
