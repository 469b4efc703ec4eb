"""Judges a SQL query on PostgreSQL: the rules, the instances and the verdicts of `verifiers.sql`, another engine.

    SqlVerifier.verify -> sql_judge (instances, comparison) -> sql_postgres_run.Session -> the server

The server is the box: there is no worker process. The DSN's role should own a database of its own and nothing else
(`PostgresVerifier.check` refuses one that could do harm). A server that goes away while it runs the model's query is
asked for the reference's rows on a new connection, and only if that fails too is the verdict invalid.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal

from rlvr.errors import ConfigError
from rlvr.types import Message, Task, Verdict
from verifiers.sql import Reply, SqlSettings, SqlVerifier
from verifiers.sql_judge import Fuzzer, Queryable, Reference, ReferenceFault, compare
from verifiers.sql_run import Result

try:
    import psycopg

    from verifiers.sql_postgres_run import Session
    from verifiers.sql_postgres_schema import PostgresDatabase, PostgresSchema
except ModuleNotFoundError as error:
    if error.name != "psycopg":
        raise
    raise ConfigError("PostgreSQL needs the package psycopg: pip install 'rlvr[postgresql]'") from None

DSN_VARIABLE = "RLVR_POSTGRESQL_DSN"
IDLE = 4  # connections kept for the next query, each with its open task


class PostgresReference(Reference):
    """A schema and a query, on one session's server."""

    def __init__(self, session: Session, key: str, schema: str, query: str, settings: dict[str, Any]) -> None:
        self._session, self._key = session, key
        super().__init__(schema, query, settings)

    def open(self, schema: str) -> tuple[Queryable, Fuzzer | None]:
        self._session.open(self._key, schema, self.deadline)
        given = PostgresDatabase(self._session, None)
        if not self.settings["instances"]:
            return given, None
        return given, PostgresSchema(self._session, self.settings["now"], self.deadline)


class _Judge:
    """A session and the reference that is open in it."""

    def __init__(self, dsn: str) -> None:
        self.session = Session(dsn)
        self.reference: PostgresReference | None = None

    def prepare(self, key: str, request: dict[str, Any]) -> PostgresReference:
        if self.reference is None or self.session.key != key:
            self.reference = None
            self.reference = PostgresReference(
                self.session, key, request["schema"], request["reference"], request["settings"]
            )
        return self.reference


class _Pool:
    """Judges of one server by thread of use; a fork of the process makes its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._idle: list[_Judge] = []
        self._pid = os.getpid()

    @contextmanager
    def judge(self, key: str) -> Iterator[_Judge]:
        """One of one's own for a while, the one that has `key` open if there is one. Closed if the block raises."""
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid = [], os.getpid()
            chosen = next((judge for judge in self._idle if judge.session.key == key), None)
            if chosen is None and len(self._idle) >= IDLE:
                chosen = self._idle[0]
            if chosen is not None:
                self._idle.remove(chosen)
        if chosen is not None and not chosen.session.alive:
            chosen.session.close()
            chosen = None
        judge = chosen or _Judge(self._dsn)
        kept = False
        try:
            yield judge
            with self._lock:
                kept = len(self._idle) < IDLE
                if kept:
                    self._idle.append(judge)
        finally:
            if not kept:
                judge.session.close()


_pools: dict[str, _Pool] = {}


class PostgresVerifier(SqlVerifier):
    """`SqlVerifier` on the server of `dsn`, which libpq reads: a URL, or "host=... dbname=...".

    `rlvr verify` knows no DSN: without one it stands in $RLVR_POSTGRESQL_DSN. Raises `ConfigError` without both.
    """

    id = "sql_postgresql"

    def __init__(self, dsn: str | None = None, settings: SqlSettings | None = None) -> None:
        super().__init__(settings)
        dsn = dsn or os.environ.get(DSN_VARIABLE)
        if not dsn:
            raise ConfigError(f"no PostgreSQL server to judge on: set {DSN_VARIABLE} to its DSN")
        self.version = hashlib.sha256(f"{self.version} postgresql".encode()).hexdigest()[:12]
        self._dsn = dsn

    def check(self) -> None:
        """Raises `ConfigError` where the server does not answer, or the role could do harm."""
        try:
            with self._pool.judge("") as judge:
                judge.session.check()
        except psycopg.Error as error:
            raise ConfigError(f"PostgreSQL does not answer at the DSN: {str(error).strip()}") from None

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        """See `SqlVerifier.verify`. A server that does not answer makes the verdict invalid."""
        start = monotonic()
        try:
            return super().verify(task, transcript)
        except psycopg.Error as error:
            return Verdict(
                outcome="invalid",
                reward=None,
                reason=f"PostgreSQL: {str(error).strip()[:300]}",
                checks={"server": False},
                verifier=self.id,
                version=self.version,
                seconds=monotonic() - start,
            )

    def rows(self, schema: str, query: str) -> Result:
        """As `verifiers.sql_query.rows`: of one query, on the given instance."""
        settings = self.settings.plain() | {"instances": 0, "mode": "executes"}
        request = {"schema": schema, "reference": "", "settings": settings}
        with self._pool.judge(_key(request)) as judge:
            try:
                given = judge.prepare(_key(request), request).instances[0].database
            except ReferenceFault as fault:
                raise ValueError(str(fault)) from None
            return given.run(
                query,
                max_rows=self.settings.max_rows,
                max_bytes=self.settings.max_value_bytes,
                max_steps=0,
                deadline=monotonic() + self.settings.seconds,
            )

    @property
    def _pool(self) -> _Pool:
        return _pools.setdefault(self._dsn, _Pool(self._dsn))

    def _ask(self, request: dict[str, Any], settings: SqlSettings) -> Reply:
        stage: Literal["reference", "query"] = "reference"
        try:
            with self._pool.judge(_key(request)) as judge:
                try:
                    reference = judge.prepare(_key(request), request)
                except ReferenceFault as fault:
                    return Reply({"outcome": "invalid", "reason": str(fault), "checks": {}}, stage, timed_out=False)
                stage = "query"
                return Reply(compare(reference, request["query"], request["settings"]), stage, timed_out=False)
        except psycopg.OperationalError:
            if stage == "reference":
                raise
            return Reply(None, stage, timed_out=False)


def _key(request: dict[str, Any]) -> str:
    text = json.dumps([request["schema"], request["reference"], request["settings"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
