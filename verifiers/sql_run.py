"""One read-only query on one SQLite database, under limits that hold whatever the query is.

The authorizer lets a statement read tables and call the functions of an allow-list; everything else (writing, ATTACH,
PRAGMA, extensions) is denied while SQLite compiles it. Clock and time zone stand still, so a verdict can be repeated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from time import monotonic
from typing import Any

Value = None | int | float | str | bytes
Row = tuple[Value, ...]

clock: Callable[[], float] = monotonic  # what deadlines are told by; a worker process sets it to its processor time
STRIDE = 1_000  # VM steps between two looks at the limits
MAX_COLUMNS = 256
MAX_PATTERN = 256  # bytes of a LIKE or GLOB pattern: matching costs its length times the text's

_DATE = ("date", "time", "datetime", "julianday", "unixepoch", "strftime")
_CURRENT = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
# No random, randomblob, zeroblob, changes, last_insert_rowid, load_extension: not a function of the data, or dangerous.
FUNCTIONS = frozenset(
    """
    abs ceil ceiling char coalesce concat concat_ws floor format glob hex if ifnull iif instr length like likelihood
    likely lower ltrim nullif octet_length printf quote replace round rtrim sign soundex substr substring trim trunc
    typeof unhex unicode unlikely upper acos acosh asin asinh atan atan2 atanh cos cosh degrees exp ln log log10 log2
    mod pi pow power radians sin sinh sqrt tan tanh
    avg count group_concat max median min string_agg sum total
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    json json_array json_array_length json_extract json_group_array json_group_object json_insert json_object
    json_patch json_pretty json_quote json_remove json_replace json_set json_type json_valid -> ->>
    timediff
    """.split()  # noqa: SIM905 - a list to read
).union(_DATE, _CURRENT)
_TABLE_FUNCTIONS = frozenset({"json_each", "json_tree"})
_SCHEMA_TABLES = frozenset({"sqlite_master", "sqlite_schema"})


class QueryError(Exception):
    """The query cannot be judged by its rows. `kind` is "denied", "error" or "limit"; the message tells a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Database:
    """One in-memory database, from a script or from the bytes of another. Not for several threads at once."""

    def __init__(self, now: str, image: bytes | None = None) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=8)
        if image is not None:
            self.connection.deserialize(image)
        self.connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        self.connection.execute("PRAGMA temp_store = MEMORY")
        for name in (*_DATE, *_CURRENT):
            self.connection.create_function(name, -1, _frozen(name, now), deterministic=True)
        self._denied = ""
        self._tables: frozenset[str] = frozenset()

    def load(self, script: str, deadline: float) -> None:
        """Runs the task's own script. Raises what sqlite3 raises; opening files is denied."""

        def authorize(action: int, *_: str | None) -> int:
            return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK

        self.connection.set_authorizer(authorize)
        self.connection.set_progress_handler(lambda: clock() > deadline, 10_000)
        try:
            self.connection.executescript(script)
        finally:
            self.connection.set_progress_handler(None, 0)
            self.connection.set_authorizer(None)

    def lock(self, max_value_bytes: int) -> None:
        """From now on the database is only read. Call once, when its rows are in."""
        names = self.connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        self._tables = frozenset(name.lower() for (name,) in names)
        for function in _TABLE_FUNCTIONS:  # SQLite declares them on first use, which it would not be let do later
            self.connection.execute(f"SELECT 1 FROM {function}('[]')")
        self.connection.execute("PRAGMA query_only = ON")
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_LENGTH, max_value_bytes),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_COLUMN, MAX_COLUMNS),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
        ):
            self.connection.setlimit(limit, value)

    def run(self, sql: str, *, max_rows: int, max_bytes: int, max_steps: int, deadline: float) -> Result:
        """All rows of `sql`. Raises `QueryError`, and nothing else, whatever the text."""
        steps = 0
        over = ""

        def tick() -> bool:
            nonlocal steps, over
            steps += STRIDE
            over = "steps" if steps > max_steps else "time" if clock() > deadline else ""
            return bool(over)

        self._denied = ""
        self.connection.set_authorizer(self._authorize)
        self.connection.set_progress_handler(tick, STRIDE)
        try:
            cursor = self.connection.execute(sql)
            if cursor.description is None:
                raise QueryError("error", "no statement, or one that returns no columns")
            rows: list[Row] = []
            size = 0
            for row in cursor:
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if len(rows) > max_rows:
                    raise QueryError("limit", f"more than {max_rows} rows")
                if size > max_bytes:
                    raise QueryError("limit", f"more than {max_bytes} bytes of values")
            return Result([column[0] for column in cursor.description], rows, steps)
        except QueryError:
            raise
        except Exception as error:  # sqlite3's, but also UnicodeEncodeError, ValueError, OverflowError, MemoryError
            if over:
                limit = f"more than {max_steps} steps" if over == "steps" else "the time limit passed"
                raise QueryError("limit", limit) from None
            if self._denied:
                raise QueryError("denied", f"{self._denied} is not allowed") from None
            if isinstance(error, sqlite3.Warning | sqlite3.ProgrammingError) and "one statement" in str(error):
                raise QueryError("denied", "more than one statement") from None
            raise QueryError("error", f"{type(error).__name__}: {str(error)[:200]}") from None
        finally:
            self.connection.set_progress_handler(None, 0)

    def _authorize(self, action: int, first: str | None, second: str | None, _db: str | None, _by: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            table = (first or "").lower()
            # A table of which no column is read is reported with an empty column, and so is a WITH table.
            known = table in self._tables or table in _TABLE_FUNCTIONS or table in _SCHEMA_TABLES
            if known or (not second and not table.startswith(("pragma_", "sqlite_"))):
                return sqlite3.SQLITE_OK
            self._denied = f"reading {table}"
        elif action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second}"
        elif first in _SCHEMA_TABLES:
            self._denied = "this virtual table"  # declaring it, which SQLite does on first use
        else:
            self._denied = f"{_ACTIONS.get(action, f'action {action}')} {first or ''}".strip()
        return sqlite3.SQLITE_DENY

    def close(self) -> None:
        self.connection.close()


class Result:
    """Column names, rows, and the VM steps that they took (in strides)."""

    def __init__(self, names: list[str], rows: list[Row], steps: int) -> None:
        self.names = names
        self.rows = rows
        self.steps = steps


_ACTIONS = {
    getattr(sqlite3, name): name.removeprefix("SQLITE_").replace("_", " ")
    for name in dir(sqlite3)
    if name.startswith(("SQLITE_CREATE_", "SQLITE_DROP_", "SQLITE_ALTER_"))
    or name
    in {
        "SQLITE_DELETE", "SQLITE_INSERT", "SQLITE_UPDATE", "SQLITE_PRAGMA", "SQLITE_ATTACH", "SQLITE_DETACH",
        "SQLITE_TRANSACTION", "SQLITE_SAVEPOINT", "SQLITE_REINDEX", "SQLITE_ANALYZE",
    }
}  # fmt: skip

_clock = sqlite3.connect(":memory:", check_same_thread=False)


def _frozen(name: str, now: str) -> Callable[..., Any]:
    """SQLite's own date function `name`, in which "now" is always `now`."""
    function = _CURRENT.get(name, name)
    at = 1 if function == "strftime" else 0

    def call(*arguments: Value) -> Value:
        values = list(arguments)
        if len(values) == at:
            values.append(now)
        elif len(values) > at and isinstance(values[at], str) and str(values[at]).strip().lower() == "now":
            values[at] = now
        marks = ", ".join("?" * len(values))
        value: Value = _clock.execute(f"SELECT {function}({marks})", values).fetchone()[0]
        return value

    return call
