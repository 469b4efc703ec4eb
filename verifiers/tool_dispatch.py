"""Carries out the calls that stand in a message: read by `tool_forms`, typed by `tool_calls`, run by a toolbox.

What an environment with tools writes in its `step`:

    answers = dispatch(message.content, self.toolbox)
    return Reply(messages=answers, done=not answers)
"""

from __future__ import annotations

from rlvr.tools import Toolbox, ToolError
from rlvr.types import Message
from verifiers import tool_schema
from verifiers.tool_forms import Call, FormError, read


def dispatch(content: str, toolbox: Toolbox) -> tuple[Message, ...]:
    """One tool message a call, in the order of the calls; none where `content` holds no call.

    The calls of a message were written before any was answered: after one that fails, the others are not carried out,
    so nothing is gained by trying everything at once. What cannot be read as calls is answered by one message that says
    why, and none of it is carried out. Raises what a tool raises, except `ToolError`.
    """
    try:
        calls = read(content)
    except FormError as error:
        return (_answer(f"error: {error}"),)
    answers: list[Message] = []
    failed = False
    for call in calls:
        try:
            text = "error: not carried out, because a call before it failed" if failed else _call(call, toolbox)
        except (FormError, ToolError) as error:
            failed, text = True, f"error: {error}"
        answers.append(_answer(text))
    return tuple(answers)


def _call(call: Call, toolbox: Toolbox) -> str:
    if not call.typed:  # a form that holds text only (XML): the tool's schema says what the text means
        (call,) = tool_schema.load(toolbox.specs).check([call])
    return toolbox.call(call.name, call.arguments)


def _answer(text: str) -> Message:
    return Message(role="tool", content=text)
