"""Only new messages become tokens, and what is joined so is what the chat template would have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlvr.rollout.renderer import Renderer
from rlvr.starter.tokenizer import train_tokenizer
from rlvr.types import Message
from tests.fakes import CharacterTokenizer

USER = Message(role="user", content="What is 12 + 30?")
TEXTS = ["What is 12 + 30?", "The answer is 42.", "Call the tool: add 12 and 30.", "system prompt"]

# Qwen3's habit: an assistant's message is written with an empty thought where it is the last one, without one before.
TEMPLATE_THAT_LOOKS_AHEAD = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == "assistant" and loop.last %}<think>

</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def ids(tokenizer: Any, text: str) -> list[int]:
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return encoded


def whole_conversation(tokenizer: Any, messages: Sequence[Message], *, open_next: bool) -> list[int]:
    """By the chat template alone, thoughts included."""
    plain = [{"role": m.role, "content": m.content, "thinking": m.thinking} for m in messages]
    return ids(tokenizer, tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=open_next))


def test_a_prompt_is_the_chat_template_up_to_the_opened_thought(tokenizer: Any, renderer: Renderer) -> None:
    prompt = (Message(role="system", content="Be brief."), USER)
    start = renderer.start(prompt)
    assert list(start) == whole_conversation(tokenizer, prompt, open_next=True)
    assert tokenizer.decode(start).endswith("assistant\n<think>")


def test_after_a_completion_that_ended_come_the_new_messages_alone(tokenizer: Any, renderer: Renderer) -> None:
    completion = ids(tokenizer, "hm</think>42<|im_end|>")
    follow = renderer.follow(completion, (Message(role="tool", content="wrong"),))
    assert tokenizer.decode(follow) == "\n<|im_start|>tool\nwrong<|im_end|>\n<|im_start|>assistant\n<think>"


def test_after_a_completion_that_was_cut_off_its_end_is_added(tokenizer: Any, renderer: Renderer) -> None:
    completion = ids(tokenizer, "hm</think>4")
    follow = renderer.follow(completion, (Message(role="user", content="go on"),))
    assert tokenizer.decode(follow) == "<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n<think>"
    assert follow[0] == tokenizer.eos_token_id
    assert renderer.follow((), (Message(role="user", content="go on"),)) == follow


def test_a_reply_without_messages_opens_the_next_turn(tokenizer: Any, renderer: Renderer) -> None:
    follow = renderer.follow(ids(tokenizer, "x<|im_end|>"), ())
    assert tokenizer.decode(follow) == "\n<|im_start|>assistant\n<think>"


def test_turns_laid_end_to_end_are_the_templates_tokens_of_the_whole_conversation(
    tokenizer: Any, renderer: Renderer
) -> None:
    replies: list[tuple[Message, ...]] = [
        (Message(role="tool", content="30"), Message(role="tool", content="12")),
        (Message(role="user", content="Sure? Say <again>.\n\n  "),),
        (),
    ]
    sampled = ["First I look.</think>lookup: 30", "</think>42", "Yes.\n</think>\n42\n", "so</think> 42"]
    conversation = [Message(role="system", content="Be brief."), USER]
    tokens = list(renderer.start(conversation))
    for turn, text in enumerate(sampled):
        completion = ids(tokenizer, text + "<|im_end|>")
        message = renderer.parse(tokens, completion)
        tokens += completion
        conversation.append(message)
        # The template ends every message with a line break; a sampled completion ends with its end token.
        assert tokens + ids(tokenizer, "\n") == whole_conversation(tokenizer, conversation, open_next=False)
        if turn < len(replies):
            tokens += renderer.follow(completion, replies[turn])
            conversation += replies[turn]
            assert tokens == whole_conversation(tokenizer, conversation, open_next=True)


def test_a_template_that_writes_the_last_answer_otherwise_does_not_shift_what_follows() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.chat_template = TEMPLATE_THAT_LOOKS_AHEAD
    follow = Renderer(tokenizer).follow(ids(tokenizer, "42<|im_end|>"), (Message(role="user", content="Sure?"),))
    assert tokenizer.decode(follow) == "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_an_end_of_its_own_is_followed_without_the_tokenizers() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    renderer = Renderer(tokenizer)
    expected = "<|endoftext|>\n<|im_start|>user\nSure?<|endoftext|>\n<|im_start|>assistant\n<think>"
    for completion in ("42", "42<|im_end|>"):
        follow = renderer.follow(ids(tokenizer, completion), (Message(role="user", content="Sure?"),))
        assert tokenizer.decode(follow) == expected


# --- tools and the budget's note

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Find a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
TEMPLATE_WITH_TOOLS = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}" + TEMPLATE_THAT_LOOKS_AHEAD


def test_a_template_that_knows_tools_writes_them_itself() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.chat_template = TEMPLATE_WITH_TOOLS
    start = Renderer(tokenizer).start((USER,), tools=(TOOL, TOOL))
    text = tokenizer.decode(start)
    assert text.startswith("[look_up][look_up]<|im_start|>user\n")
    assert "<tool_call>" not in text


def test_tools_head_the_system_message_where_the_template_knows_none(tokenizer: Any, renderer: Renderer) -> None:
    described = tokenizer.decode(renderer.start((Message(role="system", content="Be brief."), USER), tools=(TOOL,)))
    assert described.startswith('<|im_start|>system\nTools:\n{"name": "look_up", "description": "Find a word."')
    assert '"required": ["word"]' in described
    assert '<tool_call>{"name": ..., "arguments": {...}}</tool_call>\n\nBe brief.<|im_end|>' in described
    without_system = tokenizer.decode(renderer.start((USER,), tools=(TOOL,)))
    assert without_system == described.replace("\n\nBe brief.", "")
    assert renderer.start((USER,), tools=()) == renderer.start((USER,))


def test_a_note_is_the_last_line_of_the_last_message(tokenizer: Any, renderer: Renderer) -> None:
    text = tokenizer.decode(renderer.start((USER,), note="Think in 8 tokens."))
    assert text == "<|im_start|>user\nWhat is 12 + 30?\nThink in 8 tokens.<|im_end|>\n<|im_start|>assistant\n<think>"


# --- parse


@pytest.mark.parametrize(
    ("completion", "thinking", "content"),
    [
        ("hm</think>42<|im_end|>", "hm", "42"),
        ("</think>42<|im_end|>", "", "42"),
        ("hm</think>42", "hm", "42"),
        (" hm \n</think>\n\n42 \n<|im_end|>", " hm \n", "\n\n42 \n"),
        ("a</think>b</think>c<|im_end|>", "a", "b</think>c"),
        ("hm</think><|im_end|>", "hm", ""),
        ("42 and no end to it", "42 and no end to it", ""),
        ("42<|im_end|>", "42", ""),
        ("<|im_end|>", "", ""),
        ("", "", ""),
        ("<think>again</think>42<|im_end|>", "again", "42"),
        ("x</think>4<|im_end|>2<|im_end|>", "x", "4<|im_end|>2"),
    ],
)
def test_what_stands_before_the_end_of_the_thought_is_thought_and_the_rest_is_content(
    tokenizer: Any, renderer: Renderer, completion: str, thinking: str, content: str
) -> None:
    message = renderer.parse(renderer.start((USER,)), ids(tokenizer, completion))
    assert message == Message(role="assistant", content=content, thinking=thinking)


@pytest.mark.parametrize(
    ("prompt", "completion", "thinking", "content"),
    [
        ("<|im_start|>assistant\n", "42<|im_end|>", "", "42"),
        ("<|im_start|>assistant\n<think></think>", "42<|im_end|>", "", "42"),
        ("<think>old</think>x<|im_start|>assistant\n", "<think>hm</think>42<|im_end|>", "hm", "42"),
        ("<|im_start|>assistant\n", "so <think>and on", "and on", "so "),
        ("</think>x<think>", "and on", "and on", ""),
        ("", "42", "", "42"),
    ],
)
def test_a_thought_is_open_only_where_the_prompt_or_the_completion_opened_it(
    tokenizer: Any, renderer: Renderer, prompt: str, completion: str, thinking: str, content: str
) -> None:
    message = renderer.parse(ids(tokenizer, prompt), ids(tokenizer, completion))
    assert message == Message(role="assistant", content=content, thinking=thinking)


def test_any_tokens_parse_also_broken_characters(tokenizer: Any, renderer: Renderer) -> None:
    for token in range(len(tokenizer)):
        assert renderer.parse(renderer.start((USER,)), (token, token)).role == "assistant"


# --- the marks around a thought


def test_what_closes_a_thought_is_what_the_template_writes_there() -> None:
    tokenizer = train_tokenizer(TEXTS)
    marks = Renderer(tokenizer).marks("")
    assert marks is not None
    assert [tokenizer.decode([mark]) for mark in (marks.start, marks.end)] == ["<think>", "</think>"]
    assert marks.closing == (marks.end,)
    tokenizer.chat_template = (
        "{% for m in messages %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{{ m.content }}{% endfor %}"
    )
    marks = Renderer(tokenizer).marks("So: ")
    assert marks is not None
    assert tokenizer.decode(marks.closing) == "</think>\n\nSo: "


def test_a_template_that_writes_no_thoughts_closes_them_with_the_mark_alone() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    marks = Renderer(tokenizer).marks("")
    assert marks is not None
    assert marks.closing == (marks.end,)


def test_a_policy_without_marks_of_one_token_has_none() -> None:
    class NoMarks(CharacterTokenizer):
        marks = ("<|im_end|>",)

    assert Renderer(NoMarks()).marks("") is None


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n<think>\nso", True),
        ("<|im_start|>assistant\n<think></think>", False),
        ("<|im_start|>assistant\n", False),
        # A thought of an earlier message that never closed ended with that message.
        ("<think>hm<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_a_prompt_opens_a_thought_only_in_its_last_message(
    tokenizer: Any, renderer: Renderer, prompt: str, opened: bool
) -> None:
    assert renderer.opens_thought(ids(tokenizer, prompt)) is opened
