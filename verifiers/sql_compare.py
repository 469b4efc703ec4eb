"""Whether rows are what a reference allows: groups of rows in order, the rows of one group in any order.

no ORDER BY             one group of all rows
ORDER BY                a group for each run of ties
LIMIT, OFFSET           a window over the groups' rows; of a group that it cuts, any rows of the group will do
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from verifiers.sql_run import Row, Value


@dataclass(frozen=True)
class Rules:
    """When two values are the same. By default 1 is 1.0, '1' is not 1, NULL is NULL only."""

    relative: float = 1e-9
    absolute: float = 0.0
    null_is_empty: bool = False  # NULL, 0 and '' are the same
    ignore_case: bool = False


@dataclass(frozen=True)
class Expectation:
    """What a result must be: see the module. `size` is how many rows it has."""

    groups: list[list[Row]]
    offset: int = 0
    limit: int | None = None

    @property
    def size(self) -> int:
        rows = max(sum(map(len, self.groups)) - self.offset, 0)
        return rows if self.limit is None else min(rows, self.limit)


def difference(expected: Expectation, rows: list[Row], rules: Rules) -> str | None:
    """How `rows` differ from what is expected, for a person to read; `None` where they do not."""
    if len(rows) != expected.size:
        return f"{len(rows)} rows, expected {expected.size}"
    start, stop = expected.offset, expected.offset + expected.size
    position = 0
    for group in expected.groups:
        low, high = max(position, start), min(position + len(group), stop)
        position += len(group)
        if low < high:
            missing = _unmatched(group, rows[low - start : high - start], rules)
            if missing is not None:
                place = "" if len(expected.groups) == 1 else f" at place {low - start + 1}"
                return f"the row {_brief(missing)} is not expected{place}"
    return None


def same(a: Value, b: Value, rules: Rules) -> bool:
    """Whether two normal values are the same."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        return math.isclose(a, b, rel_tol=rules.relative, abs_tol=rules.absolute)
    return type(a) is type(b) and a == b


def _normal(value: Value, rules: Rules) -> Value:
    """Values that are exactly the same become equal in Python, and only those."""
    if rules.null_is_empty and (value is None or value == 0 or value == ""):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if rules.ignore_case and isinstance(value, str):
        return value.lower()
    return value


def _unmatched(group: list[Row], rows: list[Row], rules: Rules) -> Row | None:
    """A row that has no partner of its own in `group`; `None` where all have one."""
    wanted = Counter(tuple(_normal(value, rules) for value in row) for row in rows)
    offered = Counter(tuple(_normal(value, rules) for value in row) for row in group)
    rest, spare = list((wanted - offered).elements()), list((offered - wanted).elements())
    if not rest:
        return None
    # Only numbers that differ in their last places are left to pair: sorted, partners stand at the same place, unless
    # rounding swaps rows that agree in their first columns; then each row looks for its partner.
    rest.sort(key=_sort_key)
    spare.sort(key=_sort_key)
    if len(rest) == len(spare) and all(map(lambda a, b: _same_row(a, b, rules), rest, spare)):
        return None
    for row in rest:
        partner = next((i for i, other in enumerate(spare) if _same_row(row, other, rules)), None)
        if partner is None:
            return row
        spare.pop(partner)
    return None


def _same_row(a: Row, b: Row, rules: Rules) -> bool:
    return len(a) == len(b) and all(same(x, y, rules) for x, y in zip(a, b, strict=True))


def _sort_key(row: Row) -> tuple[tuple[int, Value], ...]:
    return tuple(
        (0, 0) if v is None else (1, v) if isinstance(v, int | float) else (2 + isinstance(v, bytes), v) for v in row
    )


def _brief(row: Row) -> str:
    text = repr(row)
    return text if len(text) <= 100 else text[:97] + "..."
