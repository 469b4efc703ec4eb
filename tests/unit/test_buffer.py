"""The staleness bound holds by construction, whatever order groups finish, are dropped, and weights go live in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.buffer import GroupBuffer
from rlvr.errors import RlvrError
from rlvr.tasks import Ticket
from rlvr.types import Group, Task


def make_ticket(number: int) -> Ticket:
    return Ticket(number=number, task=Task(id=f"e/train/{number}", environment="e", prompt=(), reference={}))


def make_group(ticket: Ticket, version: int) -> Group:
    return Group(task=ticket.task, episodes=(), birth_version=version)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    groups_per_batch=st.integers(1, 5),
    max_staleness=st.integers(0, 4),
    straggler_chance=st.floats(0, 0.5),
)
def test_no_group_is_older_than_the_bound_and_the_run_never_locks_up(
    seed: int, groups_per_batch: int, max_staleness: int, straggler_chance: float
) -> None:
    rng = random.Random(seed)
    buffer = GroupBuffer(groups_per_batch=groups_per_batch, max_staleness=max_staleness)
    learner = live = number = idle = 0
    running: list[Ticket] = []
    births: dict[int, int] = {}
    while learner < 12:
        # A random interleaving of what the controller's loops do.
        action = rng.choice(["admit", "finish", "finish", "train", "publish"])
        idle += 1
        if action == "admit" and buffer.num_free:
            ticket = make_ticket(number)
            buffer.admit(ticket, live_version=live)
            births[number] = live
            running.append(ticket)
            number += 1
            idle = 0
        elif action == "finish" and running:
            # Stragglers sit at the front and are passed over most of the time.
            index = -1 if rng.random() < straggler_chance and idle < 200 else rng.randrange(len(running))
            ticket = running.pop(index)
            if rng.random() < 0.2:
                buffer.drop(ticket)
            else:
                buffer.finish(ticket, make_group(ticket, births[ticket.number]), ())
            idle = 0
        elif action == "train" and learner - live <= 1:
            batch = buffer.take_batch(learner)
            if batch is not None:
                assert len(batch) == groups_per_batch
                assert all(learner - births[ready.ticket.number] <= max_staleness for ready in batch)
                learner += 1
                idle = 0
        elif action == "publish" and live < learner:
            live += 1
            buffer.release(live)
            idle = 0
        assert idle < 2000, "locked up"


def test_a_straggler_is_waited_for_only_when_its_bound_is_reached() -> None:
    buffer = GroupBuffer(groups_per_batch=2, max_staleness=1)
    tickets = [make_ticket(number) for number in range(6)]
    for ticket in tickets[:4]:
        buffer.admit(ticket, live_version=0)
    for ticket in tickets[1:3]:
        buffer.finish(ticket, make_group(ticket, 0), ())
    batch = buffer.take_batch(0)
    assert batch is not None
    assert [ready.ticket.number for ready in batch] == [1, 2]
    buffer.release(1)
    for ticket in tickets[4:]:
        buffer.admit(ticket, live_version=1)
        buffer.finish(ticket, make_group(ticket, 1), ())
    buffer.finish(tickets[3], make_group(tickets[3], 0), ())
    assert buffer.num_ready == 3
    assert buffer.take_batch(1) is None, "ticket 0 would be two versions old at the next step"
    buffer.finish(tickets[0], make_group(tickets[0], 0), ())
    batch = buffer.take_batch(1)
    assert batch is not None
    assert [ready.ticket.number for ready in batch] == [0, 3]


def test_slots_stay_taken_until_the_new_weights_are_live() -> None:
    buffer = GroupBuffer(groups_per_batch=1, max_staleness=0)
    ticket = make_ticket(0)
    buffer.admit(ticket, live_version=0)
    buffer.finish(ticket, make_group(ticket, 0), ())
    assert buffer.take_batch(0) is not None
    assert buffer.num_free == 0
    with pytest.raises(RlvrError, match="without a free slot"):
        buffer.admit(make_ticket(1), live_version=0)
    buffer.release(1)
    assert buffer.num_free == 1
