"""The policy and its MTP layer as one module: packed tokens in, log-probabilities out.

    embed ---> trunk ---> h ---> final norm ---> head ---> log-probabilities, entropy
      |                   |                       |
      +---- detached -----+---> MTP layer ----> head (detached) ---> soft cross-entropy to the policy's top-k

Nothing of the MTP loss reaches the trunk, the embeddings or the head. Logits exist only for tokens under the loss mask,
and only for `ROWS_AT_ONCE` of them at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlvr.errors import ConfigError
from rlvr.learner.attention import IMPLEMENTATION, Packing, keep_sequences_apart
from rlvr.learner.mtp import MTP_LAYERS, AnyMtpLayer
from rlvr.types import MicroBatch
from rlvr.weights import part_of

ROWS_AT_ONCE = 4096
_BLOCK = 128
# Beside weights and config.json, what a checkpoint folder needs to be tokenized with and sampled from.
_COMPANIONS = ("tokenizer*", "vocab.*", "merges.txt", "*tokens*.json", "chat_template*", "generation_config.json")


def companions(folder: str | Path) -> dict[str, bytes]:
    """The tokenizer and the generation settings of a checkpoint folder: contents by file name, for `PolicyModel.save`.

    To be read when training starts: the folder may be gone when it ends.
    """
    files = {file for pattern in _COMPANIONS for file in Path(folder).glob(pattern)}
    return {file.name: file.read_bytes() for file in sorted(files)}


class PolicyOutput(NamedTuple):
    """Per token, shape [num_tokens], float32, at the given temperature; 0 where the loss mask is 0.

    The `mtp_` members are float32 scalars: sums over the `mtp_count` tokens that the MTP layer could predict (loss mask
    1 and two tokens before them in their sequence); without an MTP loss all are 0.
    """

    logprobs: Tensor  # of the token itself, given those before it
    entropy: Tensor  # of the distribution it was drawn from; no gradient
    mtp_loss: Tensor
    mtp_count: Tensor
    mtp_top1: Tensor  # how often the layer's favourite is the policy's
    mtp_acceptance: Tensor  # sum of min(draft, policy) over the vocabulary: the chance that a drawn draft is accepted


class PolicyModel(nn.Module):
    """A Hugging Face causal language model with its head taken apart, and maybe an MTP layer."""

    def __init__(self, policy: Any, mtp: AnyMtpLayer | None = None) -> None:
        """`policy` runs `rlvr_packed` attention; its head is replaced by one that never makes all logits at once."""
        super().__init__()
        head = policy.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ConfigError(f"{type(policy).__name__} has a bias in its output head; choose a policy without one")
        policy.lm_head = TokenScores(head.weight)
        keep_sequences_apart(policy)
        self.policy = policy
        self.mtp = mtp

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype, gradient_checkpointing: bool = False) -> PolicyModel:
        """Read a checkpoint folder, the MTP layer too where it has one. Raises `ConfigError`."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"policy {str(folder)!r} is no Hugging Face checkpoint: it has no config.json")
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=IMPLEMENTATION)
        if gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not has_mtp(folder):
            return cls(policy)
        kind = MTP_LAYERS.get(policy.config.model_type)
        if kind is None:
            known = ", ".join(MTP_LAYERS)
            raise ConfigError(
                f"policy {str(folder)!r}: MTP layers are known for {known}, not {policy.config.model_type!r}"
            )
        mtp = kind(policy.config).to(dtype)
        mtp.load_state_dict(dict(_read_tensors(folder, kind.checkpoint_prefix)))
        return cls(policy, mtp)

    def forward(self, micro_batch: MicroBatch, temperature: float, *, mtp_top_k: int = 0) -> PolicyOutput:
        """Score the tokens under the loss mask. `mtp_top_k` 0 leaves the MTP layer out.

        The MTP loss at position `i` is the cross-entropy of its prediction of token `i + 2` to the `mtp_top_k`
        likeliest tokens of the policy's own distribution at `i + 1`, renormalised, both at `temperature`.
        """
        batch = micro_batch
        packing = Packing.of(batch.cu_seqlens, batch.position_ids)
        trunk = self.policy.base_model
        embeddings = self.policy.get_input_embeddings()(batch.token_ids)
        before_norm: list[Tensor] = []
        hook = trunk.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
        try:
            hidden = trunk(
                inputs_embeds=embeddings[None],
                position_ids=batch.position_ids[None],
                use_cache=False,
                packing=packing,
            ).last_hidden_state[0]
        finally:
            hook.remove()

        targets = batch.loss_mask.nonzero()[:, 0]
        predictable = batch.position_ids[targets] >= 2
        drafts = None
        if self.mtp is not None and mtp_top_k > 0:
            read = hidden if self.mtp.reads_normed else before_norm[0][0]
            drafts = self.mtp(read.detach(), embeddings.detach(), batch.position_ids, packing)
            drafts = drafts[(targets - 2).clamp(min=0)]
        scores = self.policy.lm_head(
            hidden[targets - 1], batch.token_ids[targets], drafts, temperature=temperature, top_k=mtp_top_k
        )
        empty = torch.zeros_like(batch.loss_mask)
        mtp_loss, mtp_top1, mtp_acceptance = ((score * predictable).sum() for score in scores[2:])
        return PolicyOutput(
            logprobs=empty.index_put((targets,), scores[0]),
            entropy=empty.index_put((targets,), scores[1]),
            mtp_loss=mtp_loss,
            mtp_count=predictable.sum().float() if drafts is not None else empty.new_zeros(()),
            mtp_top1=mtp_top1,
            mtp_acceptance=mtp_acceptance,
        )

    def compile_layers(self) -> None:
        """Fuse what lies between a layer's matrix products, by torch.compile; any number of tokens runs the same code.

        Not under ZeRO-3, whose gathering hooks it cannot see through.
        """
        for layer in self.policy.base_model.layers:
            layer.compile(dynamic=True)
        if self.mtp is not None:
            self.mtp.compile(dynamic=True)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name as in a checkpoint, and parameter: first the policy's, then the MTP layer's. A tied head is left out."""
        yield from self.policy.named_parameters()
        if self.mtp is not None:
            for name, parameter in self.mtp.named_parameters():
                yield self.mtp.checkpoint_prefix + name, parameter

    def save(
        self,
        folder: str | Path,
        *,
        companions: Mapping[str, bytes] = MappingProxyType({}),
        weights: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        """Write a checkpoint folder that transformers, vLLM and `load` read.

        `weights` replaces the own ones, where those are partitioned (ZeRO-3).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights or self.named_weights()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = self.policy.config.to_dict() | {
            "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        }
        # vLLM picks its classes by these; model_type stays qwen2, so that no remote code is asked for.
        if config["model_type"] == "qwen3_5_text":
            config |= {"architectures": ["Qwen3_5ForCausalLM"], "mtp_num_hidden_layers": int(self.mtp is not None)}
        elif self.mtp is not None:
            config |= {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, content in companions.items():
            (folder / name).write_bytes(content)


class TokenScores(nn.Module):
    """The output head: scores given tokens without ever holding the logits of all rows.

    It owns the head's weight, so ZeRO-3 gathers it once for the one call a micro-batch makes (and once for its
    backward), however many rows that call has: ranks with unlike batches stay in step.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, hidden: Tensor, tokens: Tensor, drafts: Tensor | None, *, temperature: float, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`hidden` and `drafts` [rows, hidden_size], `tokens` [rows] -> five float32 tensors [rows].

        log-probability of `tokens`; entropy; cross-entropy of `drafts` to the top `top_k` of `hidden`; whether their
        favourites agree; sum of the smaller probabilities. The last three are 0 without `drafts`.
        """
        scores: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
        scores = _TokenScores.apply(hidden, drafts, self.weight, tokens, temperature, top_k)  # type: ignore[no-untyped-call]
        return scores


class _TokenScores(torch.autograd.Function):
    """Chunk by chunk; the gradient with respect to each chunk's logits has a closed form:

    d logprob(y) / d logits = onehot(y) - p,    d cross_entropy(q) / d logits = p_draft - q    (p = softmax(logits))

    A row's gradient is that times a number which backward brings. Where only rows want gradients (drafts: the head is
    not theirs to move) forward goes all the way and backward multiplies; the policy's logits are made a second time,
    since the head's gradient mixes rows.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, drafts: Tensor | None, weight: Tensor, tokens: Tensor, temperature: float, top_k: int
    ) -> tuple[Tensor, ...]:
        out = torch.zeros(5, len(tokens), dtype=torch.float32, device=hidden.device)
        norms = torch.zeros_like(out[0])  # log of the softmax's denominator
        draft_slopes = torch.zeros_like(drafts) if drafts is not None and ctx.needs_input_grad[1] else None
        for rows in _chunks(len(tokens)):
            logits = hidden[rows] @ weight.t()
            out[0, rows], out[1, rows], norms[rows] = _run(_score, logits, tokens[rows], temperature)
            if drafts is not None:
                values, top_ids = top(logits, min(top_k, weight.shape[0]))
                top_probs = (values.float() / temperature).softmax(1)
                draft_logits = drafts[rows] @ weight.t()
                out[2, rows], out[3, rows], out[4, rows], draft_norms = _run(
                    _score_drafts, draft_logits, logits, norms[rows], top_ids, top_probs, temperature
                )
                if draft_slopes is not None:
                    minus = -torch.ones_like(draft_norms)
                    slope = _run(_slope, draft_logits, draft_norms, top_ids, top_probs, minus, temperature)
                    draft_slopes[rows] = slope @ weight
        ctx.save_for_backward(hidden, draft_slopes, weight, tokens, norms)
        ctx.temperature = temperature
        logprobs, entropy, mtp_loss, top1, acceptance = out.unbind()
        ctx.mark_non_differentiable(entropy, top1, acceptance)
        return logprobs.clone(), entropy, mtp_loss.clone(), top1, acceptance

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _e: Tensor, grad_loss: Tensor, _t: Tensor, _a: Tensor) -> Any:
        hidden, draft_slopes, weight, tokens, norms = ctx.saved_tensors
        for_drafts = draft_slopes * grad_loss[:, None].to(draft_slopes.dtype) if draft_slopes is not None else None
        for_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for rows in _chunks(len(tokens) if for_hidden is not None or for_weight is not None else 0):
            one = norms.new_ones(len(tokens[rows]), 1)
            slope = _run(
                _slope, hidden[rows] @ weight.t(), norms[rows], tokens[rows, None], one, grad_logprobs[rows],
                ctx.temperature,
            )  # fmt: skip
            if for_hidden is not None:
                for_hidden[rows] = slope @ weight
            if for_weight is not None:
                for_weight += slope.t() @ hidden[rows]
        return for_hidden, for_drafts, for_weight if for_weight is None else for_weight.to(weight.dtype), *[None] * 3


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `logits.topk(k, dim=1)`, in one pass over a large vocabulary.

    The `k` largest lie in the `k` blocks with the largest maxima; a GPU sorts these few fast, and a whole row slowly.
    """
    num_blocks = logits.shape[1] // _BLOCK
    if num_blocks < 4 * k or logits.shape[1] % _BLOCK:
        return logits.topk(k, dim=1)
    blocks = logits.view(len(logits), num_blocks, _BLOCK)
    chosen = _run(_maxima, blocks).topk(k, dim=1).indices
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, places = candidates.topk(k, dim=1)
    return values, chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK


def _maxima(blocks: Tensor) -> Tensor:
    return blocks.amax(2)


def _score(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of `tokens`, entropy, and log of the softmax's denominator; float32 [rows]."""
    scaled = logits.float() / temperature
    norm = scaled.logsumexp(1)
    entropy = norm - ((scaled - norm[:, None]).exp() * scaled).sum(1)
    return scaled.gather(1, tokens[:, None])[:, 0] - norm, entropy, norm


def _score_drafts(
    drafts: Tensor, logits: Tensor, norm: Tensor, top_ids: Tensor, top_probs: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy to the top, whether the favourites agree, sum of the smaller probabilities, log-denominator."""
    scaled = drafts.float() / temperature
    draft_norm = scaled.logsumexp(1)
    draft_logp = scaled - draft_norm[:, None]
    logp = logits.float() / temperature - norm[:, None]
    loss = -(top_probs * draft_logp.gather(1, top_ids)).sum(1)
    agrees = (draft_logp.argmax(1) == top_ids[:, 0]).float()
    return loss, agrees, torch.minimum(draft_logp, logp).exp().sum(1), draft_norm


def _slope(logits: Tensor, norm: Tensor, ids: Tensor, probs: Tensor, factor: Tensor, temperature: float) -> Tensor:
    """`factor * (q - p) / temperature` in the dtype of `logits`, where q has `probs` at `ids`, and p is the softmax.

    At `ids` the difference is taken in float32: where p is nearly q, half precision would leave nothing of it.
    """
    scale = factor[:, None] / temperature
    there = probs - (logits.gather(1, ids).float() / temperature - norm[:, None]).exp()
    everywhere = -(logits.float() / temperature - norm[:, None]).exp() * scale
    return everywhere.to(logits.dtype).scatter(1, ids, (there * scale).to(logits.dtype))


def _run(function: Callable[..., Any], logits: Tensor, *arguments: Any) -> Any:
    """On a GPU fused into few passes over the logits, by torch.compile; as it stands elsewhere."""
    if not logits.is_cuda:
        return function(logits, *arguments)
    for tensor in (logits, *arguments):
        if isinstance(tensor, Tensor):  # the number of rows varies; a vocabulary of known size makes simpler indices
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return _compiled(function)(logits, *arguments)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def _chunks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, num_rows, ROWS_AT_ONCE))


def has_mtp(folder: str | Path) -> bool:
    """Whether the checkpoint carries an MTP layer, from its index or safetensors header alone."""
    return any(part_of(name) == "draft" for name in _tensor_files(Path(folder)))


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        return {}
    with safe_open(single, "pt") as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _read_tensors(folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors whose name starts with `prefix`, under the rest of their name."""
    for name, file in _tensor_files(folder).items():
        if name.startswith(prefix):
            with safe_open(file, "pt") as tensors:
                yield name.removeprefix(prefix), tensors.get_tensor(name)
