"""The caller: a person with a script, who knows what it knows and tells it only when asked.

    {"id": "u12",
     "facts": [{"words": ["pin"], "says": "My PIN is 4711."}],
     "later": ["Actually, I need a monitor, not a phone."],         said one by one, at the latest before goodbye
     "confirms": ["T-104"],                                         tickets that the first message called solved
     "solved": {"ticket": "T-104", "when": {"users": {"u12": {"status": "active"}}}, "yes": "...", "no": "..."}}

What the model writes is searched for words, so the same words get the same answer: a script, not a model. Asked whether
it is solved, the caller looks at the world: yes where `when` holds in it.
"""

from __future__ import annotations

import re
from typing import Any

from environments.tool_use.desk import Desk

SOLVED = ("solved", "resolved", "fixed", "work", "confirm")
GOODBYE = "goodbye"


class Caller:
    """One episode's caller."""

    def __init__(self, script: dict[str, Any]) -> None:
        self._facts = script.get("facts", [])
        self._later = list(script.get("later", []))
        self._solved: dict[str, Any] = script.get("solved", {})

    def hear(self, text: str, desk: Desk) -> str | None:
        """What the caller says to `text`; `None` when they hang up."""
        said = [fact["says"] for fact in self._facts if _mentions(text, fact["words"])]
        if self._solved and _mentions(text, SOLVED):
            said.append(self._judge(desk))
        if said:
            return " ".join(said)
        if self._later:
            return str(self._later.pop(0))
        return None if _mentions(text, (GOODBYE,)) else "I am listening."

    def _judge(self, desk: Desk) -> str:
        solved = self._solved
        if not _holds(desk.state(), solved["when"]):
            return str(solved["no"])
        desk.confirmed.add(solved["ticket"])
        return str(solved["yes"])


def _mentions(text: str, words: tuple[str, ...] | list[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE) for word in words)


def _holds(state: Any, wanted: Any) -> bool:
    """Whether all that `wanted` names is so in `state`."""
    if not isinstance(wanted, dict):
        return bool(state == wanted)
    return isinstance(state, dict) and all(key in state and _holds(state[key], wanted[key]) for key in wanted)
