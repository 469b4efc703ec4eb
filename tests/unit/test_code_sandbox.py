"""Hidden tests tell right programs from nearly right ones, and stay hidden through every attempt."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from environments.code_sandbox import CodeSandbox, generate
from environments.code_sandbox.loops import FAMILIES
from environments.code_sandbox.mutants import load, mutants, outcome, telling
from rlvr.errors import ConfigError
from rlvr.types import Message, Reply, Task

LEVELS = generate.LEVELS


def make(**settings: object) -> CodeSandbox:
    return CodeSandbox(CodeSandbox.Settings.model_validate(settings))


def texts(tasks: list[Task]) -> list[str]:
    return [task.prompt[0].content for task in tasks]


def say(content: str) -> Message:
    return Message(role="assistant", content=content)


def check_golds_and_wrong_ones(level: int, num: int, num_wrong: int) -> None:
    environment = make(levels=(level,), seed=7)
    verifier = environment.verifier()
    unexpected = []
    for problem in islice(generate.generate(7, level, generate.KINDS, "train"), num):
        task = environment.task_of("train", 0, problem)
        judged = {problem.solution: "correct"} | dict.fromkeys(problem.wrong[:num_wrong], "incorrect")
        for code, expected in judged.items():
            verdict = verifier.verify(task, [*task.prompt, say(f"```python\n{code}```")])
            if verdict.outcome != expected:
                unexpected.append((expected, verdict.reason, problem.text, code))
    assert unexpected == []


@pytest.mark.parametrize("level", LEVELS)
def test_golds_pass_and_their_mutants_do_not(level: int) -> None:
    check_golds_and_wrong_ones(level, num=8, num_wrong=2)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_golds_pass_and_their_mutants_do_not_over_hundreds(level: int) -> None:
    check_golds_and_wrong_ones(level, num=150, num_wrong=4)


@pytest.mark.parametrize("level", LEVELS)
def test_every_problem_has_several_hidden_tests_and_wrong_answers_that_they_tell_apart(level: int) -> None:
    problems = list(islice(generate.generate(0, level, generate.KINDS, "train"), 600))
    assert set(Counter(problem.family for problem in problems)) == {family.__name__ for family in FAMILIES[level]}
    for problem in problems:
        tests = problem.reference.get("tests") or problem.reference["io"]
        assert len(tests) >= 5, problem
        assert problem.wrong, problem


@pytest.mark.parametrize("level", LEVELS)
def test_expected_values_are_those_of_the_solution(level: int) -> None:
    for problem in islice(generate.generate(1, level, ("function",), "train"), 100):
        space = {"f": load(problem.solution)}
        for test in problem.reference["tests"]:
            exec(test, space)


def test_the_chosen_inputs_tell_every_mutant_that_any_input_tells() -> None:
    right = [0, 1, 4, 9, 16]
    others = [[0, 1, 4, 9, 16], [0, 1, 4, 9, 17], [0, 1, 4, 8, 16], [5, 1, 4, 9, 16]]
    chosen, told = telling(right, others, least=1, most=5)
    assert sorted(chosen) == [0, 3, 4]
    assert told == [1, 2, 3]
    assert telling(right, others, least=1, most=2)[1] != [1, 2, 3]


def test_mutants_change_one_thing_and_are_python() -> None:
    made = mutants("return max(x + 1 for x in xs if x > 3)")
    assert "return max(x + 1 for x in xs if x >= 3)" in made
    assert "return max(x + 1 for x in xs)" in made
    assert "return max(x + 2 for x in xs if x > 3)" in made
    for body in made:
        outcome(load(f"def f(xs):\n    {body}"), ([1, 5],))


@pytest.mark.parametrize("level", LEVELS)
def test_the_prompt_shows_one_example_and_no_hidden_test(level: int) -> None:
    for task in islice(make(levels=(level,)).tasks("train"), 200):
        prompt = task.prompt[0].content
        assert task.reference["solution"].strip() not in prompt
        hidden = task.reference.get("tests", [])[1:]
        shown = prompt.partition("Example: ")[2].partition("\n")[0]
        assert not [test for test in hidden if test.removeprefix("assert ") in prompt.replace(shown, "")]
        assert task.reference["public"] == 1
        assert len(prompt) <= 350
        assert task.level == str(level)


@pytest.mark.slow
def test_train_and_held_out_never_meet_whatever_the_seed_the_kind_or_the_example() -> None:
    def asked(text: str) -> str:
        return text.partition("\nExample")[0]

    everything = {"levels": (1, 2, 3), "num_held_out": 300}
    train = {asked(t) for s in range(3) for t in texts(list(islice(make(seed=s, **everything).tasks("train"), 500)))}
    held_out = {asked(t) for s in range(3) for t in texts(list(make(seed=s, **everything).tasks("held_out")))}
    assert not train & held_out
    examples = islice(make(levels=(1, 2, 3)).worked_examples(0), 500)
    assert not {asked(example.prompt[0].content) for example in examples} & held_out


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    first, again, other = (list(islice(make(seed=seed).tasks("train"), 20)) for seed in (3, 3, 4))
    assert first == again
    assert texts(first) != texts(other)
    assert first[17].id == "code_sandbox/train/17"
    held_out = list(make().tasks("held_out"))
    assert len(held_out) == len(set(texts(held_out))) == len({task.id for task in held_out}) == 512
    assert {("io" in task.reference) for task in islice(make(kinds=("program",)).tasks("train"), 20)} == {True}


def test_worked_examples_show_both_habits() -> None:
    examples = list(islice(make(levels=(1, 2)).worked_examples(0), 400))
    at_once = [example for example in examples if example.answer.thinking == "Just write it."]
    assert 0.3 < len(at_once) / len(examples) < 0.8


def test_an_environment_crosses_to_another_process() -> None:
    environment = make(levels=(2,))
    again = pickle.loads(pickle.dumps(environment))
    assert list(islice(again.tasks("train"), 3)) == list(islice(environment.tasks("train"), 3))


# ---- several attempts

SECRET = 917
FUNCTION = {
    "text": "Add two numbers.",
    "test_list": ["assert add(1, 2) == 3", f"assert add({SECRET}, 4) == {SECRET + 4}", "assert add(0, 0) == 0"],
    "code": "def add(a, b):\n    return a + b",
}
PROGRAM = {
    "question": "Read a number. Print it plus 4.",
    "inputs": ["1\n", f"{SECRET}\n"],
    "outputs": ["5\n", f"{SECRET + 4}\n"],
    "num_examples": 1,
    "solution": "print(int(input()) + 4)",
}


def write(folder: Path, *lines: object) -> str:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def start(tmp_path: Path, line: dict[str, Any], **settings: object) -> tuple[CodeSandbox, Task]:
    key = "text" if "text" in line else "question"
    for number in range(30):  # the split is a hash of the text
        environment = make(path=write(tmp_path, line | {key: f"{line[key]} ({number})"}), **settings)
        try:
            (task,) = environment.tasks("train")
        except ConfigError:
            continue
        environment.reset(task)
        return environment, task
    raise AssertionError("no text falls into train")


def told(environment: CodeSandbox, code: str) -> str:
    reply = environment.step(say(code))
    assert not reply.done
    (message,) = reply.messages
    assert message.role == "user"
    return message.content


def test_a_public_test_is_told_whole(tmp_path: Path) -> None:
    environment, _ = start(tmp_path, FUNCTION, max_attempts=9)
    assert "assert add(1, 2) == 3" in told(environment, "def add(a, b): return a * b")
    assert "SyntaxError" in told(environment, "def add(a, b) return a")
    assert "no code" in told(environment, "")


LEAKS = {
    "wrong result.": "def add(a, b): return a + b if a < 9 else a",
    "it raises ValueError.": "def add(a, b):\n    if a > 9: raise ValueError(f'{a} and {b}')\n    return a + b",
    "it raises KeyError.": "def add(a, b): return {1: 3}[a]",
    "it fails.": "def add(a, b):\n    if a > 9: raise type(f'E{a}', (Exception,), {})\n    return a + b",
    "too slow.": "def add(a, b):\n    while a > 9: pass\n    return a + b",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_of_a_hidden_test_the_model_learns_the_kind_of_failure_alone(tmp_path: Path, kind: str) -> None:
    environment, _ = start(tmp_path, FUNCTION, max_attempts=3, seconds=1.0)
    text = told(environment, LEAKS[kind])
    assert kind in text
    assert str(SECRET) not in text
    assert str(SECRET + 4) not in text


def test_a_program_that_prints_or_exits_with_its_input_is_told_no_more(tmp_path: Path) -> None:
    environment, _ = start(tmp_path, PROGRAM, max_attempts=9)
    public = told(environment, "print(input())")
    assert "'1\\n'" in public
    assert "'5\\n'" in public
    for code in (
        "n = input()\nprint(5 if n == '1' else n)",
        "n = input()\nif n != '1': raise SystemExit(n)\nprint(5)",
        "n = int(input())\nassert n == 1, n\nprint(5)",
    ):
        assert str(SECRET) not in told(environment, code)


def test_a_second_attempt_that_passes_ends_the_episode_and_is_the_one_judged(tmp_path: Path) -> None:
    environment, task = start(tmp_path, FUNCTION, max_attempts=3)
    first, second = say("def add(a, b): return a - b"), say(FUNCTION["code"])
    reply = environment.step(first)
    assert environment.step(second) == Reply(done=True)
    verdict = environment.verifier().verify(task, (*task.prompt, first, *reply.messages, second))
    assert verdict.outcome == "correct"


def test_the_last_attempt_ends_the_episode_whatever_it_is(tmp_path: Path) -> None:
    environment, _ = start(tmp_path, FUNCTION, max_attempts=2)
    assert not environment.step(say("no")).done
    assert environment.step(say("no")).done
    single, _ = start(tmp_path, FUNCTION)
    assert single.step(say("no")).done


def test_a_reference_that_is_at_fault_makes_the_episode_invalid(tmp_path: Path) -> None:
    broken = FUNCTION | {"test_list": ["assert add(1, 2) == three"]}
    environment, _ = start(tmp_path, broken, max_attempts=2)
    with pytest.raises(RuntimeError, match="could not be judged"):
        environment.step(say(FUNCTION["code"]))


# ---- files

HUMANEVAL = {
    "prompt": 'import math\n\n\ndef half(n):\n    return n / 2\n\n\ndef root(n):\n    """The root of half of n."""\n',
    "entry_point": "root",
    "test": "def check(candidate):\n    assert candidate(8) == 2\n    assert candidate(2) == math.sqrt(half(2))\n",
    "canonical_solution": "    return math.sqrt(half(n))\n",
}
CONTEST = {
    "description": "Print the sum of a line.",
    "input_output": json.dumps({"inputs": ["1 2\n", "3\n"], "outputs": ["3\n", "3\n"]}),
    "solutions": ["print(sum(map(int, input().split())))"],
    "time_limit": 2,
}


@pytest.mark.parametrize("line", [HUMANEVAL, FUNCTION, PROGRAM, CONTEST], ids=["humaneval", "mbpp", "contest", "apps"])
def test_golds_of_every_shape_pass(tmp_path: Path, line: dict[str, Any]) -> None:
    environment = make(path=write(tmp_path, line))
    tasks: list[Task] = []
    for split in ("train", "held_out"):
        try:
            tasks += environment.tasks(split)  # type: ignore[arg-type]
        except ConfigError:
            continue
    (task,) = tasks
    verifier = environment.verifier()
    verdict = verifier.verify(task, [*task.prompt, *environment.gold(task)])
    assert verdict.outcome == "correct", verdict.reason
    wrong = say("def root(n): return 2\ndef add(a, b): return 3\nprint(8)")
    assert verifier.verify(task, [*task.prompt, wrong]).outcome == "incorrect"
    assert all(test not in task.prompt[0].content for test in FUNCTION["test_list"][1:])


@pytest.mark.slow
def test_a_time_limit_of_a_contest_holds(tmp_path: Path) -> None:
    environment, task = start(tmp_path, PROGRAM | {"time_limit": 1})
    slow = say(
        "import time\nt = time.process_time()\nwhile time.process_time() < t + 1.7: pass\nprint(int(input()) + 4)"
    )
    assert environment.verifier().verify(task, [slow]).outcome == "incorrect"
    environment, task = start(tmp_path, PROGRAM)
    assert environment.verifier().verify(task, [slow]).outcome == "correct"


def test_a_problem_without_a_solution_has_no_gold(tmp_path: Path) -> None:
    environment, task = start(tmp_path, {key: value for key, value in FUNCTION.items() if key != "code"})
    assert task.reference["entry_point"] == "add"
    with pytest.raises(ConfigError, match="no solution"):
        environment.gold(task)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON list"),
        ({"prompt": "x"}, "no tests"),
        (HUMANEVAL | {"prompt": 1}, "'prompt' = 1 is not a text"),
        (HUMANEVAL | {"entry_point": "f"}, "'entry_point' = 'f' is not defined"),
        (HUMANEVAL | {"test": "def check("}, "'test' is no Python"),
        (HUMANEVAL | {"canonical_solution": "return"}, "'canonical_solution' is no Python"),
        (FUNCTION | {"test_list": []}, "'test_list' is no list of at least one text"),
        (FUNCTION | {"test_list": ["assert 1 +"]}, "'test_list.0' is no Python"),
        (FUNCTION | {"test_list": ["assert True"]}, "calls no function"),
        (FUNCTION | {"code": 5}, "'code' = 5 is not a text"),
        (PROGRAM | {"outputs": ["1"]}, "'inputs' has 2 entries, 'outputs' has 1"),
        (PROGRAM | {"inputs": [1, 2]}, "'inputs' is no list"),
        (PROGRAM | {"time_limit": -1}, "'time_limit' = -1"),
        (PROGRAM | {"num_examples": 3}, "'num_examples' = 3"),
        (CONTEST | {"input_output": "{"}, "'input_output' holds no JSON"),
        (CONTEST | {"input_output": {"fn_name": "f", "inputs": [], "outputs": []}}, "'fn_name'"),
    ],
)
def test_a_bad_line_is_named_with_what_it_lacks(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=r"problems\.jsonl, line 2: .*" + complaint):
        list(make(path=write(tmp_path, FUNCTION, line)).tasks("train"))


def test_a_missing_file_and_unknown_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(make(path=str(tmp_path / "none.jsonl")).tasks("train"))
    with pytest.raises(ValidationError):
        make(levels=(4,))
