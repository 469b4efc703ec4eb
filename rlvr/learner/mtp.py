"""The multi-token prediction (MTP) layer that drafts for the policy: MiMo's for a Qwen2, Qwen3.5's for its own.

At position `i` of a sequence MiMo's, as vLLM's `MiMoForCausalLM` runs it, sees the policy's hidden state `h_i` (last
layer, *before* the final norm) and the embedding of the next token `t_{i+1}`, and predicts `t_{i+2}` through the
policy's own head:

    x_i = input_proj([hidden_layernorm(h_i), token_layernorm(embed(t_{i+1}))])      embed(...) is 0 where i = 0
    y   = final_layernorm(qwen2_decoder_layer(x))                                   rotary position i, causal
    logits_i = head(y_i)

Qwen3.5's reads the hidden state *behind* the final norm, and every token's embedding, the first one's too:

    x_i = fc([pre_fc_norm_embedding(embed(t_{i+1})), pre_fc_norm_hidden(norm(h_i))])
    y   = norm(qwen3_5_decoder_layer(x))                                  full attention, rotary position i, causal

Their parameters are named as in a checkpoint, there under `model.mtp_layers.0.` and `mtp.`.
Sources: MiMo technical report (arXiv:2505.07608); vLLM's `mimo_mtp.py`, `qwen3_5_mtp.py` and its proposer, which shifts
tokens by one and leaves positions as they are.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5RMSNorm,
    Qwen3_5TextRotaryEmbedding,
)

from rlvr.learner.attention import Packing

CHECKPOINT_PREFIX = "model.mtp_layers.0."
# Else transformers reports these tensors, a line each, whenever it loads the policy without them.
Qwen2ForCausalLM._keys_to_ignore_on_load_unexpected = [rf"^{CHECKPOINT_PREFIX}"]


class MtpLayer(Qwen2DecoderLayer):  # type: ignore[misc]  # transformers is untyped here
    """One Qwen2 decoder layer with MiMo's input and output norms around it."""

    checkpoint_prefix: ClassVar[str] = CHECKPOINT_PREFIX
    reads_normed: ClassVar[bool] = False  # whether `hidden` is wanted behind the policy's final norm

    def __init__(self, config: Any) -> None:
        """`config` is the policy's Qwen2 config; its `_attn_implementation` must be `attention.IMPLEMENTATION`.

        Initialised like a new Qwen2 model: matrices normal with `initializer_range`, biases 0, norms 1.
        """
        super().__init__(config, layer_idx=0)
        self.token_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.final_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, embeddings: Tensor, position_ids: Tensor, packing: Packing) -> Tensor:
        """What the head turns into a prediction of the token after the next. [num_tokens, hidden_size] in and out.

        `hidden[i]` is `h_i` and `embeddings[i]` is `embed(t_i)`: both of the *same* token; the shift happens here.
        The last row of each sequence has no next token and means nothing.
        """
        following = torch.where(position_ids[:, None] == 0, 0, embeddings.roll(-1, dims=0))
        inputs = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(following)], dim=-1)
        x = self.input_proj(inputs)[None]
        output = super().forward(x, position_embeddings=self.rotary_emb(x, position_ids[None]), packing=packing)
        normed: Tensor = self.final_layernorm(output[0])
        return normed


class Qwen35MtpLayer(nn.Module):
    """One full-attention decoder layer of Qwen3.5 behind a projection of token and hidden state."""

    checkpoint_prefix: ClassVar[str] = "mtp."
    reads_normed: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        """`config` is the policy's text config; its `_attn_implementation` must be `attention.IMPLEMENTATION`."""
        super().__init__()
        config = copy.deepcopy(config)
        config.layer_types = ["full_attention"]

        def norm() -> nn.Module:
            layer: nn.Module = Qwen3_5RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            return layer

        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = norm(), norm(), norm()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(config, 0)])
        self.rotary_emb = Qwen3_5TextRotaryEmbedding(config)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(self, hidden: Tensor, embeddings: Tensor, position_ids: Tensor, packing: Packing) -> Tensor:
        """As `MtpLayer.forward`."""
        following = self.pre_fc_norm_embedding(embeddings.roll(-1, dims=0))
        x = self.fc(torch.cat([following, self.pre_fc_norm_hidden(hidden)], dim=-1))[None]
        output = self.layers[0](x, position_embeddings=self.rotary_emb(x, position_ids[None]), packing=packing)
        normed: Tensor = self.norm(output[0])
        return normed


AnyMtpLayer = MtpLayer | Qwen35MtpLayer
# By the policy's model type.
MTP_LAYERS: dict[str, type[AnyMtpLayer]] = {"qwen2": MtpLayer, "qwen3_5_text": Qwen35MtpLayer}
