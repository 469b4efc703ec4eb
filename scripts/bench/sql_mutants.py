"""How well the SQL verifier tells look-alike queries apart, and whether it lets correct rewrites through.

    python scripts/bench/sql_mutants.py             scores tests/data/sql: mutants caught, rewrites accepted, time
    python scripts/bench/sql_mutants.py --generate  writes mutants.jsonl anew from queries.jsonl (needs sqlglot)

A mutant is one small change to a correct query. It is kept when a search over random databases, which shares no code
and no values with the verifier, finds one on which the two queries answer differently; `witness` is that database's
seed, so that anyone can look. The domains of the search are written by hand in `schemas.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "tests" / "data" / "sql"
SEARCH = 300  # random databases that a mutant is compared on
KEPT = 12  # mutants of one query


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line.strip()]


def schemas() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DATA / "schemas.json").read_text())
    return value


# --- the search -------------------------------------------------------------------------------------------------------


def database(schema: dict[str, Any], seed: int) -> sqlite3.Connection:
    """A random database of hand-written domains: another generator than the verifier's, on purpose."""
    rng = random.Random(seed)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema["schema"])
    tables = list(schema["domains"])
    for table in reversed(tables):
        connection.execute(f"DELETE FROM {table}")
    keys: dict[str, list[Any]] = {}
    for table, columns in schema["domains"].items():
        num = rng.choice([0, 1, 2, 3, 4, 6, 9, 14])
        names = [f"{letter}{digit}" for letter in "ABCbv" for digit in range(1, 9)]
        rng.shuffle(names)
        numbers = rng.sample(range(1, 3 * num + 2), num)
        for i in range(num):
            row: list[Any] = []
            for domain in columns.values():
                chosen = rng.choice(domain) if isinstance(domain, list) else domain
                base, optional = str(chosen).rstrip("?"), str(chosen).endswith("?")
                if optional and rng.random() < 0.25:
                    row.append(None)
                elif chosen == "key":
                    row.append(numbers[i])
                elif base == "unique":
                    row.append(names[i])
                elif base in tables:
                    parents = keys.get(base, [])
                    row.append(rng.choice(parents) if parents else None)
                else:
                    row.append(chosen)
            marks = ", ".join("?" * len(row))
            if connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row).rowcount == 1:
                keys.setdefault(table, []).append(row[0])
    return connection


def answer(connection: sqlite3.Connection, query: str, ordered: bool) -> Any:
    """What a query returns, in a form to compare: sorted unless it orders, numbers to nine digits."""
    ticks = iter(range(300))  # a mutant may recurse without end
    connection.set_progress_handler(lambda: next(ticks, None) is None, 1000)
    try:
        rows = connection.execute(query).fetchmany(2000)
    except sqlite3.Error as error:
        return str(error)
    finally:
        connection.set_progress_handler(None, 0)
    plain = [tuple(float(f"{v:.9g}") if isinstance(v, int | float) else v for v in row) for row in rows]
    return plain if ordered else sorted(plain, key=repr)


class Search:
    """Random databases of one schema, and what one query answers on each of them."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.connections = [database(schema, seed) for seed in range(SEARCH)]

    def query(self, query: str, ordered: bool) -> None:
        self.ordered = ordered
        self.expected = [answer(connection, query, ordered) for connection in self.connections]
        self.twins = [self._reversed(connection, query) for connection in self.connections]

    def witness(self, mutant: str) -> int | None:
        """The seed of a database on which the mutant answers otherwise, where the query's own answer is well defined:
        it must not change when SQLite reads unordered rows backwards."""
        for seed, connection in enumerate(self.connections):
            expected = self.expected[seed]
            if (
                expected == self.twins[seed]
                and answer(connection, mutant, self.ordered) != expected
                and self._reversed(connection, mutant) != expected
            ):
                return seed
        return None

    def _reversed(self, connection: sqlite3.Connection, query: str) -> Any:
        connection.execute("PRAGMA reverse_unordered_selects = ON")
        try:
            return answer(connection, query, self.ordered)
        finally:
            connection.execute("PRAGMA reverse_unordered_selects = OFF")


# --- the mutants ------------------------------------------------------------------------------------------------------


def mutants(query: str, schema: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of every one-step change that is known here."""
    import sqlglot
    from sqlglot import exp

    def text(tree: exp.Expression) -> str:
        return tree.sql(dialect="sqlite")

    tree = sqlglot.parse_one(query, read="sqlite")
    columns = _columns(schema)
    for index, node in enumerate(tree.walk()):
        for kind, change in _changes(node, columns):
            copy = tree.copy()
            target = next(n for i, n in enumerate(copy.walk()) if i == index)
            replacement = change(target)
            if replacement is target:
                yield kind, text(copy)
            elif replacement is not None:
                if target is copy:
                    yield kind, text(replacement)
                else:
                    target.replace(replacement)
                    yield kind, text(copy)


def _columns(schema: str) -> list[list[str]]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [[row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables]


def _changes(node: Any, tables: list[list[str]]) -> Iterator[tuple[str, Any]]:
    """(kind, function that changes a copy of `node` and returns it, or returns what replaces it)."""
    from sqlglot import exp

    def make(kind: type, **fixed: Any) -> Any:
        return lambda n: kind(this=n.this.copy(), expression=n.expression.copy(), **fixed)

    def without(*names: str) -> Any:
        def change(n: Any) -> Any:
            for name in names:
                n.set(name, None)
            return n

        return change

    swaps: dict[type, list[tuple[str, type]]] = {
        exp.LT: [("bound", exp.LTE), ("direction", exp.GT)],
        exp.LTE: [("bound", exp.LT), ("direction", exp.GTE)],
        exp.GT: [("bound", exp.GTE), ("direction", exp.LT)],
        exp.GTE: [("bound", exp.GT), ("direction", exp.LTE)],
        exp.EQ: [("negated", exp.NEQ)],
        exp.NEQ: [("negated", exp.EQ)],
        exp.And: [("and/or", exp.Or)],
        exp.Or: [("and/or", exp.And)],
        exp.Add: [("arithmetic", exp.Sub)],
        exp.Sub: [("arithmetic", exp.Add)],
        exp.Mul: [("arithmetic", exp.Add)],
        exp.Like: [("like", exp.EQ), ("like", exp.Glob)],
    }
    for kind, other in swaps.get(type(node), []):
        yield kind, make(other)
    if isinstance(node, exp.And | exp.Or):
        yield "lost condition", lambda n: n.left.copy()
        yield "lost condition", lambda n: n.right.copy()
    if isinstance(node, exp.Between):
        yield "between", lambda n: exp.and_(exp.GT(this=n.this.copy(), expression=n.args["low"].copy()),
                                            exp.LTE(this=n.this.copy(), expression=n.args["high"].copy()))  # fmt: skip
        yield "between", lambda n: exp.and_(exp.GTE(this=n.this.copy(), expression=n.args["low"].copy()),
                                            exp.LT(this=n.this.copy(), expression=n.args["high"].copy()))  # fmt: skip
    if isinstance(node, exp.Not):
        yield "negated", lambda n: n.this.copy()
    if isinstance(node, exp.Is):
        yield "null test", lambda n: exp.Not(this=n.copy())
        yield "null test", lambda n: exp.EQ(this=n.this.copy(), expression=n.expression.copy())
    if isinstance(node, exp.In | exp.Exists):
        yield "in/not in", lambda n: exp.Not(this=n.copy())
    if isinstance(node, exp.Coalesce):
        yield "lost null", lambda n: n.this.copy()
    aggregates = {exp.Sum: "AVG TOTAL MAX", exp.Avg: "SUM MAX MIN", exp.Max: "MIN SUM", exp.Min: "MAX AVG"}
    for name in aggregates.get(type(node), "").split():
        yield "aggregate", lambda n, name=name: exp.Anonymous(this=name, expressions=[n.this.copy()])
    if isinstance(node, exp.Sum | exp.Avg):
        yield "distinct", lambda n: type(n)(this=exp.Distinct(expressions=[n.this.copy()]))
    if isinstance(node, exp.Count):
        if isinstance(node.this, exp.Star):
            for columns in tables:
                for column in columns:
                    yield "count", lambda n, c=column: exp.Count(this=exp.column(c))
        elif isinstance(node.this, exp.Distinct):
            yield "distinct", lambda n: exp.Count(this=n.this.expressions[0].copy())
        else:
            yield "count", lambda n: exp.Count(this=exp.Star())
            yield "distinct", lambda n: exp.Count(this=exp.Distinct(expressions=[n.this.copy()]))
    if isinstance(node, exp.Literal) and not node.is_string and not isinstance(node.parent, exp.Ordered):
        for step in (1, -1):
            value = float(node.this) + step
            yield "off by one", lambda n, v=value: exp.Literal.number(int(v) if v.is_integer() else v)
    if isinstance(node, exp.Literal) and node.is_string:
        if node.this.swapcase() != node.this:
            yield "case", lambda n: exp.Literal.string(n.this.swapcase())
        if node.this.endswith("%"):
            yield "like", lambda n: exp.Literal.string("%" + n.this)
            yield "like", lambda n: exp.Literal.string(n.this[:-1])
    if isinstance(node, exp.Join):
        if node.side == "LEFT":
            yield "join", without("side")
        elif not node.side and node.args.get("on"):
            yield "join", lambda n: (n.set("side", "LEFT"), n)[1]
        if node.args.get("on"):
            yield "lost join condition", without("on", "side")
    if isinstance(node, exp.Union | exp.Intersect | exp.Except):
        parts = {"this": node.this, "expression": node.expression}
        for other in (exp.Union, exp.Intersect, exp.Except):
            if not isinstance(node, other):
                yield (
                    "set operation",
                    lambda n, o=other, p=parts: o(
                        this=p["this"].copy(), expression=p["expression"].copy(), distinct=True
                    ),
                )
        yield "set operation", lambda n: n.expression.copy()
        if isinstance(node, exp.Union):
            yield "union all", lambda n: (n.set("distinct", not n.args.get("distinct")), n)[1]
    if isinstance(node, exp.Ordered):
        yield "order", lambda n: (n.set("desc", not n.args.get("desc")), n.set("nulls_first", None), n)[2]
    if isinstance(node, exp.Order) and len(node.expressions) > 1:
        yield "order", lambda n: (n.set("expressions", n.expressions[:1]), n)[1]
        yield "order", lambda n: (n.set("expressions", n.expressions[::-1]), n)[1]
    if isinstance(node, exp.Window):
        yield "window", without("partition_by")
        for name in ("RANK", "DENSE_RANK", "ROW_NUMBER"):
            if isinstance(node.this, exp.Rank) and name != "RANK":
                yield "window", lambda n, name=name: (n.set("this", exp.Anonymous(this=name)), n)[1]
    if isinstance(node, exp.Case):
        yield "case else", without("default")
        yield "case branch", lambda n: (n.set("ifs", n.args["ifs"][::-1]), n)[1] if len(n.args["ifs"]) > 1 else None
    if isinstance(node, exp.Group) and len(node.expressions) > 1:
        for i in range(len(node.expressions)):
            yield "group by", lambda n, i=i: (n.set("expressions", n.expressions[:i] + n.expressions[i + 1 :]), n)[1]
    if isinstance(node, exp.Select):
        distinct = exp.Distinct()
        yield "distinct", lambda n: (n.set("distinct", None if n.args.get("distinct") else distinct), n)[1]
        for part in ("where", "having", "limit", "offset", "order", "group"):
            if node.args.get(part):
                yield f"lost {part}", without(part)
        if len(node.expressions) > 1:
            yield "columns swapped", lambda n: (n.set("expressions", n.expressions[::-1]), n)[1]
            yield "column lost", lambda n: (n.set("expressions", n.expressions[:-1]), n)[1]
    if isinstance(node, exp.Column) and isinstance(node.parent, exp.Select | exp.GT | exp.LT | exp.Group | exp.Count):
        for columns in tables:
            if node.name in columns:
                for other in columns:
                    if other != node.name:
                        yield "column", lambda n, o=other: exp.column(o, table=n.table or None)


def generate() -> None:
    rng = random.Random(0)
    kept: list[dict[str, Any]] = []
    same = Counter[str]()
    searches: dict[str, Search] = {}
    for entry in load("queries.jsonl"):
        schema = schemas()[entry["schema"]]
        if entry["schema"] not in searches:
            searches[entry["schema"]] = Search(schema)
        search = searches[entry["schema"]]
        search.query(entry["query"], _ordered(entry["query"]))
        found: dict[str, str] = {}
        for kind, mutant in mutants(entry["query"], schema["schema"]):
            found.setdefault(mutant, kind)
        connection = search.connections[0]
        candidates = [(kind, mutant) for mutant, kind in found.items() if _compiles(connection, mutant)]
        rng.shuffle(candidates)
        candidates.sort(key=lambda pair: pair[0] in ("column", "column lost", "columns swapped"))
        for kind, mutant in candidates[: KEPT + 4]:
            seed = search.witness(mutant)
            if seed is None:
                same[kind] += 1
            else:
                line = {"schema": entry["schema"], "query": entry["query"], "mutant": mutant}
                kept.append({**line, "kind": kind, "witness": seed})
        print(f"{len(kept):5} after {entry['query'][:90]}", flush=True)
    (DATA / "mutants.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    print(f"{len(kept)} mutants differ; of {sum(same.values())} no database was found: {dict(same.most_common())}")


def _compiles(connection: sqlite3.Connection, query: str) -> bool:
    try:
        connection.execute(f"EXPLAIN {query}")
    except sqlite3.Error:
        return False
    return True


def _ordered(query: str) -> bool:
    import sqlglot

    return sqlglot.parse_one(query, read="sqlite").args.get("order") is not None


# --- the score --------------------------------------------------------------------------------------------------------


def score(show: bool) -> int:
    from rlvr.types import Message, Task
    from verifiers.sql import SqlVerifier

    verifier = SqlVerifier()
    tables = {name: schema["schema"] for name, schema in schemas().items()}
    seconds: list[float] = []

    def outcome(schema: str, query: str, given: str) -> str:
        reference = {"schema": tables[schema], "query": query}
        task = Task(id=f"sql/test/{schema}", environment="sql", prompt=(), reference=reference)
        verdict = verifier.verify(task, [Message(role="assistant", content=f"```sql\n{given}\n```")])
        seconds.append(verdict.seconds)
        return verdict.outcome if verdict.outcome != "invalid" else f"invalid: {verdict.reason}"

    missed, kinds, caught = [], Counter[str](), Counter[str]()
    mutated = load("mutants.jsonl")
    for line in mutated:
        kinds[line["kind"]] += 1
        if outcome(line["schema"], line["query"], line["mutant"]) == "incorrect":
            caught[line["kind"]] += 1
        else:
            missed.append(line)
    rewrites = [(e, text) for e in load("queries.jsonl") for text in (e["query"], *e["rewrites"])]
    refused = [(e, text) for e, text in rewrites if outcome(e["schema"], e["query"], text) != "correct"]
    for kind, num in kinds.most_common():
        print(f"  {kind:22} {caught[kind]:4} of {num:4}")
    print(f"mutants told apart     {sum(caught.values())} of {len(mutated)}")
    print(f"correct forms accepted {len(rewrites) - len(refused)} of {len(rewrites)}")
    tail = statistics.quantiles(seconds, n=100)
    print(f"seconds a verdict      median {tail[49]:.4f}, 99th percentile {tail[98]:.4f}")
    if show or missed or refused:
        for line in missed:
            print(f"MISSED  [{line['kind']}] {line['query']}\n        {line['mutant']}   (witness {line['witness']})")
        for entry, text in refused:
            print(f"REFUSED {entry['query']}\n        {text}")
    return 1 if missed or refused else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", action="store_true", help="write mutants.jsonl anew")
    if parser.parse_args().generate:
        generate()
    else:
        sys.exit(score(show=False))
