"""Questions determine their queries: golds are right, one-step mistakes wrong, and the prompt gives nothing away."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from pydantic import ValidationError

from environments.sql_database import SqlDatabase, data
from environments.sql_database.joins import FAMILIES
from rlvr.errors import ConfigError
from rlvr.types import Message, Reply, Task

SCHEMA = "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INTEGER NOT NULL);"
ROWS = "INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 9), (3, 'Kim', 4);"


def make(**settings: object) -> SqlDatabase:
    return SqlDatabase(SqlDatabase.Settings.model_validate(settings))


def texts(tasks: list[Task]) -> list[str]:
    return [task.prompt[0].content for task in tasks]


def say(content: str) -> Message:
    return Message(role="assistant", content=content)


def check_golds_and_slips(level: int, num: int, seed: int) -> None:
    environment = make(levels=(level,), seed=seed, num_held_out=num)
    verifier = environment.verifier()
    wrong, num_slips = [], 0
    for task in [*islice(environment.tasks("train"), num), *environment.tasks("held_out")]:
        query = task.reference["query"]
        judged = {query: "correct"} | dict.fromkeys(data.slips(query), "incorrect")
        num_slips += len(judged) - 1
        for said, expected in judged.items():
            verdict = verifier.verify(task, [*task.prompt, say(said)])
            if verdict.outcome != expected:
                wrong.append((expected, verdict.reason, query, said))
    assert wrong == []
    assert num_slips > num


@pytest.mark.parametrize("level", data.LEVELS)
def test_golds_are_correct_and_one_step_mistakes_are_not(level: int) -> None:
    check_golds_and_slips(level, num=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("level", data.LEVELS)
def test_golds_are_correct_and_one_step_mistakes_are_not_over_hundreds(level: int) -> None:
    check_golds_and_slips(level, num=100, seed=1)


@pytest.mark.parametrize("level", data.LEVELS)
def test_every_family_comes_and_its_query_finds_something(level: int) -> None:
    problems = list(islice(data.generate(0, level, "train"), 400))
    families = Counter(problem.family for problem in problems)
    assert set(families) == {family.__name__ for family in FAMILIES[level]}
    assert min(families.values()) >= 20
    empty = [p for p in problems if not data.tells_something(p.schema, p.query)]
    assert len(empty) < 4


def test_all_eight_domains_come() -> None:
    problems = islice(data.generate(0, 1, "train"), 400)
    assert len({problem.shown.split()[2] for problem in problems}) == 24


@pytest.mark.parametrize("levels", [(1,), (4,), (1, 2, 3, 4)])
def test_the_prompt_shows_the_definitions_and_neither_the_query_nor_the_rows(levels: tuple[int, ...]) -> None:
    for task in islice(make(levels=levels).tasks("train"), 300):
        prompt = task.prompt[0].content
        assert task.reference["query"].lower() not in prompt.lower()
        assert "INSERT" not in prompt
        assert prompt.startswith("CREATE TABLE")
        assert task.level in map(str, levels)


def test_prompts_of_the_first_level_are_short() -> None:
    assert max(map(len, texts(list(islice(make().tasks("train"), 1000))))) <= 350


@pytest.mark.slow
def test_train_and_held_out_never_meet_whatever_the_seed() -> None:
    everything = (1, 2, 3, 4)
    train = {
        t for seed in range(3) for t in texts(list(islice(make(seed=seed, levels=everything).tasks("train"), 1000)))
    }
    held_out = {t for seed in range(3) for t in texts(list(make(seed=seed, levels=everything).tasks("held_out")))}
    assert not train & held_out
    examples = islice(make(levels=everything).worked_examples(0), 1000)
    assert not {example.prompt[0].content for example in examples} & held_out


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    first, again, other = (list(islice(make(seed=seed).tasks("train"), 30)) for seed in (3, 3, 4))
    assert first == again
    assert texts(first) != texts(other)
    assert first[17].id == "sql_database/train/17"
    assert len(list(make(num_train=7).tasks("train"))) == 7
    held_out = list(make(num_held_out=700).tasks("held_out"))
    assert len(held_out) == len(set(texts(held_out))) == len({task.id for task in held_out}) == 700


def test_worked_examples_show_both_habits_and_planned_ones_are_right() -> None:
    environment = make(levels=(1, 2))
    examples = list(islice(environment.worked_examples(0), 600))
    guessed = [example for example in examples if example.answer.thinking == "Just write it."]
    assert 0.3 < len(guessed) / len(examples) < 0.8
    by_prompt = {task.prompt: task for task in islice(environment.tasks("train"), 2000)}
    planned = [(by_prompt[e.prompt], e.answer) for e in examples if e.prompt in by_prompt and e not in guessed][:30]
    assert planned
    for task, answer in planned:
        assert answer.content == task.reference["query"]


# ---- several turns


def call(query: str) -> Message:
    arguments = {"name": "run_query", "arguments": {"query": query}}
    return say(f"<tool_call>{json.dumps(arguments)}</tool_call>")


def start(tmp_path: Path, **settings: object) -> SqlDatabase:
    line = {"schema": SCHEMA + ROWS, "question": "Whose age is below 4?", "query": "SELECT name FROM pet WHERE age < 4"}
    for number in range(30):  # the splits hash the question
        path = write(tmp_path, json.dumps(line | {"question": f"{line['question']} ({number})"}))
        environment = make(path=path, **settings)
        try:
            (task,) = environment.tasks("train")
        except ConfigError:
            continue
        environment.reset(task)
        return environment
    raise AssertionError("no question falls into train")


def write(folder: Path, *lines: str) -> str:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def content(reply: Reply) -> str:
    (message,) = reply.messages
    assert message.role == "tool"
    assert not reply.done
    return message.content


def test_run_query_shows_the_first_rows(tmp_path: Path) -> None:
    environment = start(tmp_path, max_queries=9, max_rows=2)
    shown = content(environment.step(call("SELECT name, NULL AS n FROM pet ORDER BY age")))
    assert shown == "name | n\nRex | NULL\nKim | NULL\n(3 rows, of which the first 2 are shown)"
    assert environment.step(say("SELECT name FROM pet WHERE age < 4")) == Reply(done=True)


def test_run_query_changes_nothing_and_says_why(tmp_path: Path) -> None:
    environment = start(tmp_path, max_queries=9)
    for query, complaint in (
        ("DELETE FROM pet", "not allowed"),
        ("SELECT load_extension('x')", "not allowed"),
        ("ATTACH '/tmp/x' AS x", "not allowed"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELEC", "syntax error"),
        ("WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT count(*) FROM t", "limit|steps"),
    ):
        text = content(environment.step(call(query)))
        assert text.startswith("error: ")
        assert any(part in text for part in complaint.split("|")), text
    assert "(3 rows)" in content(environment.step(call("SELECT * FROM pet")))


def test_queries_past_their_number_are_refused(tmp_path: Path) -> None:
    environment = start(tmp_path, max_queries=1)
    assert "(1 rows)" in content(environment.step(call("SELECT 1")))
    assert content(environment.step(call("SELECT 1"))).startswith("error: no calls of run_query are left")


def test_a_broken_call_is_answered_and_not_fatal(tmp_path: Path) -> None:
    environment = start(tmp_path, max_queries=3)
    assert content(environment.step(say("<tool_call>{</tool_call>"))).startswith("error: ")
    assert content(environment.step(say('<tool_call>{"name": "drop"}</tool_call>'))).startswith("error: no tool")


def test_without_queries_there_is_no_tool_and_one_turn() -> None:
    environment = make()
    task = next(iter(environment.tasks("train")))
    environment.reset(task)
    assert task.tools == ()
    assert environment.step(call("SELECT 1")).done
    (spec,) = next(iter(make(max_queries=2).tasks("train"))).tools
    assert spec["function"]["name"] == "run_query"


def test_an_environment_crosses_to_another_process() -> None:
    environment = make(levels=(2,))
    again = pickle.loads(pickle.dumps(environment))
    assert list(islice(again.tasks("train"), 5)) == list(islice(environment.tasks("train"), 5))


# ---- files


def test_a_file_is_split_by_what_the_model_reads(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"schema": SCHEMA + ROWS, "question": f"Pets above {n}?", "query": f"SELECT name FROM pet WHERE age > {n}"}
        )
        for n in range(80)
    ]
    environment = make(path=write(tmp_path, *lines, "", lines[0]))
    train, held_out = list(environment.tasks("train")), list(environment.tasks("held_out"))
    assert len(train) + len(held_out) == 80
    assert not set(texts(train)) & set(texts(held_out))
    assert len(held_out) in range(3, 25)
    task = train[0]
    assert task.prompt[0].content.startswith(f"{SCHEMA}\nPets above")
    assert "Rex" not in task.prompt[0].content
    verdict = environment.verifier().verify(task, [*task.prompt, *environment.gold(task)])
    assert verdict.outcome == "correct"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON list"),
        ({"schema": None}, "'schema' = None is not a text"),
        ({"question": " "}, "'question' = ' ' is not a text"),
        ({"query": "DELETE FROM pet"}, "no SELECT"),
        ({"query": "SELECT nme FROM pet"}, "'query' does not run on SQLite: no such column: nme"),
        ({"schema": "CREATE TABLE (x)"}, "'schema' does not run on SQLite"),
        ({"schema": "SELECT 1"}, "creates no table"),
        ({"settings": 1}, "'settings' = 1 is no object"),
        ({"settings": {"ordr": "never"}}, "'settings' = .*ordr"),
    ],
)
def test_a_bad_line_is_named_with_what_it_lacks(tmp_path: Path, line: object, complaint: str) -> None:
    good = {"schema": SCHEMA, "question": "All names?", "query": "SELECT name FROM pet"}
    text = line if isinstance(line, str) else json.dumps(good | line)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"problems\.jsonl, line 2: .*" + complaint):
        list(make(path=write(tmp_path, json.dumps(good), text)).tasks("train"))


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(make(path=str(tmp_path / "none.jsonl")).tasks("train"))


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValidationError):
        make(levels=(5,))
