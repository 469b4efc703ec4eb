"""The service desk: an SQLite database in memory, the tools that work on it, and the rules that it notes as broken.

    users      who works here; `status` is active, locked or disabled, `password` is set or temporary
    tickets    `team` is desk, network, hardware or security; `status` is open or closed; `article` lists what was sent
    assets     `status` is in_stock, assigned, retired or lost; `owner` is "" where nobody has it
    rights     "u12:vpn": what a user may do;   approvals   "u12:admin": who said what to that wish
    articles   the knowledge base;              notes       free text on tickets

A tool refuses what makes no sense (an id that does not exist, an asset that another has). It does not refuse what the
policy forbids: to keep the rules is the model's part, and the desk only takes notes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Literal

from rlvr.tools import ToolError

Kind = Literal["laptop", "monitor", "phone"]
Priority = Literal["normal", "high"]
Right = Literal["vpn", "finance", "admin"]
Team = Literal["desk", "network", "hardware", "security"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "users": ("name", "manager", "pin", "status", "password"),
    "tickets": ("user", "subject", "priority", "team", "status", "article"),
    "assets": ("kind", "status", "owner"),
    "rights": ("user", "right"),
    "approvals": ("user", "right", "by", "status"),
    "articles": ("title",),
    "notes": ("ticket", "text"),
}
MAX_WRONG_PINS = 3  # or four digits could be guessed
MAX_ROWS = 20  # that a tool shows
World = dict[str, dict[str, dict[str, str]]]  # table -> id -> column -> value

# The rules that can be broken by a call (policy.py says them to the model), and what is said of a call that did.
BROKEN = {
    "identity": "an account was changed before its owner's identity was verified",
    "own_account": "an account was changed that is not the caller's",
    "approval": "a right was granted without the approval of the person's manager",
    "confirmation": "a ticket was closed before the caller said that it is solved",
    "no_delete": "an asset was deleted",
    "one_of_a_kind": "somebody was given a second asset of a kind",
    "leaver": "an account was disabled, and not on its verified manager's word",
}


class Desk:
    """One episode's desk. `caller` is the user who is on the line, `confirmed` the tickets they called solved."""

    def __init__(self, world: World, *, caller: str) -> None:
        self.caller = caller
        self.confirmed: set[str] = set()
        self.broken: list[str] = []
        self._verified: set[str] = set()
        self._wrong_pins = 0
        # An episode's steps run in different threads, one after the other.
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        for table, columns in COLUMNS.items():
            texts = ", ".join(f'"{column}" TEXT' for column in columns)
            self._db.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, {texts})")
            for key, row in world.get(table, {}).items():
                self._insert(table, key, **row)

    def state(self) -> World:
        """All tables, as they are now."""
        return {table: dict(self._select(table)) for table in COLUMNS}

    # ---- tools that read

    def find_user(self, name: str) -> list[dict[str, str]]:
        """Find people by name."""
        return self._shown("users", ("name", "manager", "status"), "instr(lower(name), lower(?))", name)

    def verify_identity(self, user: str, pin: str) -> str:
        """Check the PIN that the caller told."""
        right = self._get("users", user)["pin"] == pin
        self._wrong_pins += not right
        if self._wrong_pins >= MAX_WRONG_PINS:
            raise ToolError("too many wrong PINs; nobody can be verified any more")
        if right:
            self._verified.add(user)
        return "verified" if right else "not verified"

    def find_tickets(self, user: str) -> list[dict[str, str]]:
        """The tickets of a user."""
        self._get("users", user)
        return self._shown("tickets", COLUMNS["tickets"], "user = ?", user)

    def find_assets(self, kind: Kind | None = None, owner: str | None = None) -> list[dict[str, str]]:
        """Assets of a kind, or of an owner (a user; "" for nobody)."""
        return self._shown(
            "assets", COLUMNS["assets"], "kind = coalesce(?, kind) AND owner = coalesce(?, owner)", kind, owner
        )

    def get_rights(self, user: str) -> dict[str, Any]:
        """The rights of a user, and who approved or denied which."""
        self._get("users", user)
        return {
            "rights": [row["right"] for _, row in self._select("rights", "user = ?", user)],
            "approvals": self._shown("approvals", ("right", "by", "status"), "user = ?", user),
        }

    def search_articles(self, word: str) -> list[dict[str, str]]:
        """Find articles of the knowledge base."""
        return self._shown("articles", ("title",), "instr(lower(title), lower(?))", word)

    # ---- tools that change accounts

    def unlock_account(self, user: str) -> str:
        """Unlock an account."""
        if self._get("users", user)["status"] != "locked":
            raise ToolError(f"the account of {user} is not locked")
        self._keep_account_rules(user)
        self._set("users", user, status="active")
        return "unlocked"

    def reset_password(self, user: str) -> str:
        """Give an account a temporary password."""
        self._get("users", user)
        self._keep_account_rules(user)
        self._set("users", user, password="temporary")
        return "the temporary password was sent"

    def disable_account(self, user: str) -> str:
        """Disable the account of somebody who leaves."""
        manager = self._get("users", user)["manager"]
        self._keep("leaver", self.caller == manager and manager in self._verified)
        self._set("users", user, status="disabled")
        return "disabled"

    def grant_right(self, user: str, right: Right) -> str:
        """Grant a right."""
        manager = self._get("users", user)["manager"]
        key = f"{user}:{right}"
        if self._find("rights", key):
            raise ToolError(f"{user} has the right {right} already")
        approval = self._find("approvals", key)
        self._keep("approval", approval is not None and (approval["by"], approval["status"]) == (manager, "approved"))
        self._insert("rights", key, user=user, right=right)
        return "granted"

    def revoke_right(self, user: str, right: Right) -> str:
        """Take a right back."""
        self._get("rights", f"{user}:{right}")
        self._db.execute("DELETE FROM rights WHERE id = ?", (f"{user}:{right}",))
        return "revoked"

    def request_approval(self, user: str, right: Right) -> str:
        """Ask a person's manager to approve a right."""
        manager = self._get("users", user)["manager"]
        self._db.execute("DELETE FROM approvals WHERE id = ?", (f"{user}:{right}",))
        self._insert("approvals", f"{user}:{right}", user=user, right=right, by=manager, status="asked")
        return f"{manager} was asked"

    # ---- tools that change assets

    def assign_asset(self, asset: str, user: str) -> str:
        """Hand out an asset that is in stock."""
        row = self._get("assets", asset)
        self._get("users", user)
        if row["status"] != "in_stock":
            raise ToolError(f"{asset} is {row['status']}, not in stock")
        self._keep("one_of_a_kind", not self._select("assets", "owner = ? AND kind = ?", user, row["kind"]))
        self._set("assets", asset, status="assigned", owner=user)
        return "assigned"

    def return_asset(self, asset: str) -> str:
        """Take an asset back into stock."""
        if self._get("assets", asset)["status"] != "assigned":
            raise ToolError(f"nobody has {asset}")
        self._set("assets", asset, status="in_stock", owner="")
        return "in stock"

    def retire_asset(self, asset: str) -> str:
        """Mark an asset as retired."""
        self._get("assets", asset)
        self._set("assets", asset, status="retired", owner="")
        return "retired"

    def report_lost(self, asset: str) -> str:
        """Mark an asset as lost."""
        self._get("assets", asset)
        self._set("assets", asset, status="lost", owner="")
        return "marked as lost"

    def delete_asset(self, asset: str) -> str:
        """Delete an asset."""
        self._get("assets", asset)
        self._keep("no_delete", False)
        self._db.execute("DELETE FROM assets WHERE id = ?", (asset,))
        return "deleted"

    # ---- tools that change tickets

    def create_ticket(self, user: str, subject: str, priority: Priority) -> str:
        """Open a ticket."""
        self._get("users", user)
        [last] = self._db.execute("SELECT max(CAST(substr(id, 3) AS INTEGER)) FROM tickets").fetchone()
        key = f"T-{(last or 100) + 1}"
        self._insert(
            "tickets", key, user=user, subject=subject, priority=priority, team="desk", status="open", article=""
        )
        return key

    def escalate_ticket(self, ticket: str, team: Team) -> str:
        """Hand a ticket to a team."""
        self._open_ticket(ticket)
        self._set("tickets", ticket, team=team)
        return f"handed to {team}"

    def send_article(self, ticket: str, article: str) -> str:
        """Send an article to the ticket's user."""
        sent = self._open_ticket(ticket)["article"].split()
        self._get("articles", article)
        if article in sent:
            raise ToolError(f"{article} was sent already")
        self._set("tickets", ticket, article=" ".join([*sent, article]))
        return "sent"

    def add_note(self, ticket: str, text: str) -> str:
        """Write a note on a ticket."""
        self._get("tickets", ticket)
        [count] = self._db.execute("SELECT count(*) FROM notes").fetchone()
        self._insert("notes", f"N-{count + 1}", ticket=ticket, text=text)
        return "noted"

    def close_ticket(self, ticket: str) -> str:
        """Close a ticket."""
        self._open_ticket(ticket)
        self._keep("confirmation", ticket in self.confirmed)
        self._set("tickets", ticket, status="closed")
        return "closed"

    # ---- rules and rows

    def _keep(self, rule: str, kept: bool) -> None:
        if not kept:
            self.broken.append(rule)

    def _keep_account_rules(self, user: str) -> None:
        self._keep("identity", user in self._verified)
        self._keep("own_account", user == self.caller)

    def _open_ticket(self, ticket: str) -> dict[str, str]:
        row = self._get("tickets", ticket)
        if row["status"] != "open":
            raise ToolError(f"ticket {ticket} is closed")
        return row

    def _get(self, table: str, key: str) -> dict[str, str]:
        row = self._find(table, key)
        if row is None:
            raise ToolError(f"{table} has no {key[:40]!r}")
        return row

    def _find(self, table: str, key: str) -> dict[str, str] | None:
        return next((row for _, row in self._select(table, "id = ?", key)), None)

    def _select(self, table: str, where: str = "1", *values: str | None) -> list[tuple[str, dict[str, str]]]:
        rows = self._db.execute(f"SELECT * FROM {table} WHERE {where}", values)
        return [(row["id"], {column: row[column] for column in COLUMNS[table]}) for row in rows]

    def _shown(self, table: str, columns: Iterable[str], where: str, *values: str | None) -> list[dict[str, str]]:
        chosen = tuple(columns)
        rows = self._select(table, f"{where} LIMIT {MAX_ROWS}", *values)
        return [{"id": key} | {name: row[name] for name in chosen} for key, row in rows]

    def _insert(self, table: str, key: str, **row: str) -> None:
        values = [key, *(row[column] for column in COLUMNS[table])]
        self._db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)

    def _set(self, table: str, key: str, **row: str) -> None:
        columns = ", ".join(f"{column} = ?" for column in row)
        self._db.execute(f"UPDATE {table} SET {columns} WHERE id = ?", (*row.values(), key))


TOOLS = {
    name: function
    for name, function in vars(Desk).items()
    if callable(function) and not name.startswith("_") and name != "state"
}
READS = ("find_user", "verify_identity", "find_tickets", "find_assets", "get_rights", "search_articles")
