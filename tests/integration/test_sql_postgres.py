"""PostgreSQL judges as SQLite does, and nothing that a query does outlives its verdict."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import psycopg
import pytest

from environments.sql_database import SqlDatabase, data
from rlvr.errors import ConfigError
from rlvr.types import Message, Task, Verdict
from tests.postgres_server import find, server
from verifiers.registry import UnknownVerifier, gold_answer, make_verifier
from verifiers.sql import SqlSettings
from verifiers.sql_postgres import DSN_VARIABLE, PostgresVerifier
from verifiers.sql_run import QueryError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find("initdb") is None, reason="no PostgreSQL here (Debian: apt-get install postgresql)"),
]
SCHEMA = """
CREATE TYPE mood AS ENUM ('calm', 'wild');
CREATE TABLE owner (id SERIAL PRIMARY KEY, name VARCHAR(20) NOT NULL UNIQUE);
CREATE TABLE pet (
    id INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner_id INT NOT NULL REFERENCES owner, name TEXT NOT NULL,
    born DATE, weight NUMERIC(6, 2) CHECK (weight > 0), tame BOOLEAN NOT NULL, mood mood, tags TEXT[]
);
INSERT INTO owner (name) VALUES ('Ada'), ('Ben'), ('Cleo');
INSERT INTO pet (owner_id, name, born, weight, tame, mood, tags) VALUES
    (1, 'Rex', '2020-05-01', 12.5, true, 'calm', '{a,b}'), (1, 'Tom', NULL, 4, false, 'wild', NULL),
    (2, 'Kim', '2021-01-31', NULL, true, 'calm', '{}');
"""
QUERY = "SELECT o.name, count(p.id) FROM owner o LEFT JOIN pet p ON p.owner_id = o.id GROUP BY o.name"


@pytest.fixture(scope="module")
def superuser() -> Iterator[str]:
    with server() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE rlvr_judge LOGIN")
            connection.execute("CREATE DATABASE rlvr_judge OWNER rlvr_judge")
        yield dsn


@pytest.fixture(scope="module")
def dsn(superuser: str) -> str:
    return superuser.replace("user=postgres dbname=postgres", "user=rlvr_judge dbname=rlvr_judge")


def judge(dsn: str, given: str, query: str = QUERY, schema: str = SCHEMA, **settings: object) -> Verdict:
    task = Task(id="sql/train/0", environment="sql", prompt=(), reference={"schema": schema, "query": query})
    verifier = PostgresVerifier(dsn, SqlSettings.model_validate(settings))
    return verifier.verify(task, [Message(role="assistant", content=given)])


@pytest.mark.parametrize("level", data.LEVELS)
def test_generated_golds_are_correct_and_one_step_mistakes_are_not(dsn: str, level: int) -> None:
    environment = SqlDatabase(SqlDatabase.Settings.model_validate({"levels": [level], "dsn": dsn, "seed": 3}))
    verifier = environment.verifier()
    wrong = []
    for task in islice(environment.tasks("train"), 12):
        query = task.reference["query"]
        for said, expected in ({query: "correct"} | dict.fromkeys(data.slips(query), "incorrect")).items():
            verdict = verifier.verify(task, [*task.prompt, Message(role="assistant", content=said)])
            if verdict.outcome != expected:
                wrong.append((expected, verdict.reason, query, said))
    assert wrong == []


def test_schemas_with_postgresqls_own_types_get_several_instances(dsn: str) -> None:
    verdict = judge(dsn, QUERY + ";")
    assert verdict.outcome == "correct"
    assert int(verdict.reason.split()[-2]) >= 60
    rewrite = "SELECT name, (SELECT count(*) FROM pet WHERE owner_id = owner.id) FROM owner"
    assert judge(dsn, rewrite).outcome == "correct"
    assert judge(dsn, QUERY.replace("LEFT JOIN", "JOIN")).outcome == "incorrect"
    dated = "SELECT name FROM pet WHERE born > DATE '2020-12-31' AND mood = 'calm' ORDER BY born DESC"
    assert judge(dsn, dated.replace("> DATE", ">= DATE"), dated).outcome == "incorrect"
    assert judge(dsn, dated.replace("DESC", "DESC NULLS LAST"), dated).outcome == "correct"
    weights = "SELECT tame, avg(weight), bool_or(mood = 'wild') FROM pet GROUP BY tame"
    assert judge(dsn, weights.replace("avg(weight)", "sum(weight) / count(weight)"), weights).outcome == "correct"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT pg_sleep(20)",
        'SELECT U&"pg_sl\\0065ep"(20)',
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT dblink('dbname=postgres', 'SELECT 1')",
        "SELECT set_config('role', 'postgres', false)",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT pg_advisory_lock(1)",
        "SELECT nextval('owner_id_seq')",
        "SELECT query_to_xml('DELETE FROM pet', true, true, '')",
        "SELECT * FROM pg_stat_activity",
        "SELECT * FROM pg_catalog.pg_authid",
        "SELECT table_name FROM information_schema.tables",
        "SELECT now()",
        "SELECT current_user",
        "SELECT random()",
        "SELECT name FROM pet TABLESAMPLE bernoulli (50)",
        "SELECT repeat('x', 900000000)",
        "SELECT lpad('x', 900000000)",
        "SELECT format('%900000000s', 'x')",
        "WITH gone AS (DELETE FROM pet RETURNING name) SELECT * FROM gone",
        "SELECT * INTO other FROM pet",
        "SELECT name FROM pet FOR UPDATE",
        "SELECT 1; DROP TABLE pet",
        "SELECT 1) AS q; DROP SCHEMA public CASCADE; SELECT 1 FROM (SELECT 1",
        "SELECT 1; COMMIT",
        "SELECT $1",
        "SELECT 'a\0b'",
        "SELECT '\ud800'",
        "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT count(*) FROM t",
        "WITH RECURSIVE t(x) AS (SELECT 'x' UNION ALL SELECT x || x FROM t) SELECT * FROM t",
        "SELECT * FROM generate_series(1, 1000000000)",
        "SELECT count(*) FROM pet a, pet b, generate_series(1, 100000000)",
    ],
)
def test_hostile_queries_are_incorrect_and_change_nothing(dsn: str, query: str) -> None:
    started = time.monotonic()
    verdict = judge(dsn, query, seconds=0.5)
    assert verdict.outcome == "incorrect", verdict.reason
    assert time.monotonic() - started < 30
    after = judge(dsn, QUERY, seconds=10.0)
    assert after.outcome == "correct", after.reason
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname IN ('pet', 'owner', 'other')"
        ).fetchone()
    assert found == (0,)


def test_no_text_of_a_model_raises_or_makes_a_verdict_invalid(dsn: str) -> None:
    rng = random.Random(0)
    pieces = [
        "'",
        '"',
        "$$",
        "--",
        "/*",
        "*/",
        ";",
        ")",
        "(",
        "\\",
        "\0",
        "::int",
        " FROM pet",
        "E'\\x41'",
        "ä",
        "%s",
        "{}",
        chr(0x1D538),
    ]
    for _ in range(300):
        text = list(QUERY)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.choice([*pieces, rng.choice(QUERY)])
        assert judge(dsn, "".join(text), seconds=5.0).outcome in ("correct", "incorrect"), "".join(text)


def test_dangerous_roles_are_refused_with_the_way_out(superuser: str) -> None:
    with pytest.raises(ConfigError, match=r"'postgres' may read files.*CREATE ROLE rlvr_judge"):
        PostgresVerifier(superuser).check()
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN IN ROLE pg_read_server_files")
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(ConfigError, match="'reader' may read files"):
        PostgresVerifier(superuser.replace("user=postgres", "user=reader")).check()
    with pytest.raises(ConfigError, match="'guest' may create no schema"):
        PostgresVerifier(superuser.replace("user=postgres", "user=guest")).check()
    with pytest.raises(ConfigError, match="does not answer"):
        PostgresVerifier("host=/nowhere dbname=x").check()


def test_references_at_fault_are_invalid_and_named(dsn: str) -> None:
    assert "syntax error" in judge(dsn, QUERY, schema="CREATE TABEL x ()").reason
    assert judge(dsn, QUERY, query="SELECT nme FROM pet").outcome == "invalid"
    ended = judge(dsn, "SELECT 1", query="SELECT 1", schema="CREATE TABLE kept (x INT); COMMIT;")
    assert ended.outcome == "invalid"
    assert "ends its transaction" in ended.reason
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'kept'").fetchone() == (0,)
    assert judge(dsn, QUERY).outcome == "correct"


def test_many_threads_judge_at_once(dsn: str) -> None:
    answers = [QUERY, QUERY.replace("LEFT JOIN", "JOIN")] * 8
    with ThreadPoolExecutor(6) as threads:
        verdicts = list(threads.map(lambda given: judge(dsn, given, seconds=10.0), answers))
    assert [verdict.outcome for verdict in verdicts] == ["correct", "incorrect"] * 8, verdicts


def test_a_connection_that_dies_over_the_query_costs_no_one_an_invalid_verdict(superuser: str, dsn: str) -> None:
    """The server ends the session as if the query had brought it down: the canary then answers for the reference."""
    hang = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT count(*) FROM t"
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(judge(dsn, hang, seconds=20.0)))
    thread.start()
    with psycopg.connect(superuser, autocommit=True) as connection:
        for _ in range(200):
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT count(*), coalesce%%'"
                " AND query LIKE '%%RECURSIVE%%' AND state = 'active' AND pid <> pg_backend_pid()"
            ).fetchall()
            if ended:
                break
            time.sleep(0.05)
    thread.join(timeout=60)
    assert ended
    assert [verdict.outcome for verdict in verdicts] == ["incorrect"]
    assert judge(dsn, QUERY).outcome == "correct"


def test_a_server_that_is_gone_makes_verdicts_invalid() -> None:
    with server() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE rlvr_judge LOGIN")
            connection.execute("CREATE DATABASE rlvr_judge OWNER rlvr_judge")
        own = dsn.replace("user=postgres dbname=postgres", "user=rlvr_judge dbname=rlvr_judge")
        assert judge(own, QUERY).outcome == "correct"
    assert judge(own, QUERY).outcome == "invalid"


def test_recorded_episodes_are_judged_again_on_the_server_of_the_variable(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    with pytest.raises(UnknownVerifier, match="set RLVR_POSTGRESQL_DSN"):
        make_verifier("sql_postgresql")
    monkeypatch.setenv(DSN_VARIABLE, dsn)
    task = Task(id="sql/train/0", environment="sql", prompt=(), reference={"schema": SCHEMA, "query": QUERY})
    answer = gold_answer("sql_postgresql", task.reference)
    assert make_verifier("sql_postgresql").verify(task, [Message(role="assistant", content=answer)]).reward == 1.0


def test_run_query_looks_at_the_given_instance(dsn: str) -> None:
    environment = SqlDatabase(SqlDatabase.Settings.model_validate({"dsn": dsn, "max_queries": 3}))
    environment.setup()
    task = next(iter(environment.tasks("train")))
    environment.reset(task)
    table = task.prompt[0].content.split()[2]
    call = '<tool_call>{"name": "run_query", "arguments": {"query": "SELECT count(*) AS n FROM %s"}}</tool_call>'
    (message,) = environment.step(Message(role="assistant", content=call % table)).messages
    assert message.content.startswith("n\n")
    (message,) = environment.step(Message(role="assistant", content=call % "pg_authid")).messages
    assert message.content == "error: reading pg_authid is not allowed"
    verifier = PostgresVerifier(dsn)
    assert verifier.rows(SCHEMA, "SELECT born, tags, tame FROM pet ORDER BY id").rows[0] == ("2020-05-01", "{a,b}", 1)
    with pytest.raises(QueryError, match="does not exist"):
        verifier.rows(SCHEMA, "SELECT nme FROM pet")
    with pytest.raises(ValueError, match="the schema fails"):
        verifier.rows("CREATE", "SELECT 1")
