"""Judges a SQL query by what it returns: the same rows as the reference, on the same several databases.

    answer -> query -> worker process: given instance, fuzzed instances -> compare with the reference -> verdict

The reference of a task: `{"schema": "CREATE TABLE ...; INSERT ...", "query": "SELECT ..."}`, with optional `"settings"`
that override this verifier's for the one task. The dialect is SQLite's.

| module          | what it knows                                                              |
|-----------------|----------------------------------------------------------------------------|
| `sql_text`      | the query in an answer; ORDER BY and LIMIT of the reference, read by tokens |
| `sql_run`       | one read-only query under an allow-list and limits                         |
| `sql_values`    | values on which look-alike queries differ                                  |
| `sql_instances` | databases of a schema, filled with them                                    |
| `sql_compare`   | rows against rows: multisets, ties, tolerances                             |
| `sql_judge`     | the above, for one reference and one query                                 |
| `sql_worker`    | the processes that this runs in                                            |

Whose fault a failure is, this side decides, by where the worker was: at the reference's work, or at the query's. A
worker that dies over the query is replaced and given the reference as the query (the canary); only if that fails too is
the verdict invalid.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from rlvr.types import Message, Task, Verdict, judged, last_answer
from verifiers import worker
from verifiers.sql_text import Top, extract, is_query

GRACE = 0.5  # seconds that a worker has beyond its own limits to say that they passed
_HERE = Path(__file__).parent
_SOURCE = hashlib.sha256(b"".join(path.read_bytes() for path in [*sorted(_HERE.glob("sql*.py")), _HERE / "worker.py"]))
_pool = worker.WorkerPool("verifiers.sql_worker")
_turns: list[threading.Lock] = []


def _open_turns() -> None:
    _turns[:] = [threading.Lock() for _ in range(64)]


_open_turns()
os.register_at_fork(after_in_child=_open_turns)  # a child has the locks, but not the threads that would let them go


class Reply(NamedTuple):
    """`answer` is None where the worker died or was killed; `stage` tells whose work it was at."""

    answer: dict[str, Any] | None
    stage: Literal["reference", "query"]
    timed_out: bool


class SqlSettings(BaseModel):
    """What counts as correct, and what a query may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["equivalent", "executes"] = Field(
        "equivalent", description="`executes`: one read-only statement that runs on the given instance and returns rows"
    )
    order: Literal["reference", "always", "never"] = Field(
        "reference", description="whether the order of rows counts: where the reference's top level orders"
    )
    columns: Literal["position", "name"] = "position"
    relative: float = Field(1e-9, ge=0, description="tolerance of numbers that are not whole")
    absolute: float = Field(0.0, ge=0)
    null_is_empty: bool = Field(False, description="NULL, 0 and '' are the same")
    ignore_case: bool = False
    instances: int = Field(80, ge=0, le=1000, description="fuzzed instances; half as many for new constants")
    seed: int = 0
    now: str = Field("2025-01-15 12:00:00", description="what 'now' and CURRENT_TIMESTAMP are, in UTC")
    seconds: float = Field(
        0.5, gt=0, description="processor time of a query on all instances, or twice what the reference took"
    )
    reference_seconds: float = Field(20.0, gt=0, description="processor time of preparing a reference")
    max_steps: PositiveInt = Field(5_000_000, description="VM steps on one instance, or 20 times the reference's")
    max_rows: PositiveInt = Field(50_000, description="of the reference; a query may return no more than that does")
    max_value_bytes: PositiveInt = Field(200_000, description="size of one value")
    max_result_bytes: PositiveInt = Field(32_000_000, description="size of all texts and blobs of one result")
    max_query: PositiveInt = Field(20_000, description="characters of a query")

    def plain(self) -> dict[str, Any]:
        """What the worker is told."""
        rules = {"relative", "absolute", "null_is_empty", "ignore_case"}
        return {**self.model_dump(exclude=rules), "rules": self.model_dump(include=rules)}


class SqlVerifier:
    """Correct when the query returns what the reference returns, on every instance. Works in any thread and process."""

    id = "sql"

    def __init__(self, settings: SqlSettings | None = None) -> None:
        self.settings = settings or SqlSettings()
        code = _SOURCE.copy()
        code.update(self.settings.model_dump_json().encode())
        self.version = code.hexdigest()[:12]

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """The last assistant message holds the query: see `sql_text.extract`."""
        checks = {"extracted": False}
        verdict = partial(judged, self, checks=checks, started=perf_counter())

        try:
            settings = self._settings(task)
            request = _request(task, settings)
        except (KeyError, TypeError, ValueError) as error:
            return verdict("invalid", f"the reference of task {task.id}: {_told(error)}")
        query = extract(last_answer(transcript))
        if query is None:
            return verdict("incorrect", "no query in the answer: a fenced sql block, or the query alone")
        checks["extracted"] = True
        if len(query) > settings.max_query:
            return verdict("incorrect", f"a query of {len(query)} characters, and at most {settings.max_query} are run")
        if not is_query(query):
            checks["read_only"] = False
            return verdict("incorrect", "the statement is no SELECT, WITH or VALUES")
        reply = self._in_turn({**request, "query": query}, settings)
        if reply.answer is None and reply.stage == "query":
            canary = self._in_turn({**request, "query": request["reference"] or "SELECT 1"}, settings)
            if canary.answer is not None and canary.answer["outcome"] != "invalid":
                checks |= {"read_only": True, "runs": False}
                return verdict(
                    "incorrect", f"the query {'runs for too long' if reply.timed_out else 'brings SQLite down'}"
                )
            return verdict("invalid", "the SQL worker fails on the reference too: out of time or memory here")
        if reply.answer is None:
            why = f"took more than {settings.reference_seconds:g} seconds" if reply.timed_out else "ended its worker"
            return verdict("invalid", f"the reference of task {task.id} {why}")
        checks |= reply.answer["checks"]
        outcome, reason = reply.answer["outcome"], reply.answer["reason"]
        if outcome == "invalid":
            reason = f"the reference of task {task.id}: {reason}"
        elif settings.mode == "equivalent":
            checks["equivalent"] = outcome == "correct"
        else:
            checks["rows"] = outcome == "correct"
        return verdict(outcome, reason)

    def explain(self, task: Task, transcript: Sequence[Message]) -> list[str]:
        """The query that is run, and what it is held to: lines for a person."""
        query = extract(last_answer(transcript))
        lines = ["extracted query:", *(f"    {line}" for line in (query or "none").splitlines()[:60])]
        try:
            settings = self._settings(task)
            top = Top(_request(task, settings)["reference"])
        except (KeyError, TypeError, ValueError) as error:
            return [*lines, f"reference: {_told(error)}"]
        ordered = top.ordered if settings.order == "reference" else settings.order == "always"
        num = settings.instances if settings.mode == "equivalent" else 0
        return [
            *lines,
            f"mode: {settings.mode}, on the given instance and {num} fuzzed ones",
            f"the order of rows {'counts' if ordered else 'does not count'}; columns by {settings.columns}",
        ]

    def _in_turn(self, request: dict[str, Any], settings: SqlSettings) -> Reply:
        """One query on a reference at a time: preparing it takes longer than all the queries of a group, and the first
        prepares it for the others."""
        with _turns[hash((request["schema"], request["reference"])) % len(_turns)]:
            return self._ask(request, settings)

    def _ask(self, request: dict[str, Any], settings: SqlSettings) -> Reply:
        """Asks a worker, which is ended where it does not answer."""
        try:
            return Reply(_pool.call(request, settings.reference_seconds + GRACE), "query", timed_out=False)
        except worker.WorkerError as error:
            late = isinstance(error, worker.WorkerTimeoutError)
            return Reply(None, "query" if error.stage else "reference", timed_out=late)

    def _settings(self, task: Task) -> SqlSettings:
        own = task.reference.get("settings")
        return SqlSettings.model_validate(self.settings.model_dump() | own) if own else self.settings


def _request(task: Task, settings: SqlSettings) -> dict[str, Any]:
    query = task.reference.get("query", "") if settings.mode == "executes" else task.reference["query"]
    schema = task.reference["schema"]
    for name, value in (("schema", schema), ("query", query)):
        if not isinstance(value, str):
            raise TypeError(f"{name!r} is {type(value).__name__}, not text")
    return {"schema": schema, "reference": query, "settings": settings.plain()}


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"settings.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
