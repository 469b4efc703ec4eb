from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from pydantic import ValidationError

from environments.math_solver import MathSolver, data
from rlvr.errors import ConfigError
from rlvr.types import Message, Task


def make(**settings: object) -> MathSolver:
    return MathSolver(MathSolver.Settings.model_validate(settings))


def texts(tasks: list[Task]) -> list[str]:
    return [task.prompt[0].content for task in tasks]


@pytest.mark.parametrize("levels", [(1,), (2,), (3,), (1, 2, 3)])
def test_every_gold_answer_and_every_careful_example_earns_its_point(levels: tuple[int, ...]) -> None:
    environment = make(levels=levels)
    verifier = environment.verifier()
    for task in [*islice(environment.tasks("train"), 300), *environment.tasks("held_out")]:
        assert verifier.verify(task, [*task.prompt, *environment.gold(task)]).outcome == "correct"
        wrong = Message(role="assistant", content=f"\\boxed{{{task.reference['answer']}1}}")
        assert verifier.verify(task, [*task.prompt, wrong]).outcome == "incorrect"
    for problem in islice(data.generate(0, levels, "train"), 2000):
        assert problem.thought.endswith(f":{problem.answer}")


@pytest.mark.parametrize("levels", [(1,), (2,), (3,)])
def test_steps_of_a_careful_thought_are_true(levels: tuple[int, ...]) -> None:
    for problem in islice(data.generate(1, levels, "train"), 2000):
        for step in problem.thought.replace(":", ",").split(","):
            left, equals, right = step.partition("=")
            if equals:
                terms = left.replace("-", "+-").split("+")
                value = sum(map(int, terms)) if "*" not in left else int(left.split("*")[0]) * int(left.split("*")[1])
                assert value == int(right), problem


def test_train_and_held_out_never_meet_whatever_the_seed() -> None:
    train = {text for seed in range(5) for text in texts(list(islice(make(seed=seed).tasks("train"), 2000)))}
    held_out = {text for seed in range(5) for text in texts(list(make(seed=seed).tasks("held_out")))}
    assert not train & held_out
    examples = {prompt[0].content for prompt, _ in islice(make().worked_examples(0), 3000)}
    assert not examples & held_out


def test_held_out_tasks_are_distinct_and_as_many_as_asked() -> None:
    tasks = list(make(num_held_out=1000).tasks("held_out"))
    assert len(tasks) == len(set(texts(tasks))) == len({task.id for task in tasks}) == 1000


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    first, again, other = (list(islice(make(seed=seed).tasks("train"), 50)) for seed in (3, 3, 4))
    assert first == again
    assert texts(first) != texts(other)
    assert first[17].id == "math_solver/train/17"
    assert len(list(make(num_train=7).tasks("train"))) == 7
    assert list(islice(make().worked_examples(0), 50)) == list(islice(make().worked_examples(0), 50))


def test_worked_examples_show_both_habits() -> None:
    examples = list(islice(make().worked_examples(0), 2000))
    rough = [answer for _, answer in examples if answer.thinking.startswith("Roughly")]
    assert 0.3 < len(rough) / len(examples) < 0.8


def test_more_distinct_problems_than_there_are_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="num_held_out = 100000"):
        list(make(num_held_out=100_000).tasks("held_out"))


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValidationError):
        make(levels=(4,))


def write(folder: Path, *lines: str) -> str:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def test_a_file_is_split_by_the_text_of_its_problems(tmp_path: Path) -> None:
    lines = [f'{{"problem": "Halve {n}.", "answer": "{n}/2"}}' for n in range(200)]
    environment = make(path=write(tmp_path, *lines, "", lines[0]))
    train, held_out = list(environment.tasks("train")), list(environment.tasks("held_out"))
    assert len(train) + len(held_out) == 200
    assert not set(texts(train)) & set(texts(held_out))
    assert len(held_out) in range(10, 50)
    shuffled = make(path=write(tmp_path, *reversed(lines)))
    assert set(texts(list(shuffled.tasks("held_out")))) == set(texts(held_out))
    verdict = environment.verifier().verify(train[5], [*train[5].prompt, *environment.gold(train[5])])
    assert verdict.outcome == "correct"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON list"),
        ('{"answer": "1"}', "no 'problem'"),
        ('{"problem": "1+1?"}', "no 'answer'"),
        ('{"problem": " ", "answer": "1"}', "not a text"),
        ('{"problem": "1+1?", "answer": null}', "neither a text nor a whole number"),
        ('{"problem": "1+1?", "answer": "about 2"}', "cannot be judged"),
    ],
)
def test_a_bad_line_is_named_with_what_it_lacks(tmp_path: Path, line: str, complaint: str) -> None:
    environment = make(path=write(tmp_path, '{"problem": "1+2?", "answer": 3}', line))
    with pytest.raises(ConfigError, match=r"problems\.jsonl, line 2: .*" + complaint):
        list(environment.tasks("train"))


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(make(path=str(tmp_path / "none.jsonl")).tasks("train"))


def test_a_file_is_learned_from_generated_examples_and_families_have_none(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"problem": "What is 2+2?", "answer": "4"}\n')
    mine = make(path=str(tmp_path / "mine.jsonl"), levels=[2])
    assert list(islice(mine.worked_examples(0), 50)) == list(islice(make(levels=[2]).worked_examples(0), 50))
    # Not validated, for the package may not be installed.
    families = MathSolver(MathSolver.Settings.model_construct(families={"chain_sum": {}}))
    assert list(families.worked_examples(0)) == []
