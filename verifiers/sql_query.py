"""The rows of one query, for a tool that lets a model look at a database: `verifiers.sql`'s limits, without a verdict.

Queries on SQLite run in worker processes of a pool of their own, which are killed where a query spends its time out of
SQLite's sight.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

from verifiers import sql_run
from verifiers.sql_run import Database, QueryError, Result
from verifiers.sql_worker import HEAP
from verifiers.worker import WorkerError, WorkerPool, serve

GRACE_SECONDS = 0.5  # beyond its limit, for a worker to say that it passed
SCHEMA_SECONDS = 20.0

_pool = WorkerPool("verifiers.sql_query")


def rows(schema: str, query: str, settings: dict[str, Any]) -> Result:
    """What `query` returns on the given instance of `schema`. `settings` are `SqlSettings.plain()`.

    Raises `QueryError`, which tells a model what went wrong; `ValueError` for a schema that fails, and `WorkerError`
    where no worker can be had.
    """
    try:
        reply = _pool.call({"schema": schema, "query": query, "settings": settings}, SCHEMA_SECONDS)
    except WorkerError as error:
        if not error.stage:
            raise
        raise QueryError("limit", "the query takes too long, or too much memory") from None
    if "schema" in reply:
        raise ValueError(f"the schema fails: {reply['schema']}")
    if "kind" in reply:
        raise QueryError(reply["kind"], reply["error"])
    return Result(reply["names"], [tuple(row) for row in reply["rows"]], 0)


class _Tables:
    """The database that was asked last, kept for the next query on it."""

    def __init__(self) -> None:
        self._schema: str | None = None
        self._database: Database | None = None

    def answer(self, request: dict[str, Any], go_on: Callable[[float], None]) -> dict[str, Any]:
        settings = request["settings"]
        try:
            database = self._open(request["schema"], settings)
        except Exception as error:
            return {"schema": repr(error)}
        go_on(settings["seconds"] + GRACE_SECONDS)
        try:
            found = database.run(
                request["query"],
                max_rows=settings["max_rows"],
                max_bytes=settings["max_value_bytes"],
                max_steps=settings["max_steps"],
                deadline=sql_run.clock() + settings["seconds"],
            )
        except QueryError as error:
            return {"kind": error.kind, "error": str(error)}
        return {"names": found.names, "rows": [[_json(value) for value in row] for row in found.rows]}

    def _open(self, schema: str, settings: dict[str, Any]) -> Database:
        if self._database is None or schema != self._schema:
            if self._database is not None:
                self._database.close()
            self._schema, self._database = None, Database(settings["now"])
            self._database.load(schema, sql_run.clock() + SCHEMA_SECONDS)
            self._database.lock(settings["max_value_bytes"])
            self._schema = schema
        return self._database


def _json(value: Any) -> Any:
    return f"X'{value.hex()}'" if isinstance(value, bytes) else value


def main() -> None:
    """The worker."""
    sql_run.clock = process_time
    Database("2000-01-01").connection.execute(f"PRAGMA hard_heap_limit = {HEAP}")
    serve(_Tables().answer)
