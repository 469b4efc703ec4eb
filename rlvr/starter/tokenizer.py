"""The starter's tokenizer: byte-level BPE over generated text, so every text has tokens and digits stand alone."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

VOCABULARY_SIZE = 352
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

# A thought belongs to every assistant turn; the generation prompt opens it, and the model goes on from there.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == "assistant" %}<think>{{ message.thinking | default("") }}</think>{% endif -%}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>{% endif -%}
"""


def train_tokenizer(texts: Iterable[str], *, size: int = VOCABULARY_SIZE) -> Qwen2Tokenizer:
    """A tokenizer of at most `size` tokens; deterministic.

    It splits text as Qwen2's does (digits one by one), because transformers reads the tokenizer of any checkpoint with
    `model_type: qwen2` so, whatever its files say.
    """
    splitting = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = splitting.normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["system\nuser\nassistant\ntool\n"] * 2], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<think>", "</think>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
