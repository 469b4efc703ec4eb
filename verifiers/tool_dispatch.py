"""Carries out the calls that stand in a message: read by `tool_forms`, typed by `tool_calls`, run by a toolbox.

What an environment with tools writes in its `step`:

    answers = dispatch(message.content, self.toolbox)
    return Reply(messages=answers, done=not answers)
"""

from __future__ import annotations

from rlvr.tools import Toolbox
from rlvr.types import Message
from verifiers.tool_calls import checked, validators
from verifiers.tool_forms import FormError, read


def dispatch(content: str, toolbox: Toolbox) -> tuple[Message, ...]:
    """One tool message a call, in the order of the calls; none where `content` holds no call.

    What cannot be read as calls is answered by one message that says why, and none of it is carried out. A single call
    that its tool does not take is answered by an error, and the others go on. Raises what a tool raises, except
    `ToolError`.
    """
    try:
        calls = read(content)
    except FormError as error:
        return (_answer(f"error: {error}"),)
    answers = []
    for call in calls:
        try:
            # A text-only form (XML) gets its types from the schema; the toolbox checks JSON by itself.
            typed = call if call.typed else checked(call, validators(toolbox.specs))
        except FormError as error:
            answers.append(_answer(f"error: {error}"))
        else:
            answers.append(_answer(toolbox.call(typed.name, typed.arguments)))
    return tuple(answers)


def _answer(text: str) -> Message:
    return Message(role="tool", content=text)
