"""Eight domains, each three tables that hang together: parent <- child <- grandchild.

A table is drawn smaller than it is written here (some columns are left out), so the same domain gives many schemas.
Every label is unique and no column is NULL unless it says so: then a question in plain words has one answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

Kind = Literal["label", "category", "integer", "amount", "date", "key"]
TYPES = {
    "label": "TEXT NOT NULL UNIQUE",
    "category": "TEXT NOT NULL",
    "integer": "INTEGER NOT NULL",
    "amount": "NUMERIC NOT NULL",
    "date": "TEXT",
    "key": "INTEGER NOT NULL",
}
FIRST_DAY = date(2024, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`values` are what a label or a category takes; `low` and `high` bound a number. Only dates may be NULL."""

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    low: int = 0
    high: int = 0

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    def draw(self, rng: random.Random) -> str | int | float | None:
        """A value; labels are told apart by `rows`."""
        if self.kind == "integer":
            return rng.randint(self.low, self.high)
        if self.kind == "amount":
            return rng.randint(2 * self.low, 2 * self.high) / 2
        if self.kind == "date":
            return None if rng.random() < 0.4 else (FIRST_DAY + timedelta(rng.randrange(700))).isoformat()
        return rng.choice(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`label` names a row. `parent` is the table that `key` points to."""

    name: str
    plural: str
    label: Column
    categories: tuple[Column, ...]
    numbers: tuple[Column, ...]
    date: Column | None = None
    parent: str = ""

    @property
    def noun(self) -> str:
        return self.name.replace("_", " ")

    @property
    def key(self) -> str:
        return f"{self.parent}_id"

    @property
    def columns(self) -> tuple[Column, ...]:
        """All but `id`, in the order of the definition."""
        key = (Column(name=self.key, kind="key"),) if self.parent else ()
        optional = (self.date,) if self.date else ()
        return (self.label, *key, *self.categories, *self.numbers, *optional)

    @property
    def definition(self) -> str:
        parts = ["id INTEGER PRIMARY KEY"]
        for column in self.columns:
            points = f" REFERENCES {self.parent}(id)" if column.kind == "key" else ""
            parts.append(f"{column.name} {TYPES[column.kind]}{points}")
        return f"CREATE TABLE {self.name} ({', '.join(parts)});"

    def smaller(self, rng: random.Random, *, with_date: bool) -> Table:
        """One category, one or two numbers, and the date only where it is wanted."""
        numbers = rng.sample(self.numbers, rng.randint(1, min(2, len(self.numbers))))
        return replace(
            self,
            categories=(rng.choice(self.categories),),
            numbers=tuple(numbers),
            date=self.date if with_date else None,
        )


def rows(table: Table, num: int, num_parents: int, rng: random.Random) -> list[tuple[str | int | float | None, ...]]:
    """`num` rows, `id` first. Labels are distinct."""
    labels = rng.sample(table.label.values, min(num, len(table.label.values)))
    made = []
    for number, label in enumerate(labels, start=1):
        values: list[str | int | float | None] = []
        for column in table.columns:
            if column.kind == "label":
                values.append(label)
            else:
                values.append(rng.randint(1, num_parents) if column.kind == "key" else column.draw(rng))
        made.append((number, *values))
    return made


def script(tables: Sequence[Table], rng: random.Random) -> str:
    """The definitions of `tables`, parents first, and statements that fill them."""
    lines, num_parents = [], 0
    for table in tables:
        filled = rows(table, rng.randint(6, 9), num_parents, rng)
        num_parents = len(filled)
        values = ", ".join(f"({', '.join(map(literal, row))})" for row in filled)
        lines += [table.definition, f"INSERT INTO {table.name} VALUES {values};"]
    return "\n".join(lines)


def literal(value: str | int | float | None) -> str:
    """A value as SQL writes it."""
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _label(name: str, values: str) -> Column:
    return Column(name=name, kind="label", values=tuple(values.split()))


def _category(name: str, values: str) -> Column:
    return Column(name=name, kind="category", values=tuple(values.split()))


def _integer(name: str, low: int, high: int) -> Column:
    return Column(name=name, kind="integer", low=low, high=high)


def _amount(name: str, low: int, high: int) -> Column:
    return Column(name=name, kind="amount", low=low, high=high)


def _date(name: str) -> Column:
    return Column(name=name, kind="date")


_PEOPLE = "Ada Ben Cleo Dan Eva Finn Gina Hugo Ines Jon Kira Leo Mia Nils Olga Pia"
_CITIES = "Oslo Rome Lima Cairo Paris Delhi Quito Seoul Bern Turin Porto Split"
_CODES = "A11 A12 B21 B22 C31 C32 D41 D42 E51 E52 F61 F62"

DOMAINS: dict[str, tuple[Table, Table, Table]] = {
    "shop": (
        Table(
            name="customer",
            plural="customers",
            label=_label("name", _PEOPLE),
            categories=(_category("city", "Oslo Rome Lima"), _category("tier", "basic silver gold")),
            numbers=(_integer("age", 18, 80), _integer("points", 0, 500)),
            date=_date("last_login"),
        ),
        Table(
            name="purchase",
            plural="purchases",
            parent="customer",
            label=_label("code", _CODES),
            categories=(_category("status", "open paid sent"), _category("channel", "web phone store")),
            numbers=(_amount("total", 5, 200), _integer("items", 1, 9)),
            date=_date("shipped_on"),
        ),
        Table(
            name="refund",
            plural="refunds",
            parent="purchase",
            label=_label("ticket", "R1 R2 R3 R4 R5 R6 R7 R8 R9"),
            categories=(_category("reason", "late broken other"), _category("method", "card cash")),
            numbers=(_amount("amount", 1, 90),),
            date=_date("settled_on"),
        ),
    ),
    "library": (
        Table(
            name="author",
            plural="authors",
            label=_label("name", _PEOPLE),
            categories=(_category("country", "Chile Kenya Norway"), _category("language", "English Spanish Thai")),
            numbers=(_integer("born", 1920, 1999), _integer("prizes", 0, 6)),
            date=_date("died_on"),
        ),
        Table(
            name="book",
            plural="books",
            parent="author",
            label=_label("title", "Amber Basalt Cobalt Dune Ember Fjord Grove Harbor Iris Juniper Karst Lagoon"),
            categories=(_category("genre", "crime poetry travel"), _category("shelf", "north south east")),
            numbers=(_integer("pages", 60, 700), _amount("price", 4, 40), _integer("year", 1950, 2024)),
            date=_date("lent_on"),
        ),
        Table(
            name="review",
            plural="reviews",
            parent="book",
            label=_label("headline", "Bold Calm Dull Epic Fine Good Hard Icy Jolly"),
            categories=(_category("source", "blog paper radio"), _category("mood", "warm cool")),
            numbers=(_integer("stars", 1, 5), _integer("words", 50, 900)),
            date=_date("printed_on"),
        ),
    ),
    "clinic": (
        Table(
            name="doctor",
            plural="doctors",
            label=_label("name", _PEOPLE),
            categories=(_category("specialty", "heart skin eyes"), _category("floor", "ground first second")),
            numbers=(_integer("salary", 4000, 9000), _integer("experience", 1, 35)),
            date=_date("on_leave_since"),
        ),
        Table(
            name="patient",
            plural="patients",
            parent="doctor",
            label=_label("card", _CODES),
            categories=(_category("city", "Bern Turin Porto"), _category("blood", "A B AB O")),
            numbers=(_integer("age", 1, 95), _integer("weight", 10, 120)),
            date=_date("discharged_on"),
        ),
        Table(
            name="visit",
            plural="visits",
            parent="patient",
            label=_label("slip", "V1 V2 V3 V4 V5 V6 V7 V8 V9"),
            categories=(_category("kind", "check urgent follow"), _category("room", "red blue green")),
            numbers=(_amount("fee", 20, 300), _integer("minutes", 5, 90)),
            date=_date("paid_on"),
        ),
    ),
    "flights": (
        Table(
            name="airline",
            plural="airlines",
            label=_label("name", "Aero Borea Cirrus Delta Eos Fresh Gale Halo Icarus Jetta"),
            categories=(_category("country", "Spain India Peru"), _category("alliance", "blue red none")),
            numbers=(_integer("fleet", 3, 120), _integer("founded", 1930, 2015)),
            date=_date("merged_on"),
        ),
        Table(
            name="flight",
            plural="flights",
            parent="airline",
            label=_label("code", _CODES),
            categories=(_category("origin", "Oslo Rome Lima"), _category("target", "Cairo Paris Delhi")),
            numbers=(_integer("distance", 200, 9000), _integer("seats", 40, 400), _amount("fare", 30, 900)),
            date=_date("cancelled_on"),
        ),
        Table(
            name="booking",
            plural="bookings",
            parent="flight",
            label=_label("locator", "K1 K2 K3 K4 K5 K6 K7 K8 K9"),
            categories=(_category("class", "economy business first"), _category("meal", "none vegan fish")),
            numbers=(_integer("bags", 0, 4), _amount("paid", 30, 900)),
            date=_date("checked_in_on"),
        ),
    ),
    "school": (
        Table(
            name="teacher",
            plural="teachers",
            label=_label("name", _PEOPLE),
            categories=(_category("subject", "math art music"), _category("building", "old new annex")),
            numbers=(_integer("age", 24, 66), _integer("hours", 4, 28)),
            date=_date("retired_on"),
        ),
        Table(
            name="course",
            plural="courses",
            parent="teacher",
            label=_label("title", "Algebra Ballet Choir Drama Ethics French Greek History Ink Jazz Knots Latin"),
            categories=(_category("term", "spring summer autumn"), _category("room", "R10 R20 R30")),
            numbers=(_integer("credits", 1, 10), _integer("capacity", 8, 60)),
            date=_date("exam_on"),
        ),
        Table(
            name="essay",
            plural="essays",
            parent="course",
            label=_label("topic", "Bees Clay Dust Eels Fog Glass Hats Ice Jade"),
            categories=(_category("format", "print web talk"), _category("grade", "low mid high")),
            numbers=(_integer("score", 0, 100), _integer("words", 200, 3000)),
            date=_date("returned_on"),
        ),
    ),
    "bank": (
        Table(
            name="branch",
            plural="branches",
            label=_label("city", _CITIES),
            categories=(_category("region", "north south west"), _category("size", "small medium large")),
            numbers=(_integer("staff", 2, 60), _integer("opened", 1950, 2020)),
            date=_date("closed_on"),
        ),
        Table(
            name="account",
            plural="accounts",
            parent="branch",
            label=_label("number", _CODES),
            categories=(_category("kind", "savings current joint"), _category("currency", "EUR USD NOK")),
            numbers=(_amount("balance", -200, 5000), _integer("owners", 1, 4)),
            date=_date("frozen_on"),
        ),
        Table(
            name="payment",
            plural="payments",
            parent="account",
            label=_label("note", "P1 P2 P3 P4 P5 P6 P7 P8 P9"),
            categories=(_category("type", "rent food travel"), _category("state", "done failed")),
            numbers=(_amount("amount", 1, 800),),
            date=_date("booked_on"),
        ),
    ),
    "cinema": (
        Table(
            name="director",
            plural="directors",
            label=_label("name", _PEOPLE),
            categories=(_category("country", "Japan Italy Ghana"), _category("style", "noir comic epic")),
            numbers=(_integer("born", 1930, 1999), _integer("awards", 0, 9)),
            date=_date("died_on"),
        ),
        Table(
            name="film",
            plural="films",
            parent="director",
            label=_label("title", "Aura Bridge Comet Dusk Echo Flint Ghost Haze Inlet Joker Kite Lunar"),
            categories=(_category("genre", "drama comedy horror"), _category("colour", "yes no")),
            numbers=(_integer("minutes", 70, 190), _integer("year", 1960, 2024), _amount("budget", 1, 90)),
            date=_date("restored_on"),
        ),
        Table(
            name="screening",
            plural="screenings",
            parent="film",
            label=_label("slot", "S1 S2 S3 S4 S5 S6 S7 S8 S9"),
            categories=(_category("hall", "gold silver garden"), _category("sound", "mono stereo")),
            numbers=(_integer("visitors", 0, 300), _amount("ticket", 4, 20)),
            date=_date("sold_out_on"),
        ),
    ),
    "company": (
        Table(
            name="department",
            plural="departments",
            label=_label("name", "Audit Brand Cloud Design Energy Fleet Garden Health Import Legal"),
            categories=(_category("site", "Seoul Quito Bern"), _category("status", "core support trial")),
            numbers=(_integer("budget", 100, 900), _integer("floor", 1, 12)),
            date=_date("audited_on"),
        ),
        Table(
            name="employee",
            plural="employees",
            parent="department",
            label=_label("name", _PEOPLE),
            categories=(_category("role", "clerk engineer manager"), _category("contract", "full part")),
            numbers=(_integer("salary", 1500, 9000), _integer("age", 18, 65)),
            date=_date("left_on"),
        ),
        Table(
            name="task",
            plural="tasks",
            parent="employee",
            label=_label("title", "T1 T2 T3 T4 T5 T6 T7 T8 T9"),
            categories=(_category("priority", "low normal high"), _category("phase", "plan build test")),
            numbers=(_integer("hours", 1, 80), _amount("cost", 10, 500)),
            date=_date("finished_on"),
        ),
    ),
}
