from __future__ import annotations

import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.types import Message, Task, Verdict
from tests.clock import processor_seconds
from verifiers import sql, worker
from verifiers.sql import SqlSettings, SqlVerifier
from verifiers.sql_compare import Expectation, Rules, difference
from verifiers.sql_instances import Schema
from verifiers.sql_run import Database
from verifiers.sql_text import Top, extract, tokens

DATA = Path(__file__).parents[1] / "data" / "sql"
SCHEMAS = {name: value["schema"] for name, value in json.loads((DATA / "schemas.json").read_text()).items()}
EMPLOYEES = """
CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT NOT NULL, dept TEXT, salary REAL);
INSERT INTO emp VALUES (1, 'Ann', 'x', 10), (2, 'Bob', NULL, 20), (3, 'Cid', 'x', 20);
"""
TOP = "SELECT name FROM emp WHERE salary > 15 ORDER BY salary DESC LIMIT 2"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line.strip()]


def judge(query: str, given: str, schema: str = EMPLOYEES, **settings: Any) -> Verdict:
    reference = {"schema": schema, "query": query}
    task = Task(id="sql/train/0", environment="sql", prompt=(), reference=reference)
    return SqlVerifier(SqlSettings(**settings)).verify(task, [Message(role="assistant", content=given)])


def missed(mutants: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    verdicts = [(m, judge(m["query"], m["mutant"], SCHEMAS[m["schema"]])) for m in mutants]
    return [(m["query"], m["mutant"], v.reason) for m, v in verdicts if v.outcome != "incorrect"]


def rejected(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    pairs = [(entry, rewrite) for entry in entries for rewrite in (entry["query"], *entry["rewrites"])]
    verdicts = [(e["query"], rewrite, judge(e["query"], rewrite, SCHEMAS[e["schema"]])) for e, rewrite in pairs]
    return [(query, rewrite, v.reason) for query, rewrite, v in verdicts if v.outcome != "correct"]


def test_mutants_of_a_few_queries_are_told_apart_and_their_rewrites_accepted() -> None:
    entries = lines("queries.jsonl")[::12]
    queries = {entry["query"] for entry in entries}
    assert missed([mutant for mutant in lines("mutants.jsonl") if mutant["query"] in queries]) == []
    assert rejected(entries) == []


@pytest.mark.slow
def test_every_mutant_is_told_apart() -> None:
    assert len(lines("mutants.jsonl")) >= 300
    assert missed(lines("mutants.jsonl")) == []


@pytest.mark.slow
def test_no_correct_rewrite_is_rejected() -> None:
    assert rejected(lines("queries.jsonl")) == []


@pytest.mark.slow
def test_look_alikes_of_a_second_hand_are_told_apart_and_rewrites_accepted() -> None:
    """Written by hand against a schema that the choice of values was not made with."""
    schema = (DATA / "look_alikes.sql").read_text()
    cases = lines("look_alikes.jsonl")
    assert sum(not case["expected"] for case in cases) >= 100
    verdicts = [(case, judge(case["query"], case["answer"], schema)) for case in cases]
    assert [(c, v.reason) for c, v in verdicts if (v.outcome == "correct") != c["expected"]] == []


def test_a_verdict_says_what_held() -> None:
    verdict = judge(TOP, f"Here:\n```sql\n{TOP};\n```")
    assert (verdict.outcome, verdict.reward, verdict.verifier) == ("correct", 1.0, "sql")
    assert verdict.checks == {"extracted": True, "read_only": True, "runs": True, "equivalent": True}
    wrong = judge(TOP, TOP.replace("DESC", "ASC"))
    assert wrong.checks == {"extracted": True, "read_only": True, "runs": True, "equivalent": False}
    assert "instance" in wrong.reason


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("-- all\nselect 1;", "-- all\nselect 1;"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nno:\n```SQL\nSELECT 2\n```\nprints\n```text\n2\n```", "SELECT 2"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```sqlite\nSELECT 1", "SELECT 1"),
        ("<think>```sql\nSELECT 1\n```</think>SELECT 2", "SELECT 2"),
        ("<think>SELECT 1", None),
        ("The answer is SELECT 1", None),
        ("```sql\n```", None),
        ("", None),
        ("DROP TABLE emp", None),
    ],
)
def test_the_query_is_found_by_the_documented_rule(content: str, query: str | None) -> None:
    assert extract(content) == query


FORBIDDEN = [
    "DELETE FROM emp RETURNING name",
    "INSERT INTO emp VALUES (9, 'x', 'x', 1) RETURNING name",
    "UPDATE emp SET name = 'x' RETURNING name",
    "WITH a AS (SELECT 1) DELETE FROM emp RETURNING name",
    "SELECT name FROM emp; DROP TABLE emp",
    "SELECT 1; SELECT name FROM emp",
    "ATTACH DATABASE '/tmp/x.db' AS x",
    "PRAGMA table_info(emp)",
    "SELECT * FROM pragma_table_info('emp')",
    "SELECT count(*) FROM pragma_database_list",
    "VACUUM INTO '/tmp/x.db'",
    "SELECT load_extension('x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/x', 'x')",
    "SELECT random() FROM emp",
    "SELECT name FROM emp ORDER BY random()",
    "SELECT hex(randomblob(8))",
    "SELECT zeroblob(1000000000)",
    "CREATE TABLE x (y)",
    "EXPLAIN SELECT 1",
    "EXPLAIN QUERY PLAN SELECT 1",
    "BEGIN",
    "",
    ";",
    "-- nothing",
    "SELECT ?",
    "SELECT :name FROM emp",
    "SELECT 'a\0b'",
    "SELECT '\ud800'",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT " + "-" * 15000 + "1",
    "SELECT " + ",".join("1" * 1 for _ in range(3000)),
    "SELECT 1" + " UNION SELECT 1" * 1000,
]


@pytest.mark.parametrize("query", FORBIDDEN)
@pytest.mark.parametrize("mode", ["equivalent", "executes"])
def test_all_but_one_read_only_statement_is_incorrect(query: str, mode: str) -> None:
    verdict = judge("SELECT name FROM emp", f"```sql\n{query}\n```", mode=mode)
    assert (verdict.outcome, verdict.reward) == ("incorrect", -1.0), verdict.reason


_DOUBLED = ", ".join(f"c{i} AS (SELECT * FROM c{i - 1} UNION ALL SELECT * FROM c{i - 1})" for i in range(1, 40))
_BIG = "printf('%.*c', 199000, 'a')"
BOMBS = [
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM c) SELECT x FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c ORDER BY x",
    f"WITH c0 AS (SELECT 1 AS x), {_DOUBLED} SELECT count(*) FROM c39",
    "SELECT count(*) FROM " + ", ".join(f"emp e{i}" for i in range(40)),
    "SELECT printf('%.*c', 1000000000, 'a')",
    "SELECT replace(hex(" + "replace(" * 20 + "'a'" + ", 'a', 'aaaaaaaaaa')" * 20 + "), 'a', 'b')",
    f"SELECT {' + '.join([f'instr({_BIG}, {_BIG})'] * 20)}, " + f"instr({_BIG}, substr({_BIG}, 1, 99000) || 'b')" * 1,
    "SELECT " + " + ".join([f"instr({_BIG}, substr({_BIG}, 1, 99000) || 'b')"] * 150),
    f"SELECT {_BIG} LIKE '%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%b'",
    "SELECT group_concat(a.name || b.name || c.name || d.name) FROM emp a, emp b, emp c, emp d, emp e, emp f, emp g, "
    "emp h, emp i, emp j, emp k, emp l, emp m, emp n",
]


@pytest.mark.parametrize("query", BOMBS)
def test_bombs_are_incorrect_in_bounded_time_and_the_next_query_is_judged(query: str) -> None:
    start = processor_seconds(sql._pool)
    verdict = judge("SELECT name FROM emp", query)
    assert (verdict.outcome, verdict.reward) == ("incorrect", -1.0), verdict.reason
    assert processor_seconds(sql._pool) - start < 2.0
    assert judge("SELECT name FROM emp", "SELECT name FROM emp").outcome == "correct"


@pytest.mark.parametrize(
    ("schema", "query", "named"),
    [
        ("CREATE TABEL emp (x)", "SELECT 1", "schema"),
        (EMPLOYEES, "SELECT nothing FROM emp", "nothing"),
        (EMPLOYEES, "SELEC 1", "no SELECT"),
        (EMPLOYEES, "SELECT random()", "random"),
        (EMPLOYEES, "DELETE FROM emp", "no SELECT"),
        ("ATTACH '/tmp/x.db' AS x", "SELECT 1", "schema"),
        (EMPLOYEES, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c", "steps"),
    ],
)
def test_a_reference_that_fails_is_invalid_and_named(schema: str, query: str, named: str) -> None:
    verdict = judge(query, "SELECT 1", schema, max_steps=100_000)
    assert (verdict.outcome, verdict.reward) == ("invalid", None)
    assert "sql/train/0" in verdict.reason
    assert named in verdict.reason


@pytest.mark.parametrize("reference", [{}, {"schema": EMPLOYEES}, {"schema": 1, "query": "SELECT 1"}])
def test_a_reference_without_its_fields_is_invalid(reference: dict[str, Any]) -> None:
    task = Task(id="sql/train/0", environment="sql", prompt=(), reference=reference)
    verdict = SqlVerifier().verify(task, [Message(role="assistant", content="SELECT 1")])
    assert verdict.outcome == "invalid"


def test_a_task_may_carry_settings_of_its_own() -> None:
    reference = {"schema": EMPLOYEES, "query": "SELECT name FROM emp", "settings": {"order": "always"}}
    task = Task(id="sql/train/0", environment="sql", prompt=(), reference=reference)
    answer = [Message(role="assistant", content="SELECT name FROM emp ORDER BY id DESC")]
    assert SqlVerifier().verify(task, answer).outcome == "incorrect"
    del reference["settings"]
    assert SqlVerifier().verify(task, answer).outcome == "correct"
    reference["settings"] = {"ordre": 1}
    assert "ordre" in SqlVerifier().verify(task, answer).reason


def test_a_worker_that_dies_over_a_query_is_the_querys_fault_only_if_the_reference_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dies(worker.WorkerPool):
        def call(self, request: dict[str, Any], seconds: float) -> Any:
            if request["query"] == "SELECT name FROM emp -- dies" or everything_dies:
                raise worker.WorkerLostError("killed", stage=1)
            return super().call(request, seconds)

    monkeypatch.setattr(sql, "_pool", Dies("verifiers.sql_worker"))
    everything_dies = False
    assert judge("SELECT name FROM emp", "SELECT name FROM emp -- dies").outcome == "incorrect"
    everything_dies = True
    assert judge("SELECT name FROM emp", "SELECT name FROM emp -- dies").outcome == "invalid"
    sql._pool.close()


def test_a_slow_reference_leaves_its_queries_as_much_time() -> None:
    counting = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300000) SELECT count(*) FROM c"
    assert judge(counting, counting.replace("count(*)", "count(x)"), instances=0, seconds=0.001).outcome == "correct"


@pytest.mark.parametrize(
    ("reference", "query", "settings", "outcome"),
    [
        ("SELECT name FROM emp", "SELECT name FROM emp ORDER BY id DESC", {}, "correct"),
        ("SELECT name FROM emp", "SELECT name FROM emp ORDER BY id DESC", {"order": "always"}, "incorrect"),
        ("SELECT name FROM emp ORDER BY id", "SELECT name FROM emp", {}, "incorrect"),
        ("SELECT name FROM emp ORDER BY id", "SELECT name FROM emp", {"order": "never"}, "correct"),
        ("SELECT name FROM emp ORDER BY dept", "SELECT name FROM emp ORDER BY dept, id DESC", {}, "correct"),
        ("SELECT name FROM emp ORDER BY dept, id", "SELECT name FROM emp ORDER BY dept", {}, "incorrect"),
        ("SELECT count(*) FROM (SELECT id FROM emp ORDER BY id)", "SELECT count(id) FROM emp", {}, "correct"),
        ("SELECT ' ORDER BY ' FROM emp -- ORDER BY 1", "SELECT ' ORDER BY ' FROM emp", {}, "correct"),
        ("SELECT name FROM emp LIMIT 1", "SELECT name FROM emp ORDER BY id DESC LIMIT 1", {}, "correct"),
        ("SELECT name FROM emp LIMIT 1", "SELECT dept FROM emp LIMIT 1", {}, "incorrect"),
        ("SELECT id, name FROM emp", "SELECT name, id FROM emp", {}, "incorrect"),
        ("SELECT id, name FROM emp", "SELECT name, id FROM emp", {"columns": "name"}, "correct"),
        ("SELECT id, name FROM emp", "SELECT id AS a, name AS b FROM emp", {}, "correct"),
        ("SELECT id, name FROM emp", "SELECT id AS a, name AS b FROM emp", {"columns": "name"}, "incorrect"),
        ("SELECT salary FROM emp", "SELECT salary * 1.00000000001 FROM emp", {}, "correct"),
        ("SELECT salary FROM emp", "SELECT salary * 1.0001 FROM emp", {}, "incorrect"),
        ("SELECT salary FROM emp", "SELECT salary * 1.0001 FROM emp", {"relative": 0.01}, "correct"),
        ("SELECT dept FROM emp", "SELECT COALESCE(dept, '') FROM emp", {}, "incorrect"),
        ("SELECT dept FROM emp", "SELECT COALESCE(dept, '') FROM emp", {"null_is_empty": True}, "correct"),
        ("SELECT salary FROM emp", "SELECT COALESCE(salary, 0) FROM emp", {}, "incorrect"),
        ("SELECT name FROM emp", "SELECT upper(name) FROM emp", {}, "incorrect"),
        ("SELECT name FROM emp", "SELECT upper(name) FROM emp", {"ignore_case": True}, "correct"),
        ("SELECT id FROM emp", "SELECT CAST(id AS TEXT) FROM emp", {}, "incorrect"),
        ("SELECT name FROM emp WHERE id = 1", "SELECT name FROM emp LIMIT 1", {"instances": 0}, "correct"),
        ("SELECT name FROM emp WHERE id = 1", "SELECT name FROM emp LIMIT 1", {}, "incorrect"),
        ("SELECT name FROM emp WHERE 0", "SELECT dept FROM emp WHERE 0", {"mode": "executes"}, "correct"),
        ("SELECT name FROM emp", "SELECT dept FROM emp WHERE 0", {"mode": "executes"}, "incorrect"),
        ("SELECT name FROM emp", "SELECT 1", {"mode": "executes"}, "correct"),
        ("SELECT name FROM emp", "SELECT nme FROM emp", {"mode": "executes"}, "incorrect"),
        ("SELECT date('now')", "SELECT current_date", {}, "correct"),
        ("SELECT value FROM json_each('[1, 2]')", "SELECT value FROM json_tree('[1, 2]') WHERE atom", {}, "correct"),
        ("SELECT name FROM emp", "SELECT name FROM emp, json_each('[1]')", {}, "correct"),
        ("SELECT name FROM emp", "SELECT name FROM emp, json_each('[1, 2]')", {}, "incorrect"),
        ("SELECT date('now')", "SELECT date('now', '+1 day')", {}, "incorrect"),
        ("SELECT date('now')", "SELECT '2030-05-06'", {"now": "2030-05-06 01:02:03"}, "correct"),
    ],
)
def test_what_counts_is_a_setting(reference: str, query: str, settings: dict[str, Any], outcome: str) -> None:
    verdict = judge(reference, query, **settings)
    assert verdict.outcome == outcome, verdict.reason


def test_the_version_tells_code_and_settings() -> None:
    assert SqlVerifier().version == SqlVerifier().version
    assert SqlVerifier(SqlSettings(relative=0.1)).version != SqlVerifier().version


def test_threads_judge_at_once_and_alike() -> None:
    queries = [TOP, TOP.replace("15", "16"), "SELECT 1", TOP.replace("DESC", "")] * 6
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda query: judge(TOP, query), queries))
    alone = [judge(TOP, query) for query in queries]
    assert [(v.outcome, v.reason) for v in at_once] == [(v.outcome, v.reason) for v in alone]


def test_a_forked_child_uses_workers_of_its_own() -> None:
    assert judge(TOP, TOP).outcome == "correct"
    pid = os.fork()
    if pid == 0:
        ok = judge(TOP, TOP).outcome == "correct"
        sql._pool.close()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert judge(TOP, TOP).outcome == "correct"


def test_idle_workers_are_bounded() -> None:
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: judge(TOP, TOP), range(12)))
    assert len(sql._pool._idle) <= 8
    assert threading.active_count() < 30


def test_instances_keep_the_schemas_constraints_and_repeat() -> None:
    for name, script in SCHEMAS.items():
        database = Database("2025-01-15 12:00:00")
        database.connection.executescript(script)
        schema = Schema(database, "2025-01-15 12:00:00")
        dumps: list[list[str]] = []
        for _ in range(2):
            pairs = list(schema.instances(["SELECT 1"], 10, "seed", time.monotonic() + 60))
            made = [database for pair in pairs for database in pair]
            dumps.append(["\n".join(instance.connection.iterdump()) for instance in made])
            for instance in made:
                assert instance.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), name
                assert instance.connection.execute("PRAGMA foreign_key_check").fetchall() == [], name
        assert dumps[0] == dumps[1]
        assert any("INSERT" not in dump for dump in dumps[0])
        assert len(set(dumps[0])) > 10


def test_ties_and_windows() -> None:
    groups: list[list[Any]] = [[(1,), (2,)], [(3,), (4,), (5,)]]
    rules = Rules()
    assert difference(Expectation(groups), [(2,), (1,), (5,), (3,), (4,)], rules) is None
    assert difference(Expectation(groups), [(2,), (3,), (1,), (5,), (4,)], rules) is not None
    for third in (3, 4, 5):
        assert difference(Expectation(groups, 1, 2), [(2,), (third,)], rules) is None
    assert difference(Expectation(groups, 1, 2), [(2,), (6,)], rules) is not None
    assert difference(Expectation([[(3,), (4,)]]), [(3,), (3,)], rules) is not None


def test_multisets_with_rounding_pair_each_row_once() -> None:
    rules = Rules()
    rows: list[Any] = [(0.1 + 0.2, 2), (0.3, 1), (0.3, 1)]
    assert difference(Expectation([[(0.3, 1), (0.3, 2), (0.1 + 0.2, 1)]]), rows, rules) is None
    assert difference(Expectation([[(0.3, 2), (0.3, 2), (0.3, 1)]]), rows, rules) is not None
    assert difference(Expectation([[(2**53 + 1,)]]), [(2**53,)], rules) is not None


def test_the_top_level_is_read_not_searched() -> None:
    assert Top("SELECT a FROM t ORDER BY a").ordered
    assert Top("WITH x AS (SELECT 1 LIMIT 1) SELECT a FROM x ORDER BY a;").ordered
    assert not Top("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)").ordered
    assert not Top("SELECT 'ORDER BY', \"order\" FROM t -- ORDER BY a").ordered
    assert not Top("SELECT rank() OVER (ORDER BY a) FROM t").ordered
    assert Top("SELECT a FROM t LIMIT 2, 3").window == "SELECT (3), (2)"
    assert Top("SELECT a FROM t WHERE a IS DISTINCT FROM b ORDER BY -a").ranked(["a"]) is not None


@settings(max_examples=60)
@given(st.text(max_size=120) | st.binary(max_size=120).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_raises_or_passes(text: str) -> None:
    for content in (text, f"```sql\n{text}\n```", f"SELECT {text}"):
        assert judge(TOP, content).outcome == "incorrect"
    tokens(text)
    Top("SELECT " + text)


def test_mutations_of_valid_queries_never_raise_or_hang() -> None:
    rng = random.Random(0)
    pieces = ["(", ")", "'", '"', ";", "--", "/*", " UNION ", " ORDER BY ", "\0", "\ud800", "NULL", "1e999", "*", ","]
    entries = lines("queries.jsonl")[:4]
    for _ in range(300):
        entry = rng.choice(entries)
        text = entry["query"]
        for _ in range(rng.randint(1, 3)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(pieces) + text[at + rng.randint(0, 4) :]
        assert judge(entry["query"], text, SCHEMAS[entry["schema"]]).outcome in ("correct", "incorrect")


def test_a_group_prepares_its_reference_once_and_a_fork_of_a_busy_process_still_judges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, most = 0, 0
    ask = SqlVerifier._ask

    def counted(self: SqlVerifier, *arguments: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return ask(self, *arguments)
        finally:
            running -= 1

    monkeypatch.setattr(SqlVerifier, "_ask", counted)
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: judge(TOP, TOP).outcome, range(8)))
    assert outcomes == ["correct"] * 8
    assert most == 1
    with sql._turns[hash((EMPLOYEES, TOP)) % len(sql._turns)]:
        child = os.fork()
        if child == 0:
            os._exit(0 if judge(TOP, TOP).outcome == "correct" else 1)
        assert os.waitpid(child, 0)[1] == 0
