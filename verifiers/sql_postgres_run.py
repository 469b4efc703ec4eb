"""One PostgreSQL connection whose transaction is never committed: schemas, rows and queries come and go inside it.

    BEGIN; CREATE SCHEMA rlvr_given_N; the task's script    once a reference
        CREATE SCHEMA rlvr_fuzzed_N; the script again       for the instances whose rows come and go
            DELETE; INSERT                                one of them, where it is not in place already
        SAVEPOINT; read only; a time limit; the query; ROLLBACK TO
    ROLLBACK                                              the next reference, or the end

So nothing is left on the server, whatever ends a judge. What a query may use is read from the server's own analysis of
it (`Session._refusal`): tables of the task's schema, and the functions of an allow-list; the analysis runs nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg import sql as compose

from rlvr.errors import ConfigError
from verifiers.sql_run import FUNCTIONS as SQLITE_FUNCTIONS
from verifiers.sql_run import QueryError, Result, Row, Value
from verifiers.sql_text import tokens

# Neither the clock, nor chance, nor the session, nor anything that makes large values of small ones, nor a file.
FUNCTIONS = SQLITE_FUNCTIONS - {"printf", "format"} | frozenset(
    """
    array_agg array_length array_position array_to_string ascii avg bit_and bit_or bool bool_and bool_or btrim bpchar
    cardinality cbrt char_length character_length chr corr covar_pop covar_samp date date_part date_trunc div every
    extract float4 float8 gcd generate_series int2 int4 int8 initcap interval isfinite jsonb_array_elements_text
    jsonb_array_length jsonb_extract_path_text jsonb_typeof justify_days lcm left like_escape like ltrim make_date
    make_timestamp mode numeric overlay percentile_cont percentile_disc position regexp_match regexp_matches
    regexp_replace reverse right scale split_part starts_with stddev stddev_pop stddev_samp string_agg strpos
    string_to_array substring text time timestamp timestamptz timezone to_char to_date to_number to_timestamp
    translate unnest var_pop var_samp variance varchar width_bucket
    """.split()  # noqa: SIM905 - a list to read
)
_FUNCTION = re.compile(r":(?:funcid|aggfnoid|winfnoid) (\d+)")
_RELATION = re.compile(r":relid (\d+)")
# The server's names of what reads the clock or the session, and of samples by chance.
_REFUSED = {"SQLVALUEFUNCTION": "the clock or the session", "TABLESAMPLECLAUSE": "TABLESAMPLE"}
_DANGEROUS = """
    SELECT r.rolname, r.rolsuper OR r.rolreplication OR r.rolcreaterole OR bool_or(d.oid IS NOT NULL)
    FROM pg_roles r LEFT JOIN pg_roles d ON d.rolname IN
        ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program', 'pg_signal_backend')
        AND pg_has_role(r.oid, d.oid, 'MEMBER')
    WHERE r.rolname = session_user GROUP BY r.rolname, r.rolsuper, r.rolreplication, r.rolcreaterole
"""

_FOREIGN_KEYS = """
    SELECT c.relname, k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE k.connamespace = %s::regnamespace AND k.contype = 'f' AND k.conparentid = 0
"""
# Deleted rows stay in their tables until the transaction ends, and are read past: after so many fills all is made new.
FILLS = 25

Rows = Mapping[str, tuple[Sequence[str], Sequence[Row]]]  # by table, parents first: columns, and their values


def _number(text: str) -> Value:
    """Of an exact or floating type. NaN and the infinities stay text, so that they are equal to themselves."""
    if text.lstrip("-").isdigit():
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else text


# By the server's number of a type; all others are the text that the server writes.
_READ: dict[int, Callable[[str], Value]] = {
    **dict.fromkeys((20, 21, 23, 26, 700, 701, 1700), _number),
    16: lambda text: int(text == "t"),
    17: lambda text: bytes.fromhex(text[2:]),
}


class Session:
    """A connection, used by one thread at a time. Raises `psycopg.OperationalError` where the server goes away."""

    def __init__(self, dsn: str) -> None:
        # Nothing is prepared: a plan that was kept would outlive the tables it was made for.
        self._connection = psycopg.connect(
            dsn,
            connect_timeout=10,
            keepalives_idle=30,
            tcp_user_timeout=60_000,  # milliseconds; a host that is gone answers nothing, and no statement times out
            autocommit=True,
            application_name="rlvr",
            prepare_threshold=None,
        )
        for setting in ("timezone = 'UTC'", "datestyle = 'ISO'", "max_parallel_workers_per_gather = 0", "jit = off"):
            self._connection.execute(f"SET {setting}".encode())
        # Of its own: a second transaction that makes a schema of the same name waits for the first.
        number = self._connection.info.backend_pid
        self.given, self.fuzzed = f"rlvr_given_{number}", f"rlvr_fuzzed_{number}"
        self._script, self._deadline = "", 0.0
        self._permitted: dict[str, str] = {}
        self._loaded: bytes | None = None
        self._tables: list[compose.Identifier] = []
        self._fills = 0
        self.key = ""  # whose task is open

    def check(self) -> None:
        """Raises `ConfigError` where the role could do harm, or too little."""
        name, dangerous = self._row(_DANGEROUS)
        way_out = (
            "make one with CREATE ROLE rlvr_judge LOGIN; CREATE DATABASE rlvr_judge OWNER rlvr_judge; and name both in "
            "the DSN"
        )
        if dangerous:
            raise ConfigError(
                f"the DSN's role {name!r} may read files, run programs or act for others, and queries that a model "
                f"wrote would run as it; {way_out}"
            )
        (may_create,) = self._row("SELECT has_database_privilege(current_database(), 'CREATE')")
        if not may_create:
            raise ConfigError(f"the DSN's role {name!r} may create no schema in this database; {way_out}")

    @property
    def alive(self) -> bool:
        """Whether the server still answers."""
        with suppress(psycopg.Error):
            self._connection.execute("SELECT 1")
            return True
        return False

    def open(self, key: str, script: str, deadline: float) -> None:
        """Make the given instance of a task, in place of the last one. Raises what the server says of the script."""
        self.end_task()
        self._connection.execute("BEGIN")
        self._script, self._deadline = script, deadline
        self._make(self.given)
        self.key = key

    def open_fuzzed(self) -> None:
        """Make the tables that `settle` and `run` fill. No foreign key is enforced there, as in SQLite's instances."""
        self._make(self.fuzzed)
        for table, name in self.fetch(_FOREIGN_KEYS, self.fuzzed):
            self._connection.execute(
                compose.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    compose.Identifier(table), compose.Identifier(name)
                )
            )

    def _make(self, schema: str) -> None:
        self._limit(self._deadline)
        self._connection.execute(f"CREATE SCHEMA {schema}".encode())
        self._path(schema)
        (before,) = self._row("SELECT pg_current_xact_id()")
        self._connection.execute(self._script.encode())
        if self._row("SELECT pg_current_xact_id_if_assigned()") != (before,):
            with suppress(psycopg.Error):
                self._connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
            raise ValueError("it ends its transaction; leave COMMIT and ROLLBACK out")

    def end_task(self) -> None:
        """Undo all of it."""
        self._permitted, self._loaded, self.key = {}, None, ""
        if self._connection.info.transaction_status != pq.TransactionStatus.IDLE:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """The server undoes an open transaction by itself."""
        self._connection.close()

    def fetch(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement of ours."""
        return self._connection.execute(text.encode(), parameters or None).fetchall()

    def settle(self, rows: Rows) -> bytes:
        """Put `rows` in place, and return statements that put there what the schema's constraints have let in."""
        tables = [compose.Identifier(table) for table in rows]
        clear = [compose.SQL("DELETE FROM {}").format(table) for table in tables]
        statements: list[compose.Composable] = [
            compose.SQL("SET LOCAL search_path = {}").format(compose.Identifier(self.fuzzed)),
            *clear,
        ]
        self._tables = tables
        self._renew()
        self._execute(statements)
        for table, (columns, values) in rows.items():
            taken = values
            if values and not self._takes(_insertion(table, columns, values)):
                taken = [row for row in values if self._takes(_insertion(table, columns, [row]))]
            if taken:
                statements.append(_insertion(table, columns, taken))
        self._loaded = compose.SQL("; ").join(statements).as_bytes(self._connection)
        return self._loaded

    def run(self, fill: bytes | None, query: str, max_rows: int, max_bytes: int, deadline: float) -> Result:
        """All rows of `query` after `fill` (of `settle`; `None`: on the given instance). Raises `QueryError`."""
        if fill is not None and fill is not self._loaded:
            self._renew()
            self._connection.execute(fill)
            self._loaded = fill
        query = _single(query)
        path = self.given if fill is None else self.fuzzed
        left = max(1, int(1000 * (deadline - monotonic())))
        self._connection.execute(
            f"SAVEPOINT query; SET LOCAL statement_timeout = {left}; SET LOCAL search_path = {path}".encode()
        )
        try:
            if refused := self._permit(query):
                raise QueryError("denied", refused)
            self._connection.execute("SET LOCAL transaction_read_only = on")
            # Counted on the server: what is too much never comes here.
            text = "octet_length(q::text)"
            num, size = self._alone(f"SELECT count(*), coalesce(sum({text}), 0) FROM (\n{query}\n) AS q").rows[0]
            if int(str(num)) > max_rows:
                raise QueryError("limit", f"more than {max_rows} rows")
            if int(str(size)) > max_bytes:
                raise QueryError("limit", f"more than {max_bytes} bytes of values")
            return self._alone(query)
        except psycopg.errors.QueryCanceled:
            raise QueryError("limit", "the time limit passed") from None
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise QueryError("denied", _brief(error)) from None
        except psycopg.OperationalError as error:
            if self._connection.broken:
                raise
            raise QueryError("limit", _brief(error)) from None
        except (psycopg.Error, UnicodeEncodeError, ValueError) as error:
            raise QueryError("error", _brief(error)) from None
        finally:
            if not self._connection.broken:
                self._connection.execute("ROLLBACK TO SAVEPOINT query; RELEASE SAVEPOINT query")

    def _permit(self, query: str) -> str:
        """Why `query` is not allowed; "" where it is. A view's definition is analysed and stored, and never run."""
        if query not in self._permitted:
            self._alone(f"CREATE TEMP VIEW rlvr_asked AS SELECT 1 AS one FROM (\n{query}\n) AS q")
            (tree,) = self._row(
                "SELECT ev_action::text FROM pg_rewrite WHERE ev_class = 'pg_temp.rlvr_asked'::regclass"
            )
            self._permitted[query] = self._refusal(str(tree))
        return self._permitted[query]

    def _refusal(self, tree: str) -> str:
        for node, what in _REFUSED.items():
            if f"{{{node} " in tree:
                return f"{what} is not allowed"
        functions = sorted({int(number) for number in _FUNCTION.findall(tree)})
        for name, namespace in self.fetch(
            "SELECT proname, pronamespace::regnamespace::text FROM pg_proc WHERE oid = ANY(%s)", functions
        ):
            if namespace not in (self.given, self.fuzzed) and (namespace != "pg_catalog" or name not in FUNCTIONS):
                return f"the function {name} is not allowed"
        relations = sorted({int(number) for number in _RELATION.findall(tree)} - {0})
        for name, namespace in self.fetch(
            "SELECT relname, relnamespace::regnamespace::text FROM pg_class WHERE oid = ANY(%s)", relations
        ):
            if namespace not in (self.given, self.fuzzed) and name != "rlvr_asked":
                return f"reading {name} is not allowed"
        return ""

    def _takes(self, statement: compose.Composed) -> bool:
        """Whether the statement was carried out; one that the data does not allow changes nothing."""
        self._connection.execute("SAVEPOINT fill")
        try:
            self._connection.execute(statement)
        except (psycopg.errors.DataError, psycopg.errors.IntegrityError):
            self._connection.execute("ROLLBACK TO SAVEPOINT fill; RELEASE SAVEPOINT fill")
            return False
        self._connection.execute("RELEASE SAVEPOINT fill")
        return True

    def _renew(self) -> None:
        self._fills += 1
        if self._tables and self._fills % FILLS == 0:
            self._path(self.fuzzed)
            self._connection.execute(compose.SQL("TRUNCATE {}").format(compose.SQL(", ").join(self._tables)))

    def _execute(self, statements: Sequence[compose.Composable]) -> None:
        self._connection.execute(compose.SQL("; ").join(statements))

    def _limit(self, deadline: float) -> None:
        left = max(1, int(1000 * (deadline - monotonic())))
        self._connection.execute(f"SET LOCAL statement_timeout = {left}".encode())

    def _path(self, schema: str) -> None:
        self._connection.execute(f"SET LOCAL search_path = {schema}".encode())

    def _alone(self, statement: str) -> Result:
        """The rows of a text that may hold one statement only: the extended protocol takes no second one."""
        answer = self._connection.pgconn.exec_params(statement.encode(), None)
        if answer.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(answer)
        readers = [_READ.get(answer.ftype(column), str) for column in range(answer.nfields)]

        def value(row: int, column: int) -> Value:
            raw = answer.get_value(row, column)
            return None if raw is None else readers[column](raw.decode())

        rows = [tuple(value(row, column) for column in range(answer.nfields)) for row in range(answer.ntuples)]
        return Result([(answer.fname(column) or b"").decode() for column in range(answer.nfields)], rows, 0)

    def _row(self, statement: str) -> tuple[Any, ...]:
        return self._connection.execute(statement.encode()).fetchone() or ()


def _insertion(table: str, columns: Sequence[str], rows: Sequence[Row]) -> compose.Composed:
    """One statement that inserts all rows, whatever their types: the server reads each value as its column's."""
    return compose.SQL(
        "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE "
        "SELECT {names} FROM jsonb_populate_recordset(NULL::{table}, {rows}::jsonb)"
    ).format(
        table=compose.Identifier(table),
        names=compose.SQL(", ").join(map(compose.Identifier, columns)),
        rows=compose.Literal(json.dumps([dict(zip(columns, row, strict=True)) for row in rows])),
    )


def _single(query: str) -> str:
    """The query without semicolons at its end; one inside makes it more than one statement."""
    words = tokens(query)
    while words and words[-1].text == ";":
        query = query[: words.pop().start]
    return query


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
