"""Episodes played against one real engine, and whether what is trained on is what was sampled."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer

from rlvr.batching import pack
from rlvr.inference.engine import Engine, EngineSettings
from rlvr.interfaces import Environment
from rlvr.learner.model import PolicyModel
from rlvr.rollout.play import play
from rlvr.rollout.renderer import Renderer
from rlvr.samples import sample_from_episode
from rlvr.types import Completion, Episode, LossSettings, Sample, SamplingParams, Task

MAX_MODEL_LEN = 512


@dataclass
class Recorder:
    """A sampler that remembers, by episode, each call's prompt and what was sampled after it."""

    engine: Engine
    calls: list[tuple[tuple[int, ...], Completion]] = field(default_factory=list)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        completion = await self.engine.sample(prompt_ids, params)
        self.calls.append((tuple(prompt_ids), completion))
        return completion


@dataclass(frozen=True)
class Played:
    """An episode with the calls that the engine answered for it."""

    episode: Episode
    calls: list[tuple[tuple[int, ...], Completion]]


@asynccontextmanager
async def running_engine(folder: Path, *, num_draft_tokens: int) -> AsyncIterator[Engine]:
    engine = Engine(
        EngineSettings(
            index=0,
            model_folder=str(folder),
            dtype="float32",
            enforce_eager=True,
            num_draft_tokens=num_draft_tokens,
            max_num_seqs=128,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=4096,
            kv_cache_bytes=2**28,
            gpu_memory_utilization=0.5,
            seed=0,
            deadline_seconds=300,
        )
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def play_all(
    engine: Engine,
    folder: Path,
    environment: Environment,
    tasks: Iterable[Task],
    *,
    temperature: float,
    at_once: int = 128,
) -> list[Played]:
    renderer = Renderer(AutoTokenizer.from_pretrained(folder))
    free = asyncio.Semaphore(at_once)

    async def one(number: int, task: Task) -> Played:
        recorder = Recorder(engine)
        async with free:
            episode = await play(
                task,
                episode_id=f"{task.id}#{number}",
                environment=copy.copy(environment),
                sampler=recorder,
                renderer=renderer,
                max_model_len=MAX_MODEL_LEN,
                temperature=temperature,
                seed=number,
            )
        return Played(episode, recorder.calls)

    return list(await asyncio.gather(*(one(number, task) for number, task in enumerate(tasks))))


def sample_of(played: Played, *, temperature: float) -> Sample:
    return sample_from_episode(played.episode, 1.0, birth_version=0, loss=LossSettings(temperature=temperature))


def drift(played: Played, sample: Sample) -> str:
    """What of the training sequence is not as the engine saw and sampled it; "" when nothing."""
    last_prompt, last = played.calls[-1]
    ids = (*last_prompt, *last.token_ids)
    if sample.token_ids[: len(ids)] != ids:
        return "the sequence is not what the last call continued"
    sampled: dict[int, tuple[int, float]] = {}
    for prompt, completion in played.calls:
        if sample.token_ids[: len(prompt)] != prompt:
            return "a call's prompt is not a prefix of the sequence"
        for offset, token in enumerate(completion.token_ids):
            sampled[len(prompt) + offset] = (token, completion.logprobs[offset])
    for position, mask in enumerate(sample.loss_mask):
        if mask != (position in sampled):
            return f"position {position}: loss mask {mask}"
        if mask and (sample.token_ids[position], sample.behaviour_logprobs[position]) != sampled[position]:
            return f"position {position}: not the token that was sampled, or not its log-probability"
        if not mask and sample.advantages[position]:
            return f"position {position}: an advantage without loss"
    return ""


@dataclass(frozen=True)
class Agreement:
    """How far log-probabilities of sampled tokens lie apart: the largest difference, and the share within 1e-4."""

    count: int
    worst: float
    within: float

    @classmethod
    def of(cls, errors: torch.Tensor) -> Agreement:
        return cls(len(errors), float(errors.max()), float((errors <= 1e-4).double().mean()))

    def __str__(self) -> str:
        return f"{self.count:,} tokens, at most {self.worst:.1e} apart, {self.within:.3%} within 1e-4"


def agreement(folder: Path, samples: Sequence[Sample]) -> dict[str, Agreement]:
    """The engine against the learner in float32: all sampled tokens, and those behind a forced one.

    And the learner against itself in float64, which is how far float32 can be trusted with this policy.
    """
    single, double = scores(folder, samples, torch.float32), scores(folder, samples, torch.float64)
    engine = torch.cat([torch.tensor(one.behaviour_logprobs)[_sampled(one)] for one in samples])
    behind = torch.cat([_behind_forced(one)[_sampled(one)] for one in samples])
    found = {"engine to learner": (engine - single).abs()}
    if behind.any():
        found["behind forced tokens"] = found["engine to learner"][behind]
    found["learner to itself in float64"] = (single - double).abs()
    return {name: Agreement.of(errors) for name, errors in found.items()}


@torch.no_grad()
def scores(folder: Path, samples: Sequence[Sample], dtype: torch.dtype) -> torch.Tensor:
    """The learner's log-probabilities of all sampled tokens, sample by sample."""
    model = PolicyModel.load(folder, dtype=dtype)
    values = []
    for sample in samples:
        (batch,) = pack([sample], num_ranks=1, micro_batch_tokens=MAX_MODEL_LEN).shards[0]
        values.append(model(batch, batch.loss.temperature).logprobs[_sampled(sample)])
    return torch.cat(values)


def _sampled(sample: Sample) -> torch.Tensor:
    return torch.tensor(sample.loss_mask) > 0


def _behind_forced(sample: Sample) -> torch.Tensor:
    """Whether a token without loss stands between a token and the first that was sampled."""
    mask = torch.tensor(sample.loss_mask)
    started = mask.cumsum(0) > 0
    return ((1 - mask) * started).cumsum(0) > 0
