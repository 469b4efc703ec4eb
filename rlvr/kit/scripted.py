"""A policy with a script: real episodes through `rlvr.rollout.play` without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from rlvr.rollout.renderer import Renderer
from rlvr.types import THINK_END, THINK_START, Completion, Message, SamplingParams, WeightSpan

# What the policy says in turn 0, 1, 2, ...
Script = Callable[[int], Message]


class TextTokenizer:
    """A token a character, so that any text comes through unchanged; the marks of the template are one token each."""

    eos_token = "<|im_end|>"
    eos_token_id = 0
    chat_template = "<|im_start|>role\ncontent<|im_end|>\n"
    _marks = (eos_token, THINK_START, THINK_END, "<|im_start|>")

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        text = ""
        for message in conversation:
            thought = f"{THINK_START}{message['thinking']}{THINK_END}" if message.get("thinking") else ""
            text += f"<|im_start|>{message['role']}\n{thought}{message['content']}{self.eos_token}\n"
        return text + ("<|im_start|>assistant\n" if options.get("add_generation_prompt") else "")

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = []
        position = 0
        while position < len(text):
            mark = next((mark for mark in self._marks if text.startswith(mark, position)), None)
            ids.append(self._marks.index(mark) if mark else len(self._marks) + ord(text[position]))
            position += len(mark) if mark else 1
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        count = len(self._marks)
        return "".join(self._marks[token] if token < count else chr(token - count) for token in token_ids)


class ScriptedSampler:
    """Samples what the script says, one message a call. One sampler an episode: it counts the turns."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tokenizer = TextTokenizer()
        self._turn = 0

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        message = self._script(self._turn)
        self._turn += 1
        await asyncio.sleep(0)
        return as_completion(self._tokenizer, message, params.max_tokens)


def as_completion(tokenizer: TextTokenizer, message: Message, max_tokens: int) -> Completion:
    """A message as an engine would return it, cut off after `max_tokens`."""
    thought = f"{THINK_START}{message.thinking}{THINK_END}" if message.thinking else ""
    ids = [*tokenizer.encode(thought + message.content), tokenizer.eos_token_id]
    kept = tuple(ids[:max_tokens])
    return Completion(
        token_ids=kept,
        logprobs=(0.0,) * len(kept),
        loss_mask=(1,) * len(kept),
        finish_reason="stop" if len(kept) == len(ids) else "length",
        weight_spans=(WeightSpan(0, 0, len(kept)),),
    )


def renderer() -> Renderer:
    """One that renders with `TextTokenizer`."""
    return Renderer(TextTokenizer())


def say(*messages: Message | str, then: Message | str = "") -> Script:
    """A script of these messages in order, and `then` in every later turn."""

    def script(turn: int) -> Message:
        spoken = messages[turn] if turn < len(messages) else then
        return spoken if isinstance(spoken, Message) else Message(role="assistant", content=spoken)

    return script
