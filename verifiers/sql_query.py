"""The rows of one query, for a tool that lets a model look at a database: `verifiers.sql`'s limits, without a verdict.

SQLite's queries run in a worker process of their own pool (`python -m verifiers.sql_query`), which is killed where a
query spends its time out of SQLite's sight.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from verifiers.sql_run import Database, QueryError, Result
from verifiers.worker import WorkerLostError, WorkerPool, WorkerTimeoutError, serve

GRACE_SECONDS = 1.0  # beyond its limit, for a worker to say that it passed
SCHEMA_SECONDS = 20.0

_pool = WorkerPool("verifiers.sql_query")


def rows(schema: str, query: str, settings: dict[str, Any]) -> Result:
    """What `query` returns on the given instance of `schema`. `settings` are `SqlSettings.plain()`.

    Raises `QueryError`, which tells a model what went wrong, and `ValueError` for a schema that fails.
    """
    seconds = settings["seconds"]
    try:
        reply = _pool.call(
            {"schema": schema, "query": query, "settings": settings}, SCHEMA_SECONDS + seconds + GRACE_SECONDS
        )
    except (WorkerTimeoutError, WorkerLostError):
        raise QueryError("limit", f"the query takes more than {seconds:g} seconds, or too much memory") from None
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

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        settings = request["settings"]
        try:
            database = self._open(request["schema"], settings)
        except Exception as error:
            return {"schema": repr(error)}
        try:
            found = database.run(
                request["query"],
                max_rows=settings["max_rows"],
                max_bytes=settings["max_value_bytes"],
                max_steps=settings["max_steps"],
                deadline=monotonic() + settings["seconds"],
            )
        except QueryError as error:
            return {"kind": error.kind, "error": str(error)}
        return {"names": found.names, "rows": [[_json(value) for value in row] for row in found.rows]}

    def _open(self, schema: str, settings: dict[str, Any]) -> Database:
        if self._database is None or schema != self._schema:
            if self._database is not None:
                self._database.close()
            self._schema, self._database = None, Database(settings["now"])
            self._database.load(schema, monotonic() + SCHEMA_SECONDS)
            self._database.lock(settings["max_value_bytes"])
            self._schema = schema
        return self._database


def _json(value: Any) -> Any:
    return f"X'{value.hex()}'" if isinstance(value, bytes) else value


if __name__ == "__main__":
    serve(_Tables().answer)
