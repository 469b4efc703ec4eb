"""Problems from a seed or from a JSONL file, and worked examples of uneven quality.

A problem belongs to `train` or `held_out` by a hash of what the model reads (the definitions and the question), so the
same prompt never stands in both, whichever seed, level or file it came from.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from environments.sql_database.domains import DOMAINS, Table, script
from environments.sql_database.joins import FAMILIES, NUM_TABLES
from rlvr.errors import ConfigError
from rlvr.splits import lines_of_file, split_of
from rlvr.types import Split
from verifiers.sql import SqlSettings
from verifiers.sql_text import is_query, tokens

LEVELS = tuple(FAMILIES)
# How often a worked example of a level plans its query; the others guess, and are mostly wrong.
CAREFUL_SHARE = {1: 0.5, 2: 0.45, 3: 0.4, 4: 0.4}

# One-step mistakes, as people make them: what stands in the query, and what they write.
_SLIPS = (
    (r" >= ", " > "),
    (r" <= ", " < "),
    (r" > (?=\d)", " >= "),
    (r" < (?=\d)", " <= "),
    (r" <> ", " = "),
    (r" DESC", ""),
    (r" ORDER BY (?!.*LIMIT)[^()]*$", ""),
    (r"DISTINCT ", ""),
    (r" WHERE [^()]*$", ""),
    (r"\bAVG\(", "SUM("),
    (r"\bMAX\(", "MIN("),
    (r"\bMIN\(", "MAX("),
    (r"\bSUM\(", "MAX("),
    (r"LEFT JOIN", "JOIN"),
    (r"NOT EXISTS", "EXISTS"),
    (r" HAVING .*", ""),
    (r"COUNT\(c\.id\)", "COUNT(*)"),
    (r"\bRANK\(", "ROW_NUMBER("),
    (r"LIKE '%", "LIKE '"),
    (r"%'$", "'"),
    (r" IS NOT NULL", " IS NULL"),
    (r" IS NULL", " IS NOT NULL"),
    (r" AND (?!\d)", " OR "),
    (r" OR ", " AND "),
    (r", id LIMIT", " LIMIT"),
    (r"(?<=LIMIT )\d", "5"),
    (r"^SELECT ([\w.]+), ([\w.]+) FROM", r"SELECT \2, \1 FROM"),
    (r"^SELECT ([\w.]+) FROM", r"SELECT \1, id FROM"),
    (r"^SELECT COUNT\(\*\) FROM", "SELECT * FROM"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """`schema` makes and fills the database, `shown` are its definitions, `question` follows them in the prompt.

    `plan` leads to `query` ("" where nobody wrote it down). `settings` are the verifier's, for this problem alone.
    """

    schema: str
    shown: str
    question: str
    query: str
    level: int = 0
    family: str = ""
    plan: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{self.shown}\n{self.question}"


def generate(seed: int, level: int, split: Split) -> Iterator[Problem]:
    """Endless; the same problems in the same order for the same arguments."""
    rng = random.Random(f"{seed}/{level}/{split}")
    while True:
        problem = _draw(rng, level)
        if split_of(problem.text) == split:
            yield problem


def worked_query(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """A thought on a generated problem and the query it comes to: planned, or guessed and mostly wrong."""
    if rng.random() < CAREFUL_SHARE[problem.level]:
        return problem.plan, problem.query
    wrong = slips(problem.query)
    return "Just write it.", rng.choice(wrong) if wrong and rng.random() < 0.85 else problem.query


def slips(query: str) -> list[str]:
    """The query with one mistake in it: every one that it has a place for."""
    made = (re.sub(pattern, wrong, query, count=1) for pattern, wrong in _SLIPS)
    return list(dict.fromkeys(slip for slip in made if slip != query))


def _draw(rng: random.Random, level: int) -> Problem:
    """A problem whose query returns something on its own data; after a few tries whatever there is."""
    for _ in range(8):
        family = rng.choice(FAMILIES[level])
        tables = _tables(rng, level, with_date=family.__name__ == "null")
        asked = family(rng, tables)
        schema = script(tables, rng)
        if tells_something(schema, asked.query):
            break
    return Problem(
        schema=schema,
        shown="\n".join(table.definition for table in tables),
        question=f"Give {asked.text}.",
        query=asked.query,
        level=level,
        family=family.__name__,
        plan=asked.plan,
    )


def _tables(rng: random.Random, level: int, *, with_date: bool) -> list[Table]:
    tables = [table.smaller(rng, with_date=with_date) for table in DOMAINS[rng.choice(list(DOMAINS))]]
    num = NUM_TABLES[level]
    if num == 1:
        return [replace(rng.choice(tables), parent="")]
    if num == 2 and rng.random() < 0.5:
        return [replace(tables[1], parent=""), tables[2]]
    return tables[:num]


def tells_something(schema: str, query: str) -> bool:
    """Whether the answer is more than no rows, or a count of nothing."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(schema)
        found = connection.execute(query).fetchall()
    return bool(found) and found != [(0,)]


def read_jsonl(path: str | Path, *, sqlite: bool = True) -> Iterator[tuple[int, Problem]]:
    """Line number (from 1) and problem of each line that is not blank. Raises `ConfigError`.

    With `sqlite`, every schema is made and every query run once, so that a mistake is found here.
    """
    for number, line in lines_of_file(path, source="sql_database"):
        yield number, _parse_line(line, f"{path}, line {number}", sqlite=sqlite)


def _parse_line(line: str, where: str, *, sqlite: bool) -> Problem:
    wanted = 'write {"schema": "CREATE TABLE ...; INSERT ...", "question": "...", "query": "SELECT ..."}'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); {wanted}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: a JSON {type(record).__name__}, not an object; {wanted}")
    for key in ("schema", "question", "query"):
        value = record.get(key)
        if key not in record:
            raise ConfigError(f"{where}: no {key!r}; {wanted}")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{where}: {key!r} = {value!r} is not a text; {wanted}")
    settings = record.get("settings", {})
    try:
        SqlSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: 'settings' = {settings!r} is no object of the verifier's settings: {error}"
        ) from None
    if not is_query(record["query"]):
        raise ConfigError(f"{where}: 'query' = {record['query']!r} is no SELECT, WITH or VALUES")
    shown = definitions(record["schema"])
    if not shown:
        raise ConfigError(f"{where}: 'schema' creates no table; {wanted}")
    if sqlite:
        _try(record["schema"], record["query"], where)
    return Problem(
        schema=record["schema"],
        shown=shown,
        question=record["question"].strip(),
        query=record["query"],
        settings=settings,
    )


def definitions(schema: str) -> str:
    """The statements of a script that create tables and views: what the model is shown of it."""
    statements, start = [], 0
    for token in tokens(schema + ";"):
        if token.text == ";":
            statements.append(schema[start : token.start].strip())
            start = token.end
    return "\n".join(f"{text};" for text in statements if re.match(r"(?i)create\s+(\w+\s+)?(table|view)\b", text))


def _try(schema: str, query: str, where: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for name, run in (("schema", connection.executescript), ("query", connection.execute)):
            try:
                run(schema if name == "schema" else query)
            except sqlite3.Error as error:
                raise ConfigError(f"{where}: {name!r} does not run on SQLite: {error}") from error
