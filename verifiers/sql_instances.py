"""Fuzzed instances of a schema: small databases that keep its constraints and tell look-alike queries apart.

They differ in size (empty tables, one row, dozens), in how many values are NULL, how often rows repeat, how few values
a column takes (ties, groups, joins that meet) and how close the values stand to the queries' constants. Primary keys,
UNIQUE, NOT NULL and CHECK are SQLite's own to keep: a row that breaks one is left out. Foreign keys are drawn from the
parents that are there. No foreign key is enforced, and triggers do not come along.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from verifiers import sql_run
from verifiers.sql_run import Database, Value
from verifiers.sql_text import tokens
from verifiers.sql_values import Hints, Pool, kind_of

MAX_TABLES = 40
MAX_ROWS = 90
SAMPLES = 12  # values of the given instance that a column's pool takes


@dataclass
class Column:
    name: str
    kind: str
    required: bool
    unique: bool
    rowid: bool
    samples: list[Value]


@dataclass
class Table:
    """`parents` are its foreign keys: (parent table, [(own column, the parent's column)])."""

    name: str
    columns: list[Column]
    parents: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """What one instance is like. `focus`, `nulls`, `repeats` are probabilities; `width` counts a column's values.

    `uneven`: tables differ in size. `skew`: how much more often some values come. Most children are of `parents` rows.
    """

    rows: int
    focus: float
    nulls: float
    repeats: float
    width: int
    uneven: bool
    skew: float
    parents: int


class Schema:
    """The tables of a database, and an empty copy of it to fill again and again."""

    def __init__(self, given: Database, now: str) -> None:
        self.now = now
        connection = given.connection
        names = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            " AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY rowid LIMIT ?",
            [MAX_TABLES],
        ).fetchall()
        self.sql = [sql for _, sql in names]
        self.tables = _parents_first([_table(connection, name) for name, _ in names])
        self.columns = {column.name.lower() for table in self.tables for column in table.columns}
        empty = Database(now)
        for sql in [sql for _, sql in names] + [
            sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type IN ('index', 'view')") if sql
        ]:
            with suppress(sqlite3.Error):  # a view on a virtual table
                empty.connection.execute(_unaliased(sql))
        self.empty = empty.connection.serialize()
        empty.close()

    def instances(
        self, queries: list[str], num: int, seed: str, deadline: float
    ) -> Iterator[tuple[Database, Database]]:
        """`num` databases, the same ones for the same arguments; fewer when `deadline` (of `sql_run.clock`) passes.

        Each with a twin: the same rows, stored the other way round.
        """
        hints = Hints([*queries, *self.sql], self.columns, self.now)
        pools = self._pools(hints)
        for number, profile in enumerate(_profiles(num, sorted(set(hints.counts)), random.Random(seed))):
            if sql_run.clock() > deadline:
                return
            database = Database(self.now, self.empty)
            database.connection.execute("BEGIN")
            filler = _Filler(database.connection, pools, profile, f"{seed}/{number}")
            for index, table in enumerate(self.tables):
                if not (profile.rows > 1 and number % 7 == 6 and index == number % len(self.tables)):
                    filler.fill(table)  # now and then one table stays empty
            database.connection.execute("COMMIT")
            yield database, self._twin(database)

    def _twin(self, database: Database) -> Database:
        twin = Database(self.now, database.connection.serialize())
        twin.connection.execute("BEGIN")
        for table in self.tables:
            columns = ", ".join(_quote(column.name) for column in table.columns)
            rows = twin.connection.execute(f"SELECT {columns} FROM {_quote(table.name)}").fetchall()[::-1]
            twin.connection.execute(f"DELETE FROM {_quote(table.name)}")
            marks = ", ".join("?" * len(table.columns))
            twin.connection.executemany(f"INSERT INTO {_quote(table.name)} ({columns}) VALUES ({marks})", rows)
        twin.connection.execute("COMMIT")
        return twin

    def _pools(self, hints: Hints) -> dict[tuple[str, str], Pool]:
        """By table and column. Columns that are compared or share a name have one pool, of all their samples."""
        kinds: dict[tuple[str, str], tuple[str, str]] = {}
        samples: dict[tuple[str, str], list[Value]] = {}
        for table in self.tables:
            for column in table.columns:
                name = column.name.lower()
                kind = "date" if column.kind in ("text", "any") and name in hints.dates else column.kind
                shared = kinds[table.name, column.name] = (hints.root(name), kind)
                samples.setdefault(shared, []).extend(column.samples)
        pools = {shared: Pool(*shared, values, hints) for shared, values in samples.items()}
        return {column: pools[shared] for column, shared in kinds.items()}


def _profiles(num: int, counts: list[int], rng: random.Random) -> Iterator[Profile]:
    sizes = [0, 3, 8, 1, 16, 5, 30, 2, 12, 4, 24, 6]
    for number in range(num):
        rows = sizes[number % len(sizes)]
        if counts and number % 4 == 3:
            rows = 2 * rng.choice(counts) + 3  # more rows than a LIMIT takes, groups about as large as HAVING asks
        most = 3 * max(counts, default=0) + 3
        large = number % 12 == 3 and most > MAX_ROWS  # few of them: they take their time
        yield Profile(
            rows=most if large else min(rows, MAX_ROWS),
            focus=rng.choice([0.3, 0.6, 0.6, 0.9]),
            nulls=rng.choice([0.0, 0.05, 0.15, 0.4]),
            repeats=rng.choice([0.0, 0.2, 0.6]),
            width=rng.choice([2, 3, 6, 12, 40]),
            uneven=rng.random() < 0.4 and not large,
            skew=rng.choice([1.0, 1.0, 3.0]),
            parents=rng.choice([2, 4, MAX_ROWS]),
        )


class _Filler:
    """Puts rows into one database, table by table, parents first."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        pools: dict[tuple[str, str], Pool],
        profile: Profile,
        seed: str,
    ) -> None:
        self.connection, self.pools, self.profile = connection, pools, profile
        self.rng = random.Random(seed)
        self.others = {pool.key: (pool.some(profile.width, seed), pool.some(40, seed)) for pool in pools.values()}
        # Columns differ: of one many values are NULL, of another all stand around a constant.
        self.focus = {pool.key: self.rng.choice([0.0, 0.0, *[profile.focus] * 3, 0.95]) for pool in pools.values()}
        self.nulls = {key: self.rng.choice([0.0, *[profile.nulls] * 3, 0.5]) for key in pools}
        self.rows: dict[str, list[dict[str, Value]]] = {}

    def fill(self, table: Table) -> None:
        rows = self.rows.setdefault(table.name, [])
        num = self.profile.rows
        if self.profile.uneven:
            num = self.rng.randint(0, 2 * num)
        columns = ", ".join(_quote(column.name) for column in table.columns)
        marks = ", ".join("?" * len(table.columns))
        insert = f"INSERT OR IGNORE INTO {_quote(table.name)} ({columns}) VALUES ({marks})"
        for _ in range(min(num, max(MAX_ROWS, self.profile.rows))):
            for attempt in range(6):
                row = self.row(table, rows, attempt)
                try:
                    taken = row is not None and self.connection.execute(insert, list(row.values())).rowcount == 1
                except (sqlite3.Error, OverflowError):
                    taken = False
                if taken and row is not None:
                    rows.append(row)
                    break

    def row(self, table: Table, rows: list[dict[str, Value]], attempt: int) -> dict[str, Value] | None:
        """A row to try; `None` where a required parent does not exist. Later attempts try fresher values."""
        rng, profile = self.rng, self.profile
        row: dict[str, Value] = {}
        old = rng.choice(rows) if rows and rng.random() < profile.repeats else None
        for column in table.columns:
            pool = self.pools[table.name, column.name]
            if column.unique and (column.rowid or attempt > 1):
                wide = column.rowid and attempt < 3
                row[column.name] = rng.randint(1, 2 * profile.rows + 4) if wide else pool.fresh(rng)
                if column.rowid and rng.random() < profile.focus * 0.3:
                    row[column.name] = pool.draw(rng, 1.0, self.others[pool.key][0])
            elif not column.required and rng.random() < self.nulls[table.name, column.name]:
                row[column.name] = None
            elif old is not None and not column.unique:
                row[column.name] = old[column.name]
            else:
                row[column.name] = pool.draw(
                    rng, self.focus[pool.key], self.others[pool.key][attempt > 2], profile.skew
                )
        required = {column.name for column in table.columns if column.required}
        for parent, pairs in table.parents:
            choices = self.rows.get(parent, [])
            optional = all(own not in required for own, _ in pairs)
            if not choices and not optional:
                return None
            none = not choices or (optional and rng.random() < profile.nulls)
            chosen = rng.choice(choices[: profile.parents] if rng.random() < 0.7 else choices) if choices else {}
            for own, other in pairs:
                row[own] = None if none else chosen.get(other)
        return row


def _table(connection: sqlite3.Connection, name: str) -> Table:
    quoted = _quote(name)
    info = [row for row in connection.execute(f"PRAGMA table_xinfo({quoted})").fetchall() if row[6] == 0]
    keys = [row[1] for row in info if row[5]]
    unique = {keys[0]} if len(keys) == 1 else set()
    for index in connection.execute(f"PRAGMA index_list({quoted})").fetchall():
        members = connection.execute(f"PRAGMA index_info({_quote(index[1])})").fetchall()
        if index[2] and len(members) == 1:
            unique.add(members[0][2])
    columns = []
    for _, column, declared, required, _, key, _ in info:
        found = connection.execute(f"SELECT DISTINCT {_quote(column)} FROM {quoted} LIMIT {SAMPLES}").fetchall()
        samples = [value for (value,) in found if value is not None and len(str(value)) <= 60]
        rowid = len(keys) == 1 and key == 1 and (declared or "").upper() == "INTEGER"
        columns.append(
            Column(column, kind_of(declared or "", samples), bool(required or key), column in unique, rowid, samples)
        )
    table = Table(name, columns)
    by_id: dict[int, tuple[str, list[tuple[str, str]]]] = {}
    lower = {column.name.lower(): column.name for column in columns}
    for number, place, parent, own, other, *_ in connection.execute(f"PRAGMA foreign_key_list({quoted})").fetchall():
        parent_info = connection.execute(f"PRAGMA table_info({_quote(parent)})").fetchall()
        parent_keys = sorted((row[5], row[1]) for row in parent_info if row[5])
        names = {row[1].lower(): row[1] for row in parent_info}
        target = names.get(other.lower()) if other else parent_keys[place][1] if place < len(parent_keys) else None
        if target is None or own.lower() not in lower:
            continue
        real = connection.execute("SELECT name FROM sqlite_master WHERE lower(name) = lower(?)", [parent]).fetchone()
        by_id.setdefault(number, (real[0] if real else parent, []))[1].append((lower[own.lower()], target))
    table.parents = list(by_id.values())
    return table


def _parents_first(tables: list[Table]) -> list[Table]:
    """The tables so that foreign keys point back, as far as there is no cycle."""
    rest, done = list(tables), list[Table]()
    while rest:
        placed = {table.name for table in done}
        names = {table.name for table in rest}
        ready = [t for t in rest if all(p == t.name or p in placed or p not in names for p, _ in t.parents)]
        done += ready or rest[:1]
        rest = [table for table in rest if table not in done]
    return done


def _unaliased(sql: str) -> str:
    """A definition in which no key is another name of the row id: rows then lie in the order of their insertion, and
    a query that leans on the order of keys shows. INT is the same to a column as INTEGER, but for that."""
    pieces, end = [], 0
    for token in tokens(sql):
        if token.upper in ("INTEGER", "AUTOINCREMENT"):
            pieces += [sql[end : token.start], "INT" if token.upper == "INTEGER" else ""]
            end = token.end
    return "".join([*pieces, sql[end:]])


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
