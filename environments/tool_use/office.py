"""What a scenario is made of: the people and things of a small office, drawn from a seed, and what is said and done."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from environments.tool_use.desk import COLUMNS, World
from rlvr.types import Message

_FIRST = (
    "Ada Alan Amir Anna Bela Carl Cleo Dana Dora Emil Enzo Faye Finn Gita Gus Hana Hugo Ida Ines Ivan Jana Joel Kaya "
    "Kurt Lara Levi Lina Luca Maja Milo Mina Nils Nora Olaf Otto Paul Pia Ravi Rosa Sami Sara Theo Uma Vera Wim Yara"
)
_LAST = (
    "Abel Adler Bauer Berg Blum Brandt Costa Cruz Dahl Diaz Ek Engel Faber Frank Garcia Haas Holm Huber Ito Jansen "
    "Kaur Keller Klein Koch Lang Lopez Lund Maier Marin Meyer Moser Novak Okoye Olsen Park Patel Roth Rossi Sato Silva "
    "Simon Stein Sun Tanaka Vogel Wagner Weber Wolf Yilmaz Zhou"
)

FIRST, LAST = _FIRST.split(), _LAST.split()
Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """A conversation that must not earn a point. `breaks` names a rule of the desk, or is "" for a wrong end state."""

    breaks: str
    says: Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One call to the desk. Each conversation in `golds` ends in an accepted state; the first is the task's gold."""

    opening: str
    note: str = ""  # a line of the policy for this call alone
    rules: tuple[str, ...]
    tools: tuple[str, ...]
    world: World
    caller: dict[str, Any]
    golds: tuple[Conversation, ...]
    slips: tuple[Slip, ...]


@dataclass(slots=True)
class Office:
    """Builds a world; every id and name is new in it."""

    rng: random.Random
    world: World = field(default_factory=lambda: {table: {} for table in COLUMNS})

    def person(self, *, manager: str = "", status: str = "active") -> str:
        names = {row["name"] for row in self.world["users"].values()}
        while (name := f"{self.rng.choice(FIRST)} {self.rng.choice(LAST)}") in names:
            pass
        pin = str(self.rng.randint(1000, 9999))
        return self._add("users", "u", 99, name=name, manager=manager, pin=pin, status=status, password="set")

    def asset(self, kind: str, owner: str = "") -> str:
        status = "assigned" if owner else "in_stock"
        return self._add("assets", "A-", 999, kind=kind, status=status, owner=owner)

    def ticket(self, user: str, subject: str) -> str:
        row = {"user": user, "subject": subject, "priority": "normal", "team": "desk", "status": "open", "article": ""}
        return self._add("tickets", "T-", 999, **row)

    def article(self, title: str) -> str:
        return self._add("articles", "KB-", 99, title=title)

    def right(self, user: str, right: str) -> None:
        self.world["rights"][f"{user}:{right}"] = {"user": user, "right": right}

    def approval(self, user: str, right: str, *, by: str, status: str = "approved") -> None:
        self.world["approvals"][f"{user}:{right}"] = {"user": user, "right": right, "by": by, "status": status}

    def name(self, user: str) -> str:
        return self.world["users"][user]["name"]

    def pin(self, user: str) -> str:
        return self.world["users"][user]["pin"]

    def staff(self) -> tuple[str, str, str]:
        """A caller, their manager and a colleague, with things of their own, so that there is something to mix up."""
        manager = self.person()
        caller, colleague = self.person(manager=manager), self.person(manager=manager)
        self.asset("laptop", colleague)
        self.asset("phone", manager)
        self.right(manager, "finance")
        self.ticket(colleague, "slow laptop")
        return caller, manager, colleague

    def _add(self, table: str, prefix: str, last: int, **row: str) -> str:
        while (key := f"{prefix}{self.rng.randint(10 ** (len(str(last)) - 1), last)}") in self.world[table]:
            pass
        self.world[table][key] = row
        return key


def call(tool: str, /, *, because: str = "", **arguments: str) -> Message:
    """An assistant's message that holds one call."""
    text = json.dumps({"name": tool, "arguments": arguments})
    return Message(role="assistant", content=f"<tool_call>{text}</tool_call>", thinking=because)


def say(text: str) -> Message:
    """An assistant's message that the caller reads."""
    return Message(role="assistant", content=text)


BYE = say("Goodbye.")


def slip(breaks: str, *says: Message) -> Slip:
    """`says`, and goodbye."""
    return Slip(breaks=breaks, says=(*says, BYE))


def golds(*conversations: Sequence[Message]) -> tuple[Conversation, ...]:
    """Each conversation, and goodbye."""
    return tuple((*conversation, BYE) for conversation in conversations)
