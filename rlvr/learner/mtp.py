"""The multi-token prediction (MTP) layer that drafts for the policy: MiMo's, as vLLM's `MiMoForCausalLM` runs it.

At position `i` of a sequence the layer sees the policy's hidden state `h_i` (last layer, *before* the final norm) and
the embedding of the next token `t_{i+1}`, and predicts `t_{i+2}` through the policy's own head:

    x_i = input_proj([hidden_layernorm(h_i), token_layernorm(embed(t_{i+1}))])      embed(...) is 0 where i = 0
    y   = final_layernorm(qwen2_decoder_layer(x))                                   rotary position i, causal
    logits_i = head(y_i)

Its parameters are named as in a checkpoint, there under `model.mtp_layers.0.`.
Source: MiMo technical report (arXiv:2505.07608); vLLM's `mimo_mtp.py` and its proposer, which shifts tokens by one and
leaves positions as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from rlvr.learner.attention import Packing

CHECKPOINT_PREFIX = "model.mtp_layers.0."
# Else transformers reports these tensors, a line each, whenever it loads the policy without them.
Qwen2ForCausalLM._keys_to_ignore_on_load_unexpected = [rf"^{CHECKPOINT_PREFIX}"]


class MtpLayer(Qwen2DecoderLayer):  # type: ignore[misc]  # transformers is untyped here
    """One Qwen2 decoder layer with MiMo's input and output norms around it."""

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
