"""Judges queries, in the process that `sql_worker` starts: nothing here is imported by the trainer.

A reference is prepared once (its instances, and what it answers on each) and kept for the next queries on it. Every
exception that this module lets through is a fault of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from verifiers import sql_run
from verifiers.sql_compare import Expectation, Rules, difference
from verifiers.sql_instances import Schema
from verifiers.sql_run import Database, QueryError, Result, Row
from verifiers.sql_text import RANK, Top, is_query
from verifiers.sql_values import constants

KEPT = 8  # prepared references; a group's queries come close together
SLACK = 20  # times the reference's steps that a query may take, where that is more than `max_steps`
FAIR = 2  # times the reference's processor time that a query may take, where that is more than `seconds`
GRACE = 0.2  # seconds of a query beyond its limit, to say that it passed


class ReferenceFault(Exception):
    """The reference itself cannot be used. The message names what is wrong with it."""


class Queryable(Protocol):
    """One database of an engine: `sql_run.Database`, or another with its contract."""

    def run(self, sql: str, *, max_rows: int, max_bytes: int, max_steps: int, deadline: float) -> Result: ...

    def lock(self, max_value_bytes: int) -> None: ...

    def close(self) -> None: ...


class Fuzzer(Protocol):
    """Makes databases of one schema: `sql_instances.Schema`."""

    def instances(
        self, queries: list[str], num: int, seed: str, deadline: float
    ) -> Iterator[tuple[Queryable, Queryable]]: ...


@dataclass(frozen=True)
class Instance:
    """A database, what the reference answers on it, and in how many steps."""

    name: str
    database: Queryable
    expected: Expectation
    steps: int


class Reference:
    """A schema and a query, run on all instances. The engine is SQLite; a subclass's `open` chooses another."""

    def __init__(self, schema: str, query: str, settings: dict[str, Any]) -> None:
        self.query, self.settings = query, settings
        self.rules = Rules(**settings["rules"])
        self.seed = hashlib.sha256(f"{schema}\0{query}\0{settings['seed']}".encode()).hexdigest()
        self.constants = constants(query)
        self.seconds = self._running = 0.0  # what its own runs took while it was prepared; what they have taken so far
        self.deadline = sql_run.clock() + settings["reference_seconds"]
        self.max_steps = SLACK * settings["max_steps"]
        try:
            given, self.schema = self.open(schema)
        except Exception as error:
            raise ReferenceFault(f"the schema fails: {type(error).__name__}: {error}") from error
        self.top = Top(query)
        self.names: list[str] = []
        if settings["mode"] == "executes" and not query.strip():
            given.lock(settings["max_value_bytes"])
            self.instances = [Instance("the given instance", given, Expectation([[]]), 0)]
            return
        if not is_query(query):
            raise ReferenceFault("the reference query is no SELECT, WITH or VALUES")
        try:
            first = self._instance("the given instance", given)
        except QueryError as error:
            raise ReferenceFault(f"the reference query fails: {error}") from error
        self.instances = [first]
        if settings["mode"] == "equivalent" and self.schema is not None:
            self.instances += self._fuzzed([query], settings["instances"], "fuzzed instance")
        self.seconds = self._running

    def open(self, schema: str) -> tuple[Queryable, Fuzzer | None]:
        """The given instance, and what makes others like it, unless the settings want none."""
        given = Database(self.settings["now"])
        given.load(schema, self.deadline)
        return given, Schema(given, self.settings["now"]) if self.settings["instances"] else None

    @property
    def query_seconds(self) -> float:
        """What a query may take on the instances of this reference."""
        return float(max(self.settings["seconds"], FAIR * self.seconds))

    def extra(self, query: str) -> list[Instance]:
        """Instances around the constants that `query` has and the reference has not."""
        if self.schema is None or not constants(query) - self.constants:
            return []
        # Not the reference's own limits: constants can be chosen to make it slow.
        self.deadline = sql_run.clock() + self.query_seconds / 2
        self.max_steps = self.settings["max_steps"]
        return self._fuzzed([self.query, query], max(self.settings["instances"] // 2, 1), "instance of its constants")

    def _fuzzed(self, queries: list[str], num: int, name: str) -> list[Instance]:
        assert self.schema is not None
        instances = []
        for number, pair in enumerate(self.schema.instances(queries, num, self.seed, self.deadline)):
            database, other = pair if number % 2 else pair[::-1]
            try:
                instance = self._instance(f"{name} {number + 1}", database)
                other.lock(self.settings["max_value_bytes"])
                if difference(instance.expected, self._run(other, self.query).rows, self.rules) is None:
                    instances.append(instance)
                    continue
                # What depends on the order in which rows happen to be stored is no answer to hold a query to.
            except QueryError:
                pass  # it fails here: an overflow, say
            finally:
                other.close()
            database.close()
        return instances

    def _instance(self, name: str, database: Queryable) -> Instance:
        database.lock(self.settings["max_value_bytes"])
        result = self._run(database, self.query)
        self.names = result.names
        return Instance(name, database, self._expectation(database, result), result.steps)

    def _run(self, database: Queryable, query: str) -> Result:
        limits, start = self.settings, sql_run.clock()
        try:
            return database.run(
                query,
                max_rows=limits["max_rows"],
                max_bytes=limits["max_result_bytes"],
                max_steps=self.max_steps,
                deadline=self.deadline,
            )
        finally:
            self._running += sql_run.clock() - start

    def _expectation(self, database: Queryable, result: Result) -> Expectation:
        """What the reference allows: ties in any order, and any of them where a LIMIT cuts through."""
        ordered = self.top.ordered if self.settings["order"] == "reference" else self.settings["order"] == "always"
        strict = Expectation([[row] for row in result.rows] if ordered else [result.rows])
        if not self.top.ordered and not self.top.limited:
            return strict
        if self.top.ordered and not ordered and not self.top.limited:
            return strict
        try:
            groups = self._groups(database, result.names)
            limit, offset = None, 0
            if self.top.window is not None:
                limit, offset = (int(str(value or 0)) for value in self._run(database, self.top.window).rows[0])
        except (QueryError, ValueError):
            return strict
        if groups is None:
            return strict
        expected = Expectation(groups, max(offset, 0), limit if limit is None or limit >= 0 else None)
        if difference(expected, result.rows, self.rules) is not None:
            return strict  # the rewritten query is not the same query
        return expected

    def _groups(self, database: Queryable, names: list[str]) -> list[list[Row]] | None:
        """The rows without LIMIT, in groups that the ORDER BY leaves equal."""
        if not self.top.ordered:
            return [self._run(database, self.top.unlimited).rows]
        query = self.top.ranked(names)
        if query is None:
            return None
        ranked = self._run(database, query)
        if ranked.names[-1] != RANK or len(ranked.names) != len(names) + 1:
            return None
        groups: dict[Any, list[Row]] = {}
        for row in ranked.rows:
            groups.setdefault(row[-1], []).append(row[:-1])
        return list(groups.values())

    def close(self) -> None:
        for instance in self.instances:
            instance.database.close()


class Judge:
    """Answers requests. Keeps the references that it prepared last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Reference] = OrderedDict()

    def judge(self, request: dict[str, Any], go_on: Callable[[float], None]) -> dict[str, Any]:
        """`go_on` is called with the query's time limit, between the reference's work and the first look at it."""
        try:
            reference = self._reference(request)
        except ReferenceFault as fault:
            return {"outcome": "invalid", "reason": str(fault), "checks": {}}
        except Exception as error:  # ours; over the query it would end this process, and the parent look into it
            return {"outcome": "invalid", "reason": f"it cannot be prepared: {error!r}", "checks": {}}
        go_on(2 * reference.query_seconds + GRACE)  # half of it for instances around the query's own constants
        return compare(reference, request["query"], request["settings"])

    def _reference(self, request: dict[str, Any]) -> Reference:
        key = json.dumps([request["schema"], request["reference"], request["settings"]], sort_keys=True)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while len(self._kept) >= KEPT:
            self._kept.popitem(last=False)[1].close()
        reference = Reference(request["schema"], request["reference"], request["settings"])
        self._kept[key] = reference
        return reference


def compare(reference: Reference, query: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request: the query against the reference, instance by instance."""
    checks = {"read_only": True, "runs": False}
    deadline = sql_run.clock() + reference.query_seconds
    equivalent = settings["mode"] == "equivalent"

    def answer(outcome: str, reason: str) -> dict[str, Any]:
        return {"outcome": outcome, "reason": reason, "checks": checks}

    def look(instance: Instance) -> str | None:
        """What is wrong with the query on one instance."""
        size = sum(map(len, instance.expected.groups))
        try:
            result = instance.database.run(
                query,
                max_rows=size if equivalent else settings["max_rows"],
                max_bytes=settings["max_result_bytes"],
                max_steps=max(settings["max_steps"], SLACK * instance.steps),
                deadline=deadline,
            )
        except QueryError as error:
            checks["read_only"] &= error.kind != "denied"
            checks["runs"] |= error.kind == "limit" and equivalent and str(error).endswith(" rows")
            return f"on {instance.name}: {error}"
        checks["runs"] = True
        if not equivalent:
            if not result.rows and (not reference.query.strip() or instance.expected.size):
                return f"on {instance.name}: no rows"
            return None
        rows = result.rows
        if len(result.names) != len(reference.names):
            return f"{len(result.names)} columns, expected {len(reference.names)}"
        if settings["columns"] == "name":
            wanted, got = ([name.lower() for name in names] for names in (reference.names, result.names))
            if sorted(wanted) != sorted(got):
                return f"columns named {', '.join(got)}; expected {', '.join(wanted)}"
            rows = [tuple(row[got.index(name)] for name in wanted) for row in rows]
        wrong = difference(instance.expected, rows, reference.rules)
        return None if wrong is None else f"on {instance.name}: {wrong}"

    for instance in reference.instances:
        wrong = look(instance)
        if wrong is not None:
            return answer("incorrect", wrong)
    num = len(reference.instances)
    if equivalent:
        extra = reference.extra(query)
        deadline = sql_run.clock() + reference.query_seconds / 2
        try:
            for instance in extra:
                wrong = look(instance)
                if wrong is not None:
                    return answer("incorrect", wrong)
        finally:
            for instance in extra:
                instance.database.close()
        num += len(extra)
        return answer("correct", f"the reference's rows on {num} instances")
    return answer("correct", "runs and returns rows")
