"""Question families of two and three tables: levels 3 and 4 of `questions`."""

from __future__ import annotations

import random

from environments.sql_database.domains import Table, literal
from environments.sql_database.questions import (
    AGGREGATES,
    LEVEL_1,
    LEVEL_2,
    Asked,
    Family,
    condition,
    middle,
)

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
        f"the {child.label.words} of each {child.noun} whose {column.words} is {words} the average {column.words} "
        f"of all {child.plural}, and the {parent.label.words} of its {parent.noun}"
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
        f"for each {by.words} of the {parent.plural} with {child.plural}: the {by.words}, the number of "
        f"{child.plural}, and the number of those whose {words} (0 where there is none)"
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
        f"{child.plural} of the same {by.words} (the largest has rank 1; equal ones share a rank and leave a gap after "
        "it)"
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
        f"the {child.label.words} of each {child.noun} whose {column.words} is {words} the average {column.words} "
        f"of the {child.plural} of the same {parent.noun}"
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
        f"the {parent.label.words} of each {parent.noun}, and 'high' where the total {column.words} of its "
        f"{child.plural} is above {cut}, else 'low' ('low' also where it has none)"
    )
    query = (
        f"SELECT p.{parent.label.name}, CASE WHEN SUM(c.{column.name}) > {cut} THEN 'high' ELSE 'low' END "
        f"FROM {parent.name} p LEFT JOIN {child.name} c ON c.{child.key} = p.id GROUP BY p.id, p.{parent.label.name}"
    )
    return Asked(text, query, f"left join; case sum > {cut}")


FAMILIES: dict[int, tuple[Family, ...]] = {
    1: LEVEL_1,
    2: LEVEL_2,
    3: (join_rows, join_group, left_count, without, above_average, conditional_count),
    4: (through, best_of_each, ranked, running, above_own, both, bands),
}
NUM_TABLES = {1: 1, 2: 1, 3: 2, 4: 3}
