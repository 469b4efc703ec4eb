"""A question about a database is answered with one SQL query; what the query returns decides."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from environments.sql_database import data
from environments.sql_database.tools import QueryTool
from rlvr import interfaces
from rlvr.errors import ConfigError
from rlvr.types import Message, Reply, Split, Task
from verifiers.sql import SqlSettings, SqlVerifier
from verifiers.sql_postgres import PostgresVerifier
from verifiers.tool_forms import FormError, read

INSTRUCTION = " Answer with one SQL query."
LOOK = " You may look at the data with run_query first."
# Draws without a new problem after which a held-out set of the asked size is given up.
PATIENCE = 20_000

Level = Annotated[int, Field(ge=min(data.LEVELS), le=max(data.LEVELS))]


class SqlDatabaseSettings(interfaces.EnvironmentSettings):
    """The `settings` table of this environment."""

    levels: tuple[Level, ...] = Field((1,), min_length=1, description="difficulties to draw from, 1 to 4")
    seed: int = 0
    path: str | None = Field(None, description="JSONL file of problems on your own schemas, in place of generated ones")
    num_train: PositiveInt | None = Field(None, description="default: endless, or all of the file's")
    num_held_out: PositiveInt = Field(512, description="generated ones are distinct; of a file, at most so many")
    max_queries: NonNegativeInt = Field(0, description="calls of run_query before the answer; 0: single-turn, no tool")
    max_rows: PositiveInt = Field(20, description="that a call of run_query shows")
    dsn: str | None = Field(None, description="a PostgreSQL database to run everything on; default: SQLite in memory")
    judge: SqlSettings = Field(SqlSettings(), description="what counts as the same answer: verifiers/sql.py")


class SqlDatabase(interfaces.Environment):
    """Generated problems over eight domains, endless for training; or those of `settings.path`."""

    name = "sql_database"
    summary = "questions about a database, answered with a SQL query"
    Settings = SqlDatabaseSettings
    settings: SqlDatabaseSettings
    _tool: QueryTool | None = None
    _calls = 0

    def setup(self) -> None:
        """A PostgreSQL server that cannot be used stops the run here, and says why."""
        judge = self.verifier()
        if isinstance(judge, PostgresVerifier):
            judge.check()

    def tasks(self, split: Split) -> Iterable[Task]:
        if self.settings.path is not None:
            return self._from_file(self.settings.path, split)
        return self._generated(split)

    def verifier(self) -> SqlVerifier | PostgresVerifier:
        if self.settings.dsn is not None:
            return PostgresVerifier(self.settings.dsn, self.settings.judge)
        return SqlVerifier(self.settings.judge)

    def reset(self, task: Task) -> Sequence[Message]:
        if task.tools:
            self._tool = self._query_tool(task.reference["schema"])
        return task.prompt

    def step(self, message: Message) -> Reply:
        """Runs the queries that the message calls for; a message without calls is the answer."""
        if self._tool is None:
            return Reply(done=True)
        try:
            calls = read(message.content)
        except FormError as error:
            self._calls += 1
            return Reply(messages=(Message(role="tool", content=f"error: {error}"),), done=self._spent)
        if not calls:
            return Reply(done=True)
        replies = []
        for call in calls:
            self._calls += 1
            text = "error: no calls are left; answer now" if self._spent else self._tool.call(call)
            replies.append(Message(role="tool", content=text))
        return Reply(messages=tuple(replies), done=self._calls > 2 * self.settings.max_queries)

    def gold(self, task: Task) -> Sequence[Message]:
        return (Message(role="assistant", content=task.reference["query"]),)

    def worked_examples(self, seed: int) -> Iterator[interfaces.WorkedExample]:
        """Training problems only, of uneven quality on purpose: some plan the query, the others guess and mostly err."""
        rng = random.Random(f"{seed}/worked")
        for _, problem in self._mixed(seed, "train"):
            thought, query = data.worked_query(problem, rng)
            answer = Message(role="assistant", thinking=thought, content=query)
            yield interfaces.WorkedExample(self._prompt(problem), answer, self._tools)
