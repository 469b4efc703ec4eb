"""Sampling is exact, and weights arrive: one engine against the learner's model, on the starter policy.

    scripts/bench/engine.py

1. At temperatures 1.0 and 0.7, with MTP drafting: the mean of (surprisal minus entropy) over sampled tokens, which is
   zero when every token is drawn from the learner's distribution, and its standard error.
2. A sync to weights that differ, with requests in flight: the largest log-probability difference to the learner on a
   fixed prompt before and after, checksums, requests that carry two version spans, and how long requests stood still.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from common import QUICKSTART, machine
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr.config import load
from rlvr.diagnostics import exactness
from rlvr.inference.engine import Engine, EngineSettings, environment_variables
from rlvr.learner.model import PolicyModel
from rlvr.plugins import make_environment
from rlvr.report import Reporter
from rlvr.rollout.renderer import Renderer
from rlvr.train import policy_folder
from rlvr.types import Completion, SamplingParams
from rlvr.weights import pack

NUM_PROMPTS = 64
SAMPLES_A_PROMPT = 6


async def main() -> None:
    config = load(QUICKSTART)
    section = config.environments[0]
    environment = make_environment(section.name, section.settings)
    folder = Path(policy_folder(config, [environment], Reporter()))
    renderer = Renderer(AutoTokenizer.from_pretrained(folder))
    prompts = [renderer.start(task.prompt) for task in itertools.islice(environment.tasks("held_out"), NUM_PROMPTS)]
    engine = Engine(
        EngineSettings(
            index=0,
            model_folder=str(folder),
            dtype="float32",
            enforce_eager=True,
            num_draft_tokens=config.inference.num_draft_tokens,
            max_num_seqs=config.inference.max_num_seqs,
            max_model_len=config.inference.max_model_len,
            max_num_batched_tokens=config.inference.max_num_batched_tokens,
            kv_cache_bytes=2**28,
            gpu_memory_utilization=0.5,
            seed=0,
            deadline_seconds=600,
        )
    )
    await engine.start()
    try:
        print(f"\n{machine()}\n")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for temperature in (1.0, 0.7):
            pairs = await sample(engine, prompts * SAMPLES_A_PROMPT, temperature=temperature)
            found = exactness(model, pairs, temperature=temperature)
            print(
                f"temperature {temperature}: mean(surprisal - entropy) = {found.mean_gap:+.5f} nats over "
                f"{found.num_tokens} tokens, {found.z:+.2f} standard errors; largest log-probability error "
                f"{found.max_logprob_error:.1e}; {acceptance(pairs):.1%} of drafts accepted"
            )
        await sync(engine, folder, prompts)
    finally:
        await engine.stop()


async def sample(
    engine: Engine, prompts: Sequence[tuple[int, ...]], *, temperature: float
) -> list[tuple[tuple[int, ...], Completion]]:
    completions = await asyncio.gather(
        *(
            engine.sample(prompt, SamplingParams(max_tokens=128, temperature=temperature, seed=seed))
            for seed, prompt in enumerate(prompts)
        )
    )
    return list(zip(prompts, completions, strict=True))


def acceptance(pairs: Sequence[tuple[tuple[int, ...], Completion]]) -> float:
    drafted = sum(completion.num_draft_tokens for _, completion in pairs)
    return sum(completion.num_accepted_tokens for _, completion in pairs) / drafted


async def sync(engine: Engine, folder: Path, prompts: Sequence[tuple[int, ...]]) -> None:
    learner = PolicyModel.load(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, weight in learner.named_weights():
            weight.mul_(1 + 0.02 * torch.randn_like(weight))
    probe = list(prompts[0]) + list(range(10, 26))
    learner.policy.set_attn_implementation("eager")
    changed = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    changed.load_state_dict(
        {name: weight for name, weight in learner.named_weights() if "mtp_layers" not in name}, strict=True
    )
    with torch.no_grad():
        logp = changed(torch.tensor([probe])).logits[0].log_softmax(-1)
    expected = [float(logp[position, token]) for position, token in enumerate(probe[1:])]

    async def error() -> float:
        return max(abs(a - b) for a, b in zip(await engine.logprobs(probe), expected, strict=True))

    before = await error()
    weights = pack(1, learner.named_weights())
    running = asyncio.create_task(sample(engine, prompts * SAMPLES_A_PROMPT, temperature=1.0))
    await asyncio.sleep(1.0)
    report = await engine.update(weights)
    after = await error()
    spans = [len(completion.weight_spans) for _, completion in await running]
    print(
        f"sync of {weights.buffer.nbytes / 1e6:.1f} MB: largest log-probability difference to the learner "
        f"{before:.2e} before, {after:.2e} after; checksums of policy "
        f"{'match' if report.checksums.policy == weights.checksums().policy else 'DIFFER'}, of draft "
        f"{'match' if report.checksums.draft == weights.checksums().draft else 'DIFFER'}; {spans.count(2)} of "
        f"{len(spans)} requests carry two version spans; requests stood still {report.paused_seconds:.3f} s"
    )


if __name__ == "__main__":
    config = load(QUICKSTART)
    os.environ.update(environment_variables(num_threads=config.inference.num_threads, on_gpu=False))
    asyncio.run(main())
