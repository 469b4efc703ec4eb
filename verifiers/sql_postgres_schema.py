"""A PostgreSQL schema as `sql_instances` can fuzz it: a mirror in SQLite, read from the server's catalogue.

The mirror has the tables, their columns by rough kind, keys, uniqueness, NOT NULL, and the rows of the given instance
to take values from. What it cannot say (CHECK, types with a form of their own) the server says when the rows arrive:
`Session.settle` leaves out those that it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from verifiers.sql_instances import Schema
from verifiers.sql_postgres_run import Rows, Session
from verifiers.sql_run import Database, Result, Value

SAMPLE_ROWS = 200
_COLUMNS = """
    SELECT c.relname, a.attname, t.typname, a.attnotnull
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY c.oid, a.attnum
"""
_CONSTRAINTS = """
    SELECT c.relname, k.contype::text, f.relname,
        (SELECT array_agg(a.attname::text ORDER BY n.place) FROM unnest(k.conkey) WITH ORDINALITY n(number, place)
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n.number),
        (SELECT array_agg(a.attname::text ORDER BY n.place) FROM unnest(k.confkey) WITH ORDINALITY n(number, place)
            JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = n.number)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_class f ON f.oid = k.confrelid
    WHERE k.connamespace = %s::regnamespace AND k.contype IN ('p', 'u', 'f') ORDER BY k.oid
"""
_KINDS = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), "INT"),
    **dict.fromkeys(("numeric", "float4", "float8", "money"), "NUMERIC"),
    **dict.fromkeys(("date", "timestamp", "timestamptz"), "DATE"),
    "bool": "BOOLEAN",
}


class PostgresDatabase:
    """One instance: rows, put in place when a query is to run on them. `None`: those of the task's own script."""

    def __init__(self, session: Session, rows: Rows | None) -> None:
        self._session = session
        self._rows = rows
        self._fill: bytes | None = None

    def run(self, sql: str, *, max_rows: int, max_bytes: int, max_steps: int, deadline: float) -> Result:
        """As `sql_run.Database.run`; the server counts no steps, and its time limit stands in for them."""
        if self._rows is not None and self._fill is None:
            self._fill = self._session.settle(self._rows)
        return self._session.run(self._fill, sql, max_rows, max_bytes, deadline)

    def lock(self, max_value_bytes: int) -> None:
        """Every query is read-only as it is."""

    def close(self) -> None:
        """The session owns all there is."""


class PostgresSchema:
    """The open task of a session: what `sql_judge.Fuzzer` asks for."""

    def __init__(self, session: Session, now: str, deadline: float) -> None:
        self._session = session
        session.open_fuzzed()
        columns = session.fetch(_COLUMNS, session.given)
        self._names: dict[str, list[str]] = {}
        for table, column, _, _ in columns:
            self._names.setdefault(table, []).append(column)
        mirror = Database(now)
        mirror.load("\n".join(_definitions(columns, session.fetch(_CONSTRAINTS, session.given))), deadline)
        for table, names in self._names.items():
            marks = ", ".join("?" * len(names))
            chosen = ", ".join(map(_quote, names))
            sampled = session.fetch(f"SELECT {chosen} FROM {session.given}.{_quote(table)} LIMIT {SAMPLE_ROWS}")
            mirror.connection.executemany(
                f"INSERT OR IGNORE INTO {_quote(table)} ({chosen}) VALUES ({marks})",
                [tuple(map(_plain, row)) for row in sampled],
            )
        self._mirror = Schema(mirror, now)
        mirror.close()

    def instances(
        self, queries: list[str], num: int, seed: str, deadline: float
    ) -> Iterator[tuple[PostgresDatabase, PostgresDatabase]]:
        """See `sql_instances.Schema.instances`."""
        for pair in self._mirror.instances(queries, num, seed, deadline):
            one, twin = (PostgresDatabase(self._session, self._rows(each)) for each in pair)
            for each in pair:
                each.close()
            yield one, twin

    def _rows(self, database: Database) -> Rows:
        return {
            table.name: (
                self._names[table.name],
                database.connection.execute(
                    f"SELECT {', '.join(map(_quote, self._names[table.name]))} FROM {_quote(table.name)} ORDER BY rowid"
                ).fetchall(),
            )
            for table in self._mirror.tables
        }


def _definitions(columns: list[tuple[Any, ...]], constraints: list[tuple[Any, ...]]) -> Iterator[str]:
    tables: dict[str, list[str]] = {}
    for table, column, kind, required in columns:
        declared = f"{_quote(column)} {_KINDS.get(kind, 'TEXT')}{' NOT NULL' if required else ''}"
        tables.setdefault(table, []).append(declared)
    for table, kind, parent, own, others in constraints:
        listed = ", ".join(map(_quote, own))
        if kind == "f":
            tables[table].append(
                f"FOREIGN KEY ({listed}) REFERENCES {_quote(parent)} ({', '.join(map(_quote, others))})"
            )
        else:
            tables[table].append(f"{'PRIMARY KEY' if kind == 'p' else 'UNIQUE'} ({listed})")
    for table, parts in tables.items():
        yield f"CREATE TABLE {_quote(table)} ({', '.join(parts)});"


def _plain(value: Any) -> Value:
    """A value of the driver's as SQLite takes it."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    return value if value is None or isinstance(value, int | float | bytes) else str(value)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
