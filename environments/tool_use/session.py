"""One conversation at the desk: the model's message goes to the tools if it has calls, else to the caller.

The environment plays it while the model talks, and the verifier plays it again from the transcript: the same code, so
the same verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

from environments.tool_use.caller import Caller
from environments.tool_use.desk import BROKEN, TOOLS, Desk, World
from rlvr.tools import Toolbox
from rlvr.types import Message, Reply
from verifiers.tool_dispatch import dispatch


class Session:
    """`reference` is a task's: the world, the caller's script and the names of the tools that the model has."""

    def __init__(self, reference: dict[str, Any]) -> None:
        script = reference["caller"]
        self.desk = Desk(reference["world"], caller=script["id"])
        self.desk.confirmed.update(script.get("confirms", ()))
        self._caller = Caller(script)
        self._toolbox = Toolbox(*(MethodType(TOOLS[name], self.desk) for name in reference["tools"]))

    def answer(self, message: Message) -> Reply:
        """Tool messages, or the caller's words; the end when the caller hangs up."""
        answers = dispatch(message.content, self._toolbox)
        if answers:
            return Reply(messages=answers, done=False)
        said = self._caller.hear(message.content.rpartition("</think>")[2], self.desk)
        if said is None:
            return Reply(done=True)
        return Reply(messages=(Message(role="user", content=said),), done=False)

    def state(self) -> World:
        """All that the desk holds."""
        return self.desk.state()

    def broken_rules(self) -> Sequence[str]:
        """What was done against the policy, in order."""
        return [BROKEN[rule] for rule in self.desk.broken]
