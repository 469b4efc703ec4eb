"""Question families: plain words that determine a query, and the query. By level:

    1   one table: rows under a condition, counts, aggregates, distinct values, order
    2   one table: two conditions, ranges, parts of texts, NULL, groups, the first n
    3   two tables: joins, groups of joined rows, rows without partners, averages, HAVING (`joins`)
    4   two or three tables: the best of each group, ranks, running totals, own group's average, sets (`joins`)

Every family writes the columns and their order into the question, and an order of rows where the query has one. Ties
are settled by `id` wherever a LIMIT could cut through them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from environments.sql_database.domains import Column, Table

Family = Callable[[random.Random, list[Table]], "Asked"]
COMPARE = {"above": ">", "below": "<", "at least": ">=", "at most": "<="}
AGGREGATES = {"largest": "MAX", "smallest": "MIN", "average": "AVG"}


@dataclass(frozen=True, slots=True)
class Asked:
    """`text` follows "Give"; `query` answers it. `plan` is a short thought that leads to it."""

    text: str
    query: str
    plan: str


def condition(rng: random.Random, table: Table, prefix: str = "") -> tuple[str, str]:
    """In words, after "whose", and in SQL."""
    return on_category(rng, table, prefix) if rng.random() < 0.4 else on_number(rng, table, prefix)


def on_category(rng: random.Random, table: Table, prefix: str = "") -> tuple[str, str]:
    column = rng.choice(table.categories)
    value = rng.choice(column.values)
    if rng.random() < 0.25:
        return f"{column.words} is not '{value}'", f"{prefix}{column.name} <> '{value}'"
    return f"{column.words} is '{value}'", f"{prefix}{column.name} = '{value}'"


def on_number(rng: random.Random, table: Table, prefix: str = "") -> tuple[str, str]:
    column = rng.choice(table.numbers)
    words, sign = rng.choice(list(COMPARE.items()))
    value = middle(rng, column)
    return f"{column.words} is {words} {value}", f"{prefix}{column.name} {sign} {value}"


def middle(rng: random.Random, column: Column) -> int:
    """A constant that splits the column's values."""
    quarter = (column.high - column.low) // 4
    return rng.randint(column.low + quarter, column.high - quarter)


def ordering(rng: random.Random, column: Column, prefix: str = "") -> tuple[str, str]:
    down = rng.random() < 0.5
    words = f", ordered by {column.words}, {'largest' if down else 'smallest'} first"
    return words, f" ORDER BY {prefix}{column.name}{' DESC' if down else ''}"


# ---- level 1


def rows(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    words, where = condition(rng, table)
    chosen = rng.sample(table.columns, 2)
    names = ", ".join(column.name for column in chosen)
    spoken = " and ".join(column.words for column in chosen)
    text = f"{spoken} of the {table.plural} whose {words}"
    query = f"SELECT {names} FROM {table.name} WHERE {where}"
    plan = f"{names} where {where}"
    if rng.random() < 0.5:
        more, order = ordering(rng, rng.choice(table.numbers))
        return Asked(text + more, query + order, f"{plan};{order.lower()}")
    return Asked(text, query, plan)


def count(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    words, where = condition(rng, table)
    text = f"the number of {table.plural} whose {words}"
    return Asked(text, f"SELECT COUNT(*) FROM {table.name} WHERE {where}", f"count where {where}")


def aggregate(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    column, words = rng.choice(table.numbers), rng.choice(list(AGGREGATES))
    text = f"the {words} {column.words} of all {table.plural}"
    call = f"{AGGREGATES[words]}({column.name})"
    return Asked(text, f"SELECT {call} FROM {table.name}", call.lower())


def distinct(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    column = rng.choice(table.categories)
    words, where = on_number(rng, table)
    text = f"each {column.words} that some {table.noun} has whose {words}, every value once"
    query = f"SELECT DISTINCT {column.name} FROM {table.name} WHERE {where}"
    return Asked(text, query, f"distinct {column.name} where {where}")


def ordered(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    more, order = ordering(rng, rng.choice(table.numbers))
    column = rng.choice([table.label, *table.categories])
    text = f"the {column.words} of all {table.plural}{more}"
    return Asked(text, f"SELECT {column.name} FROM {table.name}{order}", f"{column.name};{order.lower()}")


# ---- level 2


def two_conditions(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    (first, one), (second, two) = on_category(rng, table), on_number(rng, table)
    words, joint = rng.choice([("and whose", "AND"), ("or whose", "OR")])
    text = f"the {table.label.words} of the {table.plural} whose {first} {words} {second}"
    query = f"SELECT {table.label.name} FROM {table.name} WHERE {one} {joint} {two}"
    return Asked(text, query, f"{one} {joint.lower()} {two}")


def between(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    column = rng.choice(table.numbers)
    low = middle(rng, column)
    high = low + rng.randint(1, max(2, (column.high - column.low) // 4))
    more, order = ordering(rng, column)
    text = (
        f"the {table.label.words} and {column.words} of the {table.plural} whose {column.words} is from {low} to {high}"
    )
    within = f"{column.name} BETWEEN {low} AND {high}"
    query = f"SELECT {table.label.name}, {column.name} FROM {table.name} WHERE {within}{order}"
    return Asked(f"{text} (both included){more}", query, f"{within};{order.lower()}")


def contains(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    word = rng.choice(table.label.values).lower()
    start = rng.randrange(len(word) - 1)
    part = word[start : start + 2]
    place, pattern = rng.choice([("contains", f"%{part}%"), ("begins with", f"{word[:1]}%")])
    shown = pattern.strip("%")
    text = (
        f"the {table.label.words} of the {table.plural} whose {table.label.words} {place} '{shown}' in capitals or not"
    )
    where = f"LOWER({table.label.name}) LIKE '{pattern}'"
    return Asked(text, f"SELECT {table.label.name} FROM {table.name} WHERE {where}", where.lower())


def null(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    assert table.date is not None
    has = rng.random() < 0.5
    where = f"{table.date.name} IS {'NOT ' if has else ''}NULL"
    words = f"that have {'a value' if has else 'no value (NULL)'} in {table.date.words}"
    chosen = rng.choice([table.label, *table.numbers])
    query = f"SELECT {chosen.name} FROM {table.name} WHERE {where}"
    return Asked(f"the {chosen.words} of the {table.plural} {words}", query, where.lower())


def group_count(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    column = rng.choice(table.categories)
    text = f"for each {column.words} of the {table.plural}: the {column.words} and the number of {table.plural}"
    query = f"SELECT {column.name}, COUNT(*) FROM {table.name} GROUP BY {column.name}"
    if rng.random() < 0.5:
        least = rng.randint(2, 3)
        text += f", only where there are at least {least}"
        query += f" HAVING COUNT(*) >= {least}"
    return Asked(text, query, f"count by {column.name}")


def group_aggregate(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    by, column = rng.choice(table.categories), rng.choice(table.numbers)
    words, call = rng.choice([*AGGREGATES.items(), ("total", "SUM")])
    text = f"for each {by.words} of the {table.plural}: the {by.words} and the {words} {column.words}"
    query = f"SELECT {by.name}, {call}({column.name}) FROM {table.name} GROUP BY {by.name}"
    return Asked(text, query, f"{call.lower()} of {column.name} by {by.name}")


def first_n(rng: random.Random, tables: list[Table]) -> Asked:
    (table,) = tables
    column, num = rng.choice(table.numbers), rng.randint(1, 4)
    down = rng.random() < 0.5
    text = (
        f"the {table.label.words} and {column.words} of the {num} {table.plural} with the "
        f"{'largest' if down else 'smallest'} {column.words}, that one first (of equal ones the smaller id first)"
    )
    order = f"{column.name}{' DESC' if down else ''}, id LIMIT {num}"
    query = f"SELECT {table.label.name}, {column.name} FROM {table.name} ORDER BY {order}"
    return Asked(text, query, f"order by {order.lower()}")


LEVEL_1: tuple[Family, ...] = (rows, count, aggregate, distinct, ordered)
LEVEL_2: tuple[Family, ...] = (two_conditions, between, contains, null, group_count, group_aggregate, first_n)
