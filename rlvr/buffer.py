"""Slots: how asynchrony stays within its staleness bound, by construction and not by filtering afterwards.

There are `(max_staleness + 1) * groups_per_batch` slots. A task takes one when it is admitted, *born* under the version
that is live in every engine. The slot is free again when its group was trained on **and** the weights of that step are
live, or when the group was dropped.

Slots alone bound how much is under way, not how old it gets: a straggler could sit in its slot while the others turn
over. So a batch is also refused when what it leaves behind could no longer be consumed in time. A group born under
version `b` must be consumed at a learner version `<= b + max_staleness`; each version consumes `groups_per_batch`
groups. At learner version `v` a batch is admissible iff for every `k >= 0` at most `k * groups_per_batch` of the groups
that remain are born at or before `v - max_staleness + k` (Hall's condition for earliest-deadline-first). The learner
waits for a straggler when, and only when, that fails.

Since a dropped group's slot is taken over by a younger one, and released slots by groups of the then live version, the
condition holds again at the next version whatever happens: the learner never has to give up a group for its age.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rlvr.errors import RlvrError
from rlvr.tasks import Ticket
from rlvr.types import Group, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A judged group that waits to be trained on, and what is learned from it."""

    ticket: Ticket
    group: Group
    samples: tuple[Sample, ...]


class GroupBuffer:
    """Pure bookkeeping; the controller calls it from one event loop."""

    def __init__(self, *, groups_per_batch: int, max_staleness: int) -> None:
        self._groups_per_batch = groups_per_batch
        self._max_staleness = max_staleness
        self._num_slots = (max_staleness + 1) * groups_per_batch
        self._births: dict[int, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._ready: dict[int, Ready] = {}
        self._held: Counter[int] = Counter()

    @property
    def num_free(self) -> int:
        """How many tasks may be admitted now."""
        return self._num_slots - len(self._births) - self._held.total()

    @property
    def num_ready(self) -> int:
        """Judged groups that wait."""
        return len(self._ready)

    @property
    def pending(self) -> list[Ticket]:
        """Admitted and neither trained nor dropped, in the order of their numbers."""
        return [self._tickets[number] for number in sorted(self._tickets)]

    def admit(self, ticket: Ticket, *, live_version: int) -> None:
        """Take a slot. Raises when none is free."""
        if self.num_free <= 0:
            raise RlvrError(f"ticket {ticket.number} was admitted without a free slot of {self._num_slots}")
        self._births[ticket.number] = live_version
        self._tickets[ticket.number] = ticket

    def finish(self, ticket: Ticket, group: Group, samples: tuple[Sample, ...]) -> None:
        """The group is judged and worth training on."""
        self._ready[ticket.number] = Ready(ticket=ticket, group=group, samples=samples)

    def drop(self, ticket: Ticket) -> None:
        """The group will not be trained on; its slot is free at once."""
        del self._births[ticket.number], self._tickets[ticket.number]
        self._ready.pop(ticket.number, None)

    def take_batch(self, learner_version: int) -> list[Ready] | None:
        """The oldest ready groups, if they make an admissible batch; their slots stay taken until `release`."""
        if len(self._ready) < self._groups_per_batch:
            return None
        oldest = sorted(self._ready, key=lambda number: (self._births[number], number))[: self._groups_per_batch]
        if not self._admissible(set(oldest), learner_version):
            return None
        batch = [self._ready.pop(number) for number in sorted(oldest)]
        for ready in batch:
            del self._births[ready.ticket.number], self._tickets[ready.ticket.number]
        self._held[learner_version + 1] += len(batch)
        return batch

    def release(self, live_version: int) -> None:
        """Weights of `live_version` are in every engine: the slots of the batches behind it are free."""
        for version in [version for version in self._held if version <= live_version]:
            del self._held[version]

    def _admissible(self, batch: set[int], learner_version: int) -> bool:
        remaining = Counter(birth for number, birth in self._births.items() if number not in batch)
        overdue = learner_version - self._max_staleness
        born_by_then = 0
        for birth in sorted(remaining):
            born_by_then += remaining[birth]
            if born_by_then > max(0, birth - overdue) * self._groups_per_batch:
                return False
        return True
