"""Where vLLM 0.32.0's first model runner is wrong, and what is done about it in the worker process.

The CPU has that runner. A GPU has the second one, which needs none of this, unless vLLM has to take the first.

On every device:

- *Drafts ignore a request's seed.* vLLM draws them from the process's generator, and which drafts are proposed decides
  which random numbers the policy's tokens are drawn with, so a seed does not repeat a completion.
- *A prompt that is read in parts spoils the draft's cache.* The MTP layer reads at each position the token after it.
  At the end of a part vLLM gives it the last token of the whole prompt, where the next one belongs: drafts get worse,
  and other than those of the same prompt read at once.
- *One request near `max_model_len` stops the drafts of all.* Their place is taken by zeros, which are then checked and
  rejected. It need not be: MTP drafts within a request's own length, and the scheduler cuts what goes beyond it.

On the CPU alone:

- *It samples wrongly when it drafts.* `cpu_triton_utils._expand_kernel_impl` fills an int64 copy of its output and
  never copies back, so `expand_batch_to_tokens` returns uninitialised temperatures, top-p and top-k (upstream issue
  55005).
- *It dies where a prompt with a seed does not fit one step.* It draws a token from every part of the prompt, throws
  away all but the last, and rewinds the seed's generator by `set_offset`, which only GPU generators have.

`tests/integration/test_engine.py` holds the tests that fail without the cures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import vllm
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.spec_decode import llm_base_proposer
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_BROKEN_ON_CPU = ("0.32.0",)


def apply() -> None:
    """In this process, before it loads a model."""
    _seed_drafts()
    _draft_after_the_next_prompt_token()
    _draft_beside_a_full_request()
    if current_platform.is_cpu() and vllm.__version__.split("+")[0] in _BROKEN_ON_CPU:
        _cure_cpu_sampling()
        _cure_cpu_rewinding()


def _seed_drafts() -> None:
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


def _unread(runner: Any) -> np.ndarray[Any, Any]:
    """Rows of the requests whose prompt this step does not read to its end."""
    rows: np.ndarray[Any, Any] = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0]
    return rows


def _draft_after_the_next_prompt_token() -> None:
    original = GPUModelRunner.propose_draft_token_ids

    def propose(runner: Any, *args: Any, **kwargs: Any) -> Any:
        # Of an unread row the drafter takes the last token before `num_tokens_no_spec`.
        lengths, unread = runner.input_batch.num_tokens_no_spec, _unread(runner)
        whole = lengths[unread].copy()
        lengths[unread] = runner.optimistic_seq_lens_cpu.numpy()[unread] + 1
        try:
            return original(runner, *args, **kwargs)
        finally:
            lengths[unread] = whole

    GPUModelRunner.propose_draft_token_ids = propose


def _draft_beside_a_full_request() -> None:
    original = GPUModelRunner._input_fits_in_drafter

    def fits(runner: Any, metadata: Any) -> bool:
        if runner.speculative_config.method == "mtp":
            return metadata is not None
        return bool(original(runner, metadata))

    GPUModelRunner._input_fits_in_drafter = fits


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
        """Generators by row."""
        generators = runner.input_batch.generators
        return {row: generators[row] for row in _unread(runner).tolist() if row in generators}

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
