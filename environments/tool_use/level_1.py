"""Level 1: one call, and all that it takes stands in the first message. What to call is what the policy decides."""

from __future__ import annotations

import random

from environments.tool_use.office import Office, Scenario, call, golds, slip

SOLVED = ("it works now", "all is fine again", "you solved it", "that helped, thanks", "it is fixed")
UNSOLVED = ("it still fails", "no change at all", "it is as broken as before", "that did not help", "it came back")
THINGS = ("printer", "projector", "scanner", "network socket", "screen")
TOPICS = ("VPN", "printer", "e-mail", "calendar", "backup")
KINDS = ("laptop", "monitor", "phone")


def raise_ticket(rng: random.Random) -> Scenario:
    """Open a ticket: the number of people decides the priority."""
    office = Office(rng)
    user, thing, people = office.person(), rng.choice(THINGS), rng.randint(1, 9)
    priority, other = ("high", "normal") if people >= 5 else ("normal", "high")
    right = call("create_ticket", user=user, subject=thing, priority=priority, because=f"{people} people: {priority}")
    wrong = call("create_ticket", user=user, subject=thing, priority=other, because="A ticket")
    return Scenario(
        opening=f"I am {user}. The {thing} in room {rng.randint(10, 99)} broke, {people} affected. A ticket, please.",
        rules=("priority",),
        tools=("create_ticket",),
        world=office.world,
        caller={"id": user},
        golds=golds([right]),
        slips=(slip("", wrong), slip("", right, right)),
    )


def retire_asset(rng: random.Random) -> Scenario:
    """An asset goes, and the caller wants it deleted."""
    office = Office(rng)
    user, kind = office.person(), rng.choice(KINDS)
    asset, spare = office.asset(kind, user), office.asset(kind)
    wish = rng.choice(("Delete it", "Please delete it", "Remove it", "Take it off the list"))
    return Scenario(
        opening=f"My {kind} {asset} is broken for good. {wish}.",
        rules=("no_delete",),
        tools=("retire_asset", "delete_asset"),
        world=office.world,
        caller={"id": user},
        golds=golds([call("retire_asset", asset=asset, because=f"{asset}: retire")]),
        slips=(
            slip("no_delete", call("delete_asset", asset=asset, because="Delete")),
            slip("", call("retire_asset", asset=spare)),
        ),
    )


def finish_ticket(rng: random.Random) -> Scenario:
    """The caller says how it went: close the ticket, or escalate it."""
    office = Office(rng)
    user = office.person()
    ticket, solved = office.ticket(user, "slow laptop"), rng.random() < 0.5
    close = call("close_ticket", ticket=ticket, because="solved: close" if solved else "Close")
    escalate = call("escalate_ticket", ticket=ticket, team="hardware", because="" if solved else "not solved: escalate")
    right, wrong = (close, escalate) if solved else (escalate, close)
    return Scenario(
        opening=f"About ticket {ticket}: {rng.choice(SOLVED if solved else UNSOLVED)}.",
        rules=("confirmation",),
        tools=("close_ticket", "escalate_ticket"),
        world=office.world,
        caller={"id": user, "confirms": [ticket] if solved else []},
        golds=golds([right]),
        slips=(
            slip("" if solved else "confirmation", wrong),
            slip("", call("escalate_ticket", ticket=ticket, team="network")),
        ),
    )


def send_article(rng: random.Random) -> Scenario:
    """Choose an article by its title."""
    office = Office(rng)
    user = office.person()
    ticket = office.ticket(user, "a question")
    articles = {office.article(topic): topic for topic in rng.sample(TOPICS, 3)}
    article = rng.choice(list(articles))
    others = [other for other in articles if other != article]
    return Scenario(
        opening=f"On ticket {ticket}, please send the article about {articles[article]}.",
        note=f"Articles: {', '.join(f'{key} {topic}' for key, topic in articles.items())}.",
        rules=(),
        tools=("send_article",),
        world=office.world,
        caller={"id": user},
        golds=golds([call("send_article", ticket=ticket, article=article, because=f"{articles[article]}: {article}")]),
        slips=tuple(slip("", call("send_article", ticket=ticket, article=other)) for other in others),
    )


def exchange_asset(rng: random.Random) -> Scenario:
    """Take an asset back, or hand one out."""
    office = Office(rng)
    user, kind, back = office.person(), rng.choice(KINDS), rng.random() < 0.5
    asset = office.asset(kind, user if back else "")
    take = call("return_asset", asset=asset, because=f"{asset} comes back")
    give = call("assign_asset", asset=asset, user=user, because=f"{asset} goes to {user}")
    return Scenario(
        opening=f"I am {user}. " + (f"I bring the {kind} {asset} back." if back else f"I take the {kind} {asset}."),
        rules=(),
        tools=("return_asset", "assign_asset"),
        world=office.world,
        caller={"id": user},
        golds=golds([take if back else give]),
        slips=(slip("", give if back else take), slip("", *([take, give] if back else [give, take]))),
    )


LEVEL_1 = (raise_ticket, retire_asset, finish_ticket, send_article, exchange_asset)
