"""Whether what an engine samples is what the learner thinks it samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rlvr.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """`mean_gap` is the mean of (surprisal minus entropy) in nats, `z` the same in standard errors.

    `max_logprob_error` is the largest difference between the engine's log-probabilities and the learner's.
    """

    num_tokens: int
    mean_gap: float
    z: float
    max_logprob_error: float


@torch.no_grad()
def exactness(model: Any, samples: Iterable[tuple[tuple[int, ...], Completion]], *, temperature: float) -> Exactness:
    """Compare completions with a Hugging Face model that holds the same weights.

    If every token is drawn from the model's distribution at `temperature`, then surprisal minus entropy, summed over
    tokens, is a martingale: its mean is zero whatever was sampled before, and also when completions end by themselves.
    Forced tokens are left out. `samples` are pairs of prompt and completion.
    """
    gaps: list[float] = []
    worst = 0.0
    for prompt, completion in samples:
        ids = torch.tensor([[*prompt, *completion.token_ids]], device=model.device)
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        surprisal = -logp.gather(1, ids[0, len(prompt) :, None])[:, 0]
        for position, sampled in enumerate(completion.loss_mask):
            if sampled:
                gaps.append(float(surprisal[position] - entropy[position]))
                worst = max(worst, abs(float(surprisal[position]) + completion.logprobs[position]))
    mean = math.fsum(gaps) / len(gaps)
    variance = math.fsum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return Exactness(
        num_tokens=len(gaps), mean_gap=mean, z=mean / math.sqrt(variance / len(gaps)), max_logprob_error=worst
    )
