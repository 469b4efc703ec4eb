"""Messages to tokens and back, through the policy's own chat template.

Only *new* messages become tokens; what the model sampled is never decoded and encoded again, so a training sequence
holds exactly the tokens that were sampled.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from rlvr.rollout.completion import ThoughtMarks
from rlvr.types import THINK_END, THINK_START, Message

# An assistant's content that stands in for the one that was sampled; no template rewrites it.
_SAMPLED = "rlvr-sampled-content"
_THOUGHT = "rlvr-thought"
# How a model calls a tool where its template says nothing of tools.
TOOL_CALL = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    eos_token: str
    eos_token_id: int

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class Renderer:
    """Renders one policy's conversations."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._think_start, self._think_end = (self._single_token(mark) for mark in (THINK_START, THINK_END))
        template = getattr(tokenizer, "chat_template", None)
        self._template_knows_tools = re.search(r"\btools\b", str(template or "")) is not None

    def start(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = (), note: str = ""
    ) -> tuple[int, ...]:
        """The whole prompt of a first turn, up to where the model goes on.

        `tools` are rendered by the template where it knows them, else described in the system message. `note` is a
        last line of the last message.
        """
        if note and messages:
            messages = [*messages[:-1], dataclasses.replace(messages[-1], content=f"{messages[-1].content}\n{note}")]
        options: dict[str, Any] = {}
        if tools and self._template_knows_tools:
            options["tools"] = list(tools)
        else:
            messages = with_tools(messages, tools)
        return self._encode(
            self._text([_plain(message) for message in messages], add_generation_prompt=True, **options)
        )

    def follow(self, completion_ids: Sequence[int], messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens between a completion and the next: its end (if it was cut off), the new messages, the opening."""
        before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _SAMPLED}]
        whole = self._text(before + [_plain(message) for message in messages], add_generation_prompt=True)
        # Not by length: some templates render an assistant's message otherwise once another one follows it.
        _, _, after = whole.partition(_SAMPLED)
        ended = bool(completion_ids) and completion_ids[-1] == self._tokenizer.eos_token_id
        return self._encode(after.removeprefix(self._tokenizer.eos_token) if ended else after)

    def marks(self, closing: str) -> ThoughtMarks | None:
        """The tokens around a thought, `closing` being the text that is forced after its end.

        `None` where `<think>` and `</think>` are not one token each: no thought can then be closed.
        """
        if self._think_start is None or self._think_end is None:
            return None
        forced = self._encode(self._end_of_thought() + closing)
        return ThoughtMarks(start=self._think_start, end=self._think_end, closing=forced)

    def opens_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought that its last message has opened."""
        tail = self._tokenizer.decode(self._last_message(prompt_ids), skip_special_tokens=False)
        return tail.rfind(THINK_START) > tail.rfind(THINK_END)

    def parse(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Message:
        """The assistant's message: what stands before `</think>` is its thought, the rest its content.

        A thought that never closes leaves the content empty.
        """
        ids = list(completion_ids)
        if ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        thinking, closed, content = text.partition(THINK_END)
        if closed:
            return Message(role="assistant", content=content, thinking=_after(thinking, THINK_START))
        if THINK_START in text:
            content, _, thinking = text.partition(THINK_START)
            return Message(role="assistant", content=content, thinking=thinking)
        if self.opens_thought(prompt_ids):
            return Message(role="assistant", content="", thinking=text)
        return Message(role="assistant", content=text)

    def _end_of_thought(self) -> str:
        """As the template writes it between a thought and an answer: `</think>`, and often a blank line."""
        answer = {"role": "assistant", "content": _SAMPLED, "thinking": _THOUGHT, "reasoning_content": _THOUGHT}
        text = self._text([{"role": "user", "content": "q"}, answer], add_generation_prompt=False)
        between, found, _ = text.partition(_THOUGHT)[2].partition(_SAMPLED)
        return THINK_END + between.partition(THINK_END)[2] if found else THINK_END

    def _last_message(self, prompt_ids: Sequence[int]) -> list[int]:
        ids = list(prompt_ids)
        end = self._tokenizer.eos_token_id
        return ids[len(ids) - ids[::-1].index(end) :] if end in ids else ids

    def _single_token(self, text: str) -> int | None:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def _text(self, messages: list[dict[str, str]], **options: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def with_tools(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The messages, the first of them a system message that begins with a plain description of the tools."""
    if not tools:
        return list(messages)
    described = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = f"Tools:\n{described}\nTo call one, write {TOOL_CALL}"
    if messages and messages[0].role == "system":
        return [Message(role="system", content=f"{text}\n\n{messages[0].content}"), *messages[1:]]
    return [Message(role="system", content=text), *messages]


def _plain(message: Message) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    # Templates know a thought under either name.
    return plain | {"thinking": message.thinking, "reasoning_content": message.thinking} if message.thinking else plain


def _after(text: str, mark: str) -> str:
    return text.partition(mark)[2] if mark in text else text
