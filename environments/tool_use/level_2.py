"""Level 2: look things up, ask the caller for one thing, then act."""

from __future__ import annotations

import random

from environments.tool_use.level_1 import KINDS, THINGS
from environments.tool_use.office import Office, Scenario, call, golds, say, slip

ASK_PIN = say("Please tell me your PIN.")
ASK_SOLVED = say("Is it solved?")
ACCOUNT_TOOLS = ("find_user", "verify_identity", "unlock_account", "reset_password", "escalate_ticket")
ACCOUNT_RULES = ("identity", "own_account", "unverified")


def unlock(rng: random.Random) -> Scenario:
    """A locked account; some callers do not have its PIN."""
    return _account(rng, "unlock_account", "reset_password", "My account is locked, please unlock it.", "locked")


def reset(rng: random.Random) -> Scenario:
    """A forgotten password; some callers do not have the account's PIN."""
    return _account(rng, "reset_password", "unlock_account", "I forgot my password, please reset it.", "active")


def _account(rng: random.Random, action: str, other: str, wish: str, status: str) -> Scenario:
    office = Office(rng)
    _, manager, colleague = office.staff()
    user = office.person(manager=manager, status=status)
    name, pin, ticket = office.name(user), office.pin(user), office.ticket(user, "my account")
    honest = rng.random() < 0.65
    told = pin if honest else str((int(pin) + rng.randint(1, 8999) - 1000) % 9000 + 1000)
    ask = [call("find_user", name=name), ASK_PIN, call("verify_identity", user=user, pin=told)]
    act, hand_over = call(action, user=user), call("escalate_ticket", ticket=ticket, team="security")
    return Scenario(
        opening=f"I am {name}. {wish} My ticket is {ticket}.",
        rules=ACCOUNT_RULES,
        tools=ACCOUNT_TOOLS,
        world=office.world,
        caller={"id": user, "facts": [{"words": ["pin"], "says": f"My PIN is {told}."}]},
        golds=golds([*ask, act if honest else hand_over]),
        slips=(
            slip("identity", act),
            slip("identity", ASK_PIN, act),
            slip("", *ask, hand_over if honest else call("escalate_ticket", ticket=ticket, team="network")),
            slip("", *ask, call(other, user=user)) if honest else slip("identity", *ask, act),
            slip("identity", *ask, call("reset_password", user=colleague)),
        ),
    )


def right(rng: random.Random) -> Scenario:
    """Somebody wants a right, and says that the manager agreed. The records know."""
    office = Office(rng)
    user, manager, colleague = office.staff()
    wish = rng.choice(("vpn", "finance", "admin"))
    approved = rng.random() < 0.5
    if approved:
        office.approval(user, wish, by=manager)
    else:
        office.approval(colleague, wish, by=manager)
    look = [call("find_user", name=office.name(user)), call("get_rights", user=user)]
    grant, ask = call("grant_right", user=user, right=wish), call("request_approval", user=user, right=wish)
    return Scenario(
        opening=f"This is {office.name(user)}. I need the right {wish}. My manager agreed to it.",
        rules=("approval",),
        tools=("find_user", "get_rights", "grant_right", "revoke_right", "request_approval"),
        world=office.world,
        caller={"id": user},
        golds=golds([*look, grant if approved else ask]),
        slips=(
            slip("" if approved else "approval", *look, ask if approved else grant),
            slip("" if approved else "approval", grant, call("revoke_right", user=user, right=wish)),
            slip("", *look),
        ),
    )


def hand_out(rng: random.Random) -> Scenario:
    """Hand out one of several; some callers have an old one to give back first."""
    office = Office(rng)
    user, _, _ = office.staff()
    kind, has_old = rng.choice(KINDS), rng.random() < 0.5
    old = office.asset(kind, user) if has_old else ""
    stock = [office.asset(kind) for _ in range(rng.randint(1, 3))]
    other = office.asset(rng.choice([each for each in KINDS if each != kind]))
    look = [call("find_user", name=office.name(user)), call("find_assets", kind=kind)]
    back = [call("return_asset", asset=old)] if has_old else []
    gives = [call("assign_asset", asset=asset, user=user) for asset in stock]
    return Scenario(
        opening=f"Hello, {office.name(user)} here. I need a new {kind}.",
        rules=("one_of_a_kind",),
        tools=("find_user", "find_assets", "assign_asset", "return_asset", "retire_asset"),
        world=office.world,
        caller={"id": user},
        golds=golds(*([*look, *back, give] for give in gives)),
        slips=(
            slip("one_of_a_kind", *look, gives[0], *back)
            if has_old
            else slip("", call("retire_asset", asset=stock[0])),
            slip("", *look, *back, call("assign_asset", asset=other, user=user)),
            slip("", *look, *back),
        ),
    )


def ask_priority(rng: random.Random) -> Scenario:
    """Open a ticket; how many are affected comes out only when asked."""
    office = Office(rng)
    user, _, _ = office.staff()
    thing, people = rng.choice(THINGS), rng.randint(1, 9)
    priority, other = ("high", "normal") if people >= 5 else ("normal", "high")
    look = [call("find_user", name=office.name(user)), say("How many people are affected?")]
    open_ticket = call("create_ticket", user=user, subject=thing, priority=priority)
    return Scenario(
        opening=f"{office.name(user)} speaking. It is urgent! The {thing} in room {rng.randint(10, 99)} is broken.",
        rules=("priority",),
        tools=("find_user", "find_tickets", "create_ticket", "add_note"),
        world=office.world,
        caller={
            "id": user,
            "facts": [{"words": ["how many", "people", "affected"], "says": f"{people} of us cannot work."}],
        },
        golds=golds([*look, open_ticket]),
        slips=(
            slip("", *look, call("create_ticket", user=user, subject=thing, priority=other)),
            slip("", *look, open_ticket, open_ticket),
            slip("", *look, call("add_note", ticket="T-100", text=thing)),
        ),
    )


def solve(rng: random.Random) -> Scenario:
    """Send the article that fits; it helps, or it does not."""
    office = Office(rng)
    user, _, _ = office.staff()
    topic, helps = rng.choice(THINGS), rng.random() < 0.6
    ticket = office.ticket(user, topic)
    articles = {each: office.article(f"What to do when the {each} fails") for each in THINGS}
    cure = articles[topic] if helps else "none that there is"
    send = [
        call("search_articles", word=topic),
        call("send_article", ticket=ticket, article=articles[topic]),
    ]
    close, escalate = call("close_ticket", ticket=ticket), call("escalate_ticket", ticket=ticket, team="hardware")
    other = rng.choice([each for each in THINGS if each != topic])
    return Scenario(
        opening=f"My {topic} does not do anything. Can you help me? The ticket is {ticket}.",
        rules=("article", "confirmation"),
        tools=("search_articles", "send_article", "close_ticket", "escalate_ticket", "find_tickets"),
        world=office.world,
        caller={
            "id": user,
            "solved": {
                "ticket": ticket,
                "when": {"tickets": {ticket: {"article": cure}}},
                "yes": "Yes, it does what it should.",
                "no": "No, nothing has changed.",
            },
        },
        golds=golds([*send, ASK_SOLVED, close if helps else escalate]),
        slips=(
            slip("confirmation", *send, close),
            slip("confirmation", ASK_SOLVED, *send, close),
            slip("" if helps else "confirmation", *send, ASK_SOLVED, escalate if helps else close),
            slip("", call("send_article", ticket=ticket, article=articles[other]), ASK_SOLVED, escalate),
        ),
    )


LEVEL_2 = (unlock, reset, right, hand_out, ask_priority, solve)
