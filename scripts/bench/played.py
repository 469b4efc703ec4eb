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
                seed=0,
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


@torch.no_grad()
def learner_error(folder: Path, samples: Sequence[Sample]) -> tuple[float, int]:
    """The largest difference between the engine's log-probabilities and the learner's, and over how many tokens."""
    model = PolicyModel.load(folder, dtype=torch.float32)
    worst, count = 0.0, 0
    for batch in pack(samples, num_ranks=1, micro_batch_tokens=4096).shards[0]:
        logprobs = model(batch, batch.loss.temperature).logprobs
        errors = ((logprobs - batch.behaviour_logprobs) * batch.loss_mask).abs()
        worst = max(worst, float(errors.max()))
        count += int(batch.loss_mask.sum())
    return worst, count
