"""A question about a database is answered with one SQL query; what the query returns decides."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from environments.sql_database import data
from environments.sql_database.tools import Queries
from rlvr import interfaces
from rlvr.splits import mixed_levels, tasks_of, tasks_of_file
from rlvr.tools import Toolbox, describe
from rlvr.types import Message, Reply, Split, Task
from verifiers import sql_query
from verifiers.sql import SqlSettings, SqlVerifier
from verifiers.sql_run import Result
from verifiers.tool_dispatch import dispatch

if TYPE_CHECKING:
    from verifiers.sql_postgres import PostgresVerifier

INSTRUCTION = " Answer with one SQL query."
LOOK = " You may look at the data with run_query first."

Level = Annotated[int, Field(ge=min(data.LEVELS), le=max(data.LEVELS))]


class SqlDatabaseSettings(interfaces.EnvironmentSettings):
    """The `settings` table of this environment."""

    levels: tuple[Level, ...] = Field((1,), min_length=1, description="difficulties to draw from, 1 to 4")
    seed: int = 0
    path: str | None = Field(None, description="JSONL file of problems on your own schemas, in place of generated ones")
    num_train: PositiveInt | None = Field(None, description="default: endless, or all of the file's")
    num_held_out: PositiveInt = Field(512, description="generated ones are distinct; of a file, at most so many")
    max_queries: NonNegativeInt = Field(0, description="calls of run_query before the answer; 0: one turn, no tool")
    max_rows: PositiveInt = Field(20, description="that a call of run_query shows")
    dsn: str | None = Field(None, description="a PostgreSQL database to run everything on; default: SQLite in memory")
    judge: SqlSettings = Field(SqlSettings(), description="what counts as the same answer: verifiers/sql.py")


class SqlDatabase(interfaces.Environment):
    """Generated problems over eight domains, endless for training; or those of `settings.path`."""

    name = "sql_database"
    summary = "questions about a database, answered with a SQL query"
    Settings = SqlDatabaseSettings
    settings: SqlDatabaseSettings
    _toolbox: Toolbox | None = None

    def setup(self) -> None:
        """A PostgreSQL server that cannot be used stops the run here, and says why."""
        if self.settings.dsn is not None:
            _on_postgresql(self.settings.dsn, self.settings.judge).check()

    def tasks(self, split: Split) -> Iterable[Task]:
        if self.settings.path is not None:
            return self._from_file(self.settings.path, split)
        return self._generated(split)

    def verifier(self) -> SqlVerifier:
        if self.settings.dsn is not None:
            return _on_postgresql(self.settings.dsn, self.settings.judge)
        return SqlVerifier(self.settings.judge)

    def reset(self, task: Task) -> Sequence[Message]:
        settings = self.settings
        if settings.max_queries:
            queries = Queries(
                partial(self._rows, task.reference["schema"]),
                max_queries=settings.max_queries,
                max_rows=settings.max_rows,
            )
            self._toolbox = Toolbox(queries.run_query)
        return task.prompt

    def step(self, message: Message) -> Reply:
        """Runs the queries that the message calls for; a message without calls is the answer."""
        answers = dispatch(message.content, self._toolbox) if self._toolbox is not None else ()
        return Reply(messages=answers, done=not answers)

    def gold(self, task: Task) -> Sequence[Message]:
        return (Message(role="assistant", content=task.reference["query"]),)

    def worked_examples(self, seed: int) -> Iterator[interfaces.WorkedExample]:
        """Training problems only, of uneven quality on purpose: some plan the query, the others mostly err."""
        rng = random.Random(f"{seed}/worked")
        for problem in self._draws(seed, "train"):
            thought, query = data.worked_query(problem, rng)
            answer = Message(role="assistant", thinking=thought, content=query)
            yield interfaces.WorkedExample(self._prompt(problem), answer, self._tools)

    def _rows(self, schema: str, query: str) -> Result:
        judge = self.settings.judge
        if self.settings.dsn is not None:
            return _on_postgresql(self.settings.dsn, judge).rows(schema, query)
        return sql_query.rows(schema, query, judge.plain())

    def _draws(self, seed: int, split: Split) -> Iterator[data.Problem]:
        return mixed_levels(
            self.settings.levels, lambda level: data.generate(seed, level, split), seed=seed, split=split
        )

    def _generated(self, split: Split) -> Iterator[Task]:
        settings = self.settings
        return tasks_of(
            self._draws(settings.seed, split),
            partial(self._task, split),
            split=split,
            num_train=settings.num_train,
            num_held_out=settings.num_held_out,
            source=f"{self.name}: levels {settings.levels}",
        )

    def _from_file(self, path: str, split: Split) -> Sequence[Task]:
        return tasks_of_file(
            data.read_jsonl(path, sqlite=self.settings.dsn is None),
            partial(self._task, split),
            split=split,
            limit=self.settings.num_train if split == "train" else self.settings.num_held_out,
            source=f"{self.name}: {path}",
        )

    def _task(self, split: Split, key: int, problem: data.Problem) -> Task:
        own = {"settings": problem.settings} if problem.settings else {}
        return Task(
            id=f"{self.name}/{split}/{key}",
            environment=self.name,
            prompt=self._prompt(problem),
            reference={"schema": problem.schema, "query": problem.query, **own},
            tools=self._tools,
            level=str(problem.level) if problem.level else "",
            seed=key,
        )

    def _prompt(self, problem: data.Problem) -> tuple[Message, ...]:
        text = problem.text + (LOOK if self.settings.max_queries else "") + INSTRUCTION
        return (Message(role="user", content=text),)

    @property
    def _tools(self) -> tuple[dict[str, Any], ...]:
        return (describe(Queries.run_query).spec,) if self.settings.max_queries else ()


def _on_postgresql(dsn: str, judge: SqlSettings) -> PostgresVerifier:
    # Imported where it is asked for: psycopg is an optional package.
    from verifiers.sql_postgres import PostgresVerifier

    return PostgresVerifier(dsn, judge)
