"""Question families: plain words that determine a query, and the query. By level:

    1   one table: rows under a condition, counts, aggregates, distinct values, order
    2   one table: two conditions, ranges, parts of texts, NULL, groups, the first n
    3   two tables: joins, groups of joined rows, rows without partners, averages, HAVING
    4   two or three tables: the best of each group, ranks, running totals, own group's average, sets

Every family writes the columns and their order into the question, and an order of rows where the query has one. Ties
are settled by `id` wherever a LIMIT could cut through them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from environments.sql_database.domains import Column, Table, literal

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


# ---- level 3


def joined(child: Table, parent: Table) -> str:
    return f"{child.name} c JOIN {parent.name} p ON p.id = c.{child.key}"


def join_rows(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    words, where = condition(rng, parent, "p.")
    text = (
        f"the {child.label.words} of each {child.noun} and the {parent.label.words} of its {parent.noun}, "
        f"for every {parent.noun} whose {words}"
    )
    query = f"SELECT c.{child.label.name}, p.{parent.label.name} FROM {joined(child, parent)} WHERE {where}"
    return Asked(text, query, f"join; where {where}")


def join_group(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    column = rng.choice(child.numbers)
    words, call = rng.choice([*AGGREGATES.items(), ("total", "SUM")])
    least = rng.randint(1, 2)
    text = (
        f"for each {parent.noun} with more than {least} {child.plural if least > 1 else child.noun}: the "
        f"{parent.label.words} and the {words} {column.words} of its {child.plural}"
    )
    query = (
        f"SELECT p.{parent.label.name}, {call}(c.{column.name}) FROM {joined(child, parent)} "
        f"GROUP BY p.id, p.{parent.label.name} HAVING COUNT(*) > {least}"
    )
    return Asked(text, query, f"join; group by {parent.name}; having count > {least}")


def left_count(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    words, where = condition(rng, child, "c.") if rng.random() < 0.5 else ("", "")
    only = f" whose {words}" if words else ""
    text = (
        f"for every {parent.noun}: the {parent.label.words} and the number of its {child.plural}{only} "
        "(0 where there is none)"
    )
    on = f"c.{child.key} = p.id" + (f" AND {where}" if where else "")
    query = (
        f"SELECT p.{parent.label.name}, COUNT(c.id) FROM {parent.name} p LEFT JOIN {child.name} c ON {on} "
        f"GROUP BY p.id, p.{parent.label.name}"
    )
    return Asked(text, query, f"left join on {on}; count c.id")


def without(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    words, where = condition(rng, child, "c.") if rng.random() < 0.6 else ("", "")
    only = f" whose {words}" if words else ""
    text = f"the {parent.label.words} of the {parent.plural} that have no {child.noun}{only}"
    inner = f"c.{child.key} = p.id" + (f" AND {where}" if where else "")
    query = (
        f"SELECT p.{parent.label.name} FROM {parent.name} p "
        f"WHERE NOT EXISTS (SELECT 1 FROM {child.name} c WHERE {inner})"
    )
    return Asked(text, query, f"not exists {inner}")


def above_average(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    column = rng.choice(child.numbers)
    words, sign = rng.choice([("above", ">"), ("below", "<")])
    text = (
        f"the {child.label.words} of each {child.noun} whose {column.words} is {words} the average {column.words} of all "
        f"{child.plural}, and the {parent.label.words} of its {parent.noun}"
    )
    query = (
        f"SELECT c.{child.label.name}, p.{parent.label.name} FROM {joined(child, parent)} "
        f"WHERE c.{column.name} {sign} (SELECT AVG({column.name}) FROM {child.name})"
    )
    return Asked(text, query, f"join; {column.name} {sign} (select avg)")


def conditional_count(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables
    by = rng.choice(parent.categories)
    words, where = condition(rng, child, "c.")
    text = (
        f"for each {by.words} of the {parent.plural} with {child.plural}: the {by.words}, the number of {child.plural}, and "
        f"the number of those whose {words} (0 where there is none)"
    )
    query = (
        f"SELECT p.{by.name}, COUNT(*), SUM(CASE WHEN {where} THEN 1 ELSE 0 END) "
        f"FROM {joined(child, parent)} GROUP BY p.{by.name}"
    )
    return Asked(text, query, f"join; group by {by.name}; sum of case {where}")


# ---- level 4


def through(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child, grandchild = tables
    column = rng.choice(grandchild.numbers)
    words, call = rng.choice([*AGGREGATES.items(), ("total", "SUM")])
    text = (
        f"for each {parent.noun} with {grandchild.plural} (through its {child.plural}): the {parent.label.words}, the "
        f"number of those {grandchild.plural}, and their {words} {column.words}"
    )
    query = (
        f"SELECT p.{parent.label.name}, COUNT(*), {call}(g.{column.name}) FROM {joined(child, parent)} "
        f"JOIN {grandchild.name} g ON g.{grandchild.key} = c.id GROUP BY p.id, p.{parent.label.name}"
    )
    return Asked(text, query, f"join {parent.name}, {child.name}, {grandchild.name}; group by {parent.name}")


def best_of_each(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables[:2]
    column = rng.choice(child.numbers)
    words, call = rng.choice([("largest", "MAX"), ("smallest", "MIN")])
    text = (
        f"for each {parent.noun} with {child.plural}: the {parent.label.words}, and the {child.label.words} and "
        f"{column.words} of its {child.noun} with the {words} {column.words} (all of them where several share it)"
    )
    query = (
        f"SELECT p.{parent.label.name}, c.{child.label.name}, c.{column.name} FROM {joined(child, parent)} WHERE "
        f"c.{column.name} = (SELECT {call}(o.{column.name}) FROM {child.name} o WHERE o.{child.key} = c.{child.key})"
    )
    return Asked(text, query, f"join; {column.name} = own {parent.name}'s {call.lower()}")


def ranked(rng: random.Random, tables: list[Table]) -> Asked:
    child = tables[1]
    column, by = rng.choice(child.numbers), rng.choice(child.categories)
    text = (
        f"the {child.label.words} of each {child.noun}, its {by.words}, and its rank by {column.words} among the "
        f"{child.plural} of the same {by.words} (the largest has rank 1; equal ones share a rank and leave a gap after it)"
    )
    over = f"PARTITION BY {by.name} ORDER BY {column.name} DESC"
    query = f"SELECT {child.label.name}, {by.name}, RANK() OVER ({over}) FROM {child.name}"
    return Asked(text, query, f"rank over ({over.lower()})")


def running(rng: random.Random, tables: list[Table]) -> Asked:
    child = tables[1]
    column = rng.choice(child.numbers)
    text = (
        f"the {child.label.words} of each {child.noun} and the running total of {column.words} up to and with it, "
        f"where {child.plural} are taken by id; ordered by {child.label.words}"
    )
    total = f"SUM({column.name}) OVER (ORDER BY id)"
    query = f"SELECT {child.label.name}, {total} FROM {child.name} ORDER BY {child.label.name}"
    return Asked(text, query, f"sum of {column.name} over (order by id)")


def above_own(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables[:2]
    column = rng.choice(child.numbers)
    words, sign = rng.choice([("above", ">"), ("below", "<")])
    text = (
        f"the {child.label.words} of each {child.noun} whose {column.words} is {words} the average {column.words} of the "
        f"{child.plural} of the same {parent.noun}"
    )
    query = (
        f"SELECT c.{child.label.name} FROM {child.name} c WHERE c.{column.name} {sign} "
        f"(SELECT AVG(o.{column.name}) FROM {child.name} o WHERE o.{child.key} = c.{child.key})"
    )
    return Asked(text, query, f"{column.name} {sign} avg of the same {child.key}")


def both(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables[:2]
    column = rng.choice(child.categories)
    one, two = rng.sample(column.values, 2)
    but_not = rng.random() < 0.4
    text = (
        f"the {parent.label.words} of the {parent.plural} that have a {child.noun} whose {column.words} is '{one}' "
        f"{'but none' if but_not else 'and also one'} whose {column.words} is '{two}'"
    )

    def some(value: str) -> str:
        inner = f"c.{child.key} = p.id AND c.{column.name} = {literal(value)}"
        return f"EXISTS (SELECT 1 FROM {child.name} c WHERE {inner})"

    query = f"SELECT p.{parent.label.name} FROM {parent.name} p WHERE {some(one)} AND {'NOT ' * but_not}{some(two)}"
    return Asked(text, query, f"exists {one}, {'not ' * but_not}exists {two}")


def bands(rng: random.Random, tables: list[Table]) -> Asked:
    parent, child = tables[:2]
    column = rng.choice(child.numbers)
    cut = middle(rng, column)
    text = (
        f"the {parent.label.words} of each {parent.noun}, and 'high' where the total {column.words} of its {child.plural} "
        f"is above {cut}, else 'low' ('low' also where it has none)"
    )
    query = (
        f"SELECT p.{parent.label.name}, CASE WHEN SUM(c.{column.name}) > {cut} THEN 'high' ELSE 'low' END "
        f"FROM {parent.name} p LEFT JOIN {child.name} c ON c.{child.key} = p.id GROUP BY p.id, p.{parent.label.name}"
    )
    return Asked(text, query, f"left join; case sum > {cut}")


FAMILIES: dict[int, tuple[Family, ...]] = {
    1: (rows, count, aggregate, distinct, ordered),
    2: (two_conditions, between, contains, null, group_count, group_aggregate, first_n),
    3: (join_rows, join_group, left_count, without, above_average, conditional_count),
    4: (through, best_of_each, ranked, running, above_own, both, bands),
}
NUM_TABLES = {1: 1, 2: 1, 3: 2, 4: 3}
