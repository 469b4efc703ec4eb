"""One rank of the learner: packed batches in, weights of the next version out.

    step:     [proximal pass]  ->  for each update: forward, loss, backward per micro-batch  ->  clip apart  ->  AdamW

Policy and MTP layer are two parameter groups of one optimizer, each with its own learning rate and its own gradient
clip: their losses share no parameter, and under one joint norm the larger of the two would shrink the other's update.
Every method is a collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from rlvr.algorithms.loss import policy_loss
from rlvr.config import RunConfig
from rlvr.errors import ConfigError
from rlvr.learner.checkpoint import load_state, save_state
from rlvr.learner.gradients import clip_apart, group_gradients
from rlvr.learner.metrics import summed_over_ranks
from rlvr.learner.model import PolicyModel, companions
from rlvr.learner.publisher import IpcPublisher, MemoryPublisher, NcclPublisher, Publisher
from rlvr.types import MicroBatch
from rlvr.weights import Checksums, Weights, part_of

GATHER_BYTES = 64 * 2**20
# Below so many elements ZeRO-3 keeps a parameter whole on every rank: norms and biases, no matrix.
PERSISTENT_ELEMENTS = 10_000

Update = tuple[Sequence[MicroBatch], int]  # this rank's micro-batches, and the loss tokens of all ranks'


class Learner:
    """A plain class: the controller makes it a Ray actor, one a rank."""

    def __init__(
        self, *, config: RunConfig, model_folder: str, rank: int, world_size: int, master_addr: str, master_port: int
    ) -> None:
        """Join the other ranks and load the checkpoint in `model_folder`. One learner a process.

        Raises `ConfigError` for a checkpoint or a ZeRO stage that does not fit the rest.
        """
        os.environ.update(
            MASTER_ADDR=master_addr,
            MASTER_PORT=str(master_port),
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK="0",  # Ray shows each actor its own GPU only
        )
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.model_folder = model_folder
        self._companions = companions(model_folder) if rank == 0 else {}
        self.num_updates = 0
        settings = config.learner
        torch.set_num_threads(settings.num_threads)
        random.seed(config.run.seed)
        np.random.seed(config.run.seed)
        torch.manual_seed(config.run.seed)
        transformers_logging.disable_progress_bar()

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wanted = settings.dtype if settings.dtype != "auto" else "bfloat16" if self.device.type == "cuda" else "float32"
        if self.device.type == "cuda" and config.colocated:  # so that a spike here does not take the engine's memory
            torch.cuda.set_per_process_memory_fraction(settings.gpus_per_rank)
        self.dtype = torch.bfloat16 if wanted == "bfloat16" else torch.float32
        if self.dtype == torch.bfloat16 and settings.zero_stage == 0:
            raise ConfigError(
                "learner.zero_stage = 0 with learner.dtype = bfloat16: without ZeRO there are no float32 master "
                "weights; set learner.zero_stage to 1 (the same on a single rank) or learner.dtype to float32"
            )
        self.engine = self._start_deepspeed()
        self.model: PolicyModel = self.engine.module
        self._publisher = self._make_publisher()

    def _start_deepspeed(self) -> Any:
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 deprecates, a line in the log each time.
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
        # Else init_distributed compiles a shared-memory extension, for minutes, which gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if self.device.type == "cuda" else "gloo", verbose=False)
        ds_config = self._deepspeed_config()
        # While this object lives, transformers loads weights straight into ZeRO-3's partitions. Bare zero.Init would
        # leave them wrongly initialised, silently.
        settings = self.config.learner
        partitioned_loading = HfDeepSpeedConfig(ds_config) if settings.zero_stage == 3 else None
        model = PolicyModel.load(
            self.model_folder, dtype=self.dtype, gradient_checkpointing=settings.gradient_checkpointing
        )
        model.train()
        del partitioned_loading
        optimizer = torch.optim.AdamW(
            self._parameter_groups(model),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=self.device.type == "cuda",
        )
        if settings.compile if settings.compile != "auto" else self.device.type == "cuda" and settings.zero_stage < 3:
            model.compile_layers()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        for name, buffer in model.named_buffers():
            # DeepSpeed casts buffers with the weights, but rotary frequencies must stay float32.
            buffer.data = buffers[name].to(buffer.device)
        return engine

    def _make_publisher(self) -> Publisher:
        drafts = self.config.inference.num_draft_tokens > 0
        sent = [(name, weight) for name, weight in self.model.named_weights() if drafts or part_of(name) == "policy"]

        def stream() -> Iterator[tuple[str, Tensor]]:
            return self._stream(sent)

        match self.config.transport:
            case "memory":
                return MemoryPublisher(sent, stream, rank=self.rank)
            case "ipc":
                return IpcPublisher(sent, stream, rank=self.rank)
            case "nccl":
                partitioned = self.config.learner.zero_stage == 3
                return NcclPublisher(sent, stream, rank=self.rank, partitioned=partitioned)

    def _deepspeed_config(self) -> dict[str, Any]:
        return {
            # Sizes of a batch are ours to know: the gradient's scale is in the loss, and `step` says where a step ends.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # by default it clips all together at 1.0; ours clips policy and MTP layer apart
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {
                "stage": self.config.learner.zero_stage,
                "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            },
            "steps_per_print": 2**31,
        }

    def _parameter_groups(self, model: PolicyModel) -> list[dict[str, Any]]:
        """The policy first, then the MTP layer where it is trained."""
        settings = self.config.learner
        groups = [{"params": list(model.policy.parameters()), "lr": settings.learning_rate}]
        if settings.mtp.train:
            if model.mtp is None:
                raise ConfigError(
                    f"learner.mtp.train = true, but the policy {self.model_folder!r} has no MTP layer "
                    "(no model.mtp_layers.0.* tensors); set learner.mtp.train = false and inference.num_draft_tokens = "
                    "0, or choose a policy with one"
                )
            groups.append({"params": list(model.mtp.parameters()), "lr": settings.mtp.learning_rate})
        elif model.mtp is not None:
            model.mtp.requires_grad_(False)
        return groups

    def step(self, updates: Sequence[Update]) -> dict[str, float]:
        """`begin` and `finish` in one."""
        self.begin(updates)
        return self.finish()

    def begin(self, updates: Sequence[Update]) -> None:
        """Go through a batch up to its first optimizer step, which `finish` takes: weights may be sent in between."""
        self._under_way = self._learn(updates)
        next(self._under_way)

    def finish(self) -> dict[str, float]:
        """The rest of what `begin` began, and what `_learn` says of it."""
        return next(self._under_way)

    def _learn(self, updates: Sequence[Update]) -> Iterator[dict[str, float]]:
        """Learn from one batch: one optimizer step for each of `updates`, all against the same proximal policy.

        Stops once, before the first of them. All ranks must bring equally many updates, of equally many micro-batches
        each. Yields metrics over all ranks in the end, the same on each; with several updates, means over their tokens,
        and over the updates for gradient norms. Raises `FloatingPointError` for a gradient that is not finite, before
        it reaches the weights.
        """
        start = time.perf_counter()
        local = [([batch.to(self.device) for batch in shard], num_loss_tokens) for shard, num_loss_tokens in updates]
        # The first update of a batch starts at the proximal policy; only later ones need it written down.
        proximal = [[self._score(batch) for batch in shard] for shard, _ in local] if len(local) > 1 else None
        totals: dict[str, Tensor] = {}
        norms: list[dict[str, float]] = []
        for i, (shard, num_loss_tokens) in enumerate(local):
            for j, batch in enumerate(shard):
                self.engine.set_gradient_accumulation_boundary(j == len(shard) - 1)
                sums = self._backward(batch, proximal[i][j] if proximal else None, max(1, num_loss_tokens))
                for name, value in sums.items():
                    merge = torch.maximum if name.endswith("_max") else torch.add
                    totals[name] = merge(totals[name], value) if name in totals else value
            norms.append(self._clip_gradients())
            if i == 0:
                yield {}
            self._publisher.wait(self.config.run.deadline_seconds)
            self._set_learning_rates()
            self.engine.step()
            self.num_updates += 1
        metrics = summed_over_ranks(totals, mtp=self.config.learner.mtp.train) | {
            "learner/learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "learner/step_seconds": time.perf_counter() - start,
        }
        yield metrics | {name: sum(each[name] for each in norms) / len(norms) for name in norms[0]}

    def _backward(self, batch: MicroBatch, proximal: Tensor | None, num_loss_tokens: int) -> dict[str, Tensor]:
        """Accumulate the gradient of one micro-batch; its sums for metrics."""
        mtp = self.config.learner.mtp
        output = self.engine(batch, batch.loss.temperature, mtp_top_k=mtp.top_k if mtp.train else 0)
        loss, sums = policy_loss(
            output.logprobs,
            output.logprobs if proximal is None else proximal,
            batch.behaviour_logprobs,
            batch.advantages,
            batch.loss_mask,
            clip_low=batch.loss.clip_low,
            clip_high=batch.loss.clip_high,
            importance_min=batch.loss.importance_min,
            importance_max=batch.loss.importance_max,
            num_loss_tokens=num_loss_tokens,
        )
        # DeepSpeed averages gradients over ranks, but the divisor is already a count over all of them.
        self.engine.backward((loss + output.mtp_loss / num_loss_tokens) * self.world_size)
        return {
            **sums,
            "loss": loss.detach() * num_loss_tokens,
            "num_loss_tokens": batch.loss_mask.sum(),
            "num_tokens": batch.loss_mask.new_tensor(float(len(batch.token_ids))),
            "entropy": output.entropy.sum(),
            "mtp_loss": output.mtp_loss.detach(),
            "mtp_count": output.mtp_count,
            "mtp_top1": output.mtp_top1,
            "mtp_acceptance": output.mtp_acceptance,
        }

    @torch.no_grad()
    def _score(self, batch: MicroBatch) -> Tensor:
        logprobs: Tensor = self.engine(batch, batch.loss.temperature).logprobs
        return logprobs

    def _clip_gradients(self) -> dict[str, float]:
        settings = self.config.learner
        limits = {"policy": settings.max_grad_norm, "mtp": settings.mtp.max_grad_norm}
        groups = group_gradients(self.engine, settings.zero_stage)
        partitioned = settings.zero_stage > 0
        norms = clip_apart(groups, [limits[name] for name, _ in zip(limits, groups, strict=False)], partitioned)
        named = {f"grad_norm/{name}": norm for name, norm in zip(limits, norms, strict=False)}
        for name, norm in named.items():
            if not math.isfinite(norm):
                raise FloatingPointError(f"{name} is {norm} in update {self.num_updates}; the weights are still whole")
        return named

    def _set_learning_rates(self) -> None:
        """Linear warm-up over the first `warmup_steps` updates; each group from its own rate."""
        settings = self.config.learner
        factor = min(1.0, (self.num_updates + 1) / max(1, settings.warmup_steps))
        rates = (settings.learning_rate, settings.mtp.learning_rate)
        for group, rate in zip(self.engine.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * factor

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it, at temperature 1; 0.0 for the first."""
        length = len(token_ids)
        mask = torch.ones(length)
        mask[0] = 0
        batch = MicroBatch(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            position_ids=torch.arange(length),
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            loss_mask=mask,
            behaviour_logprobs=torch.zeros(length),
            advantages=torch.zeros(length),
        )
        with torch.no_grad():
            values: list[float] = self.engine(batch.to(self.device), 1.0).logprobs.tolist()
        return values

    def connect(self, master_addr: str, master_port: int, num_engines: int) -> None:
        """Open this end of the weight transfer; NCCL waits here until every engine has come."""
        self._publisher.connect(master_addr=master_addr, master_port=master_port, num_engines=num_engines)

    def abandon(self) -> None:
        """As `Publisher.abandon`."""
        self._publisher.abandon()

    def weights(self, version: int) -> Weights | None:
        """On rank 0 what the engines need in order to take the weights as they are now, labelled `version`."""
        return self._publisher.offer(version)

    def send(self) -> Checksums | None:
        """Let the weights of the last `weights` go; on rank 0 their checksums. Transfers may still be under way."""
        return self._publisher.send()

    def export(self, folder: str | Path) -> None:
        """Write a Hugging Face checkpoint that vLLM loads, MTP layer and tokenizer included. Rank 0 writes."""
        weights = list(self._full_weights())
        if self.rank == 0:
            self.model.save(folder, companions=self._companions, weights=weights)
        dist.barrier()

    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Copies in main memory, on rank 0; nothing on the others, which must exhaust it all the same (ZeRO-3)."""
        for name, tensor in self._stream(list(self.model.named_weights())):
            if self.rank == 0:
                yield name, tensor.to("cpu", copy=True).contiguous()

    def _stream(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
        """Whole weights where they lie, on every rank; under ZeRO-3 gathered, one bucket after the other."""
        for bucket in _buckets(parameters, GATHER_BYTES):
            with self._gathered([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        if self.config.learner.zero_stage < 3:
            return nullcontext()
        import deepspeed

        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
        return context

    def save(self, folder: str | Path) -> None:
        """Write the whole state for `load`. A folder is complete once `save` has returned on every rank."""
        save_state(self.engine, Path(folder), layout=self._layout(), progress={"num_updates": self.num_updates})
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Go on bit for bit from what `save` wrote, with as many ranks. Raises `CheckpointError`."""
        self.num_updates = load_state(self.engine, Path(folder), layout=self._layout())["num_updates"]

    def _layout(self) -> dict[str, Any]:
        return {
            "num_ranks": self.world_size,
            "zero_stage": self.config.learner.zero_stage,
            "dtype": _name_of(self.dtype),
            "mtp.train": self.config.learner.mtp.train,
        }

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


def _buckets(weights: Iterable[tuple[str, nn.Parameter]], max_bytes: int) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Consecutive weights together, up to `max_bytes` a bucket or a single larger one."""
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in weights:
        needed = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if bucket and size + needed > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += needed
    if bucket:
        yield bucket


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
