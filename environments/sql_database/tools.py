"""`run_query`: what a model may do before it answers."""

from __future__ import annotations

from collections.abc import Callable

from rlvr.tools import ToolError
from verifiers.sql_run import QueryError, Result, Value

MAX_VALUE = 60  # characters of a value that are shown


class Queries:
    """The tools of one episode. `run` gives the rows of a query, or raises `QueryError`."""

    def __init__(self, run: Callable[[str], Result], *, max_queries: int, max_rows: int) -> None:
        self._run = run
        self._left = max_queries
        self._max_rows = max_rows

    def run_query(self, query: str) -> str:
        """Run one read-only SQL query on the database and see the first rows of what it returns.

        Args:
            query: one SELECT
        """
        if self._left == 0:
            raise ToolError("no calls of run_query are left; answer with your query")
        self._left -= 1
        try:
            found = self._run(query)
        except QueryError as error:
            raise ToolError(str(error)) from None
        shown = found.rows[: self._max_rows]
        lines = [" | ".join(found.names), *(" | ".join(map(_text, row)) for row in shown)]
        more = f", of which the first {len(shown)} are shown" if len(shown) < len(found.rows) else ""
        return "\n".join([*lines, f"({len(found.rows)} rows{more})"])


def _text(value: Value) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "..."
