"""Every family of reasoning-gym makes tasks whose gold earns +1, and its scorer can be neither fooled nor hurt."""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from pydantic import ValidationError

from environments.math_solver import MathSolver, gym
from environments.math_solver.gym_verifier import extract
from rlvr.errors import ConfigError
from rlvr.interfaces import Verifier
from rlvr.plugins import make_environment
from rlvr.types import Message, Task, Verdict

pytest.importorskip("reasoning_gym")

# These publish neither an answer nor an example of one; what is wrong must earn -1 all the same.
NO_GOLD = {"boxnet", "rush_hour"}
# From contradictory premises anything follows, and from many others a plain conclusion: another task's is often right.
MANY_RIGHT = {"propositional_logic"}
HOSTILE = [
    "zzz",
    "[[",
    "None",
    "1e999",
    "nan",
    "1/0",
    "'" * 40,
    "{" * 500,
    "__import__('os').getpid()",
    "().__class__.__base__.__subclasses__()",
    "\\boxed{1}",
]


def make(*families: str, **settings: object) -> MathSolver:
    return MathSolver(MathSolver.Settings.model_validate({"families": families, **settings}))


def judge(verifier: Verifier, task: Task, text: str) -> Verdict:
    return verifier.verify(task, [*task.prompt, Message(role="assistant", content=text)])


def changed(answer: str) -> str:
    """Every digit the next one; without a digit, every letter the next one."""
    shift = "0123456789" if any(character.isdigit() for character in answer) else string.ascii_letters
    return answer.translate(str.maketrans(shift, shift[1:] + shift[0]))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", sorted(gym.options_of_families()))
def test_of_every_family_the_gold_earns_its_point_and_a_wrong_or_hostile_answer_does_not(family: str) -> None:
    environment = make(family)
    verifier = environment.verifier()
    tasks = [*islice(environment.tasks("train"), 4), *islice(environment.tasks("held_out"), 1)]
    assert len({task.id for task in tasks}) == 5
    others: list[str] = []
    for task in tasks:
        if family in NO_GOLD:
            with pytest.raises(ConfigError, match=f"tells no answer to tasks of its family '{family}'"):
                environment.gold(task)
            continue
        gold = environment.gold(task)[0].content
        verdict = judge(verifier, task, gold)
        assert verdict.outcome == "correct", verdict.reason
        assert judge(verifier, task, task.reference["answer"]).outcome == "incorrect", "an answer without its marks"
        wrong = {environment.gold(other)[0].content for other in tasks} - {gold}
        wrong |= {f"<answer>{changed(task.reference['answer'])}</answer>"}
        others += [judge(verifier, task, text).outcome for text in wrong]
    # Where several answers are right, one of another task may be so by chance.
    share = 0.3 if family in MANY_RIGHT else 0.7
    assert family in NO_GOLD or others.count("incorrect") > share * len(others), others
    for text in HOSTILE:
        verdict = judge(verifier, tasks[0], f"<answer>{text}</answer>")
        assert verdict.outcome == "incorrect", (text, verdict.reason)


def test_the_answer_is_what_stands_in_the_last_marks() -> None:
    assert extract("so <answer> 12 </answer>.") == "12"
    assert extract("<answer>1</answer> no, <answer>a\nb</answer>") == "a\nb"
    assert extract("<answer>1 <answer>2</answer>") == "2"
    assert extract("<answer></answer>") is None
    assert extract("<answer>1</answer> hm <answer> </answer>") is None
    assert extract("<answer>1") is None
    assert extract("<think><answer>1</answer></think>2") is None


def test_families_take_turns_and_never_ask_a_held_out_problem_in_training() -> None:
    environment = make("chain_sum", "gcd", num_held_out=40)
    train, held_out = list(islice(environment.tasks("train"), 200)), list(environment.tasks("held_out"))
    assert [task.level for task in train[:4]] == ["chain_sum", "gcd", "chain_sum", "gcd"]
    assert len(held_out) == 40
    texts = [task.prompt[0].content for task in [*train, *held_out]]
    assert len(set(texts)) == len(texts)
    other_seed = list(islice(make("chain_sum", "gcd", seed=1).tasks("train"), 200))
    assert not {task.prompt[0].content for task in other_seed} & {task.prompt[0].content for task in held_out}
    assert other_seed[:20] != train[:20]


def test_a_family_without_new_problems_ends() -> None:
    environment = MathSolver(
        MathSolver.Settings.model_validate(
            {"families": {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}}
        )
    )
    few = len(list(environment.tasks("train"))) + len(list(environment.tasks("held_out")))
    assert 100 < few <= 200


def test_options_reach_the_family() -> None:
    environment = MathSolver(
        MathSolver.Settings.model_validate(
            {"families": {"chain_sum": {"min_terms": 9, "max_terms": 9, "min_digits": 1, "max_digits": 1}}}
        )
    )
    task = next(iter(environment.tasks("train")))
    assert task.prompt[0].content.count(" + ") + task.prompt[0].content.count(" - ") == 8
    assert task.reference["options"]["min_terms"] == 9
    assert judge(environment.verifier(), task, environment.gold(task)[0].content).outcome == "correct"


@pytest.mark.parametrize(
    ("families", "complaint"),
    [
        (["chainsum"], "has no family 'chainsum'; did you mean 'chain_sum'"),
        (["qqqq"], "has no family 'qqqq'; known: "),
        (["composite"], "has no family 'composite'"),
        ({"chain_sum": {"terms": 3}}, r"families.chain_sum: unknown options terms; it takes .*min_terms"),
        ({"chain_sum": {"min_terms": 0}}, r"families.chain_sum = \{'min_terms': 0\}: AssertionError"),
    ],
)
def test_a_wrong_family_or_option_is_a_config_error_with_close_matches(families: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_environment("math_solver", {"families": families})


def test_two_sources_of_problems_are_refused() -> None:
    with pytest.raises(ValidationError, match="path and families are two sources"):
        make("chain_sum", path="x.jsonl")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gym.options_of_families.cache_clear()
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlvr\[reasoning-gym\]'"):
        make_environment("math_solver", {"families": ["gcd"]})


@pytest.mark.slow
def test_problems_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    script = (
        "from itertools import islice; from environments.math_solver import MathSolver\n"
        "e = MathSolver(MathSolver.Settings(families=['isomorphic_strings', 'polynomial_multiplication']))\n"
        "print([task.prompt[0].content for task in islice(e.tasks('train'), 6)])"
    )
    root = str(Path(__file__).parents[2])
    shown = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("family", "wrong", "reason"),
    [
        ("letter_jumble", "@gold something", "not the expected words"),
        ("spell_backward", "@gold something", "not the expected words"),
        ("complex_arithmetic", "nan", "not a finite number"),
        ("puzzle24", "12+12+0*1", "uses"),
        ("puzzle24", "4*6+0+0", "uses"),
        ("game_of_life_halting", "Perhaps", "not the expected answer"),
        ("binary_matrix", "__import__('os').listdir('/')", "scored 0"),
        ("simple_integration", "open('x')", "not an arithmetic expression"),
        ("simple_integration", "x.diff", "not an arithmetic expression"),
        ("intermediate_integration", "Integral(x*exp(x), x)", "not arithmetic: 'Integral'"),
        ("simple_integration", "system(1)", "not arithmetic: 'system'"),
        # It takes the whole of the time that a scorer has.
        pytest.param("countdown", "9**9**9**9", "takes longer than|scored|cannot be read", marks=pytest.mark.slow),
    ],
)
def test_a_scorer_that_accepts_too_much_or_evaluates_text_is_held_in_check(
    family: str, wrong: str, reason: str
) -> None:
    environment = make(family)
    task = next(iter(environment.tasks("train")))
    verdict = judge(
        environment.verifier(), task, f"<answer>{wrong.replace('@gold', task.reference['answer'])}</answer>"
    )
    assert verdict.outcome == "incorrect"
    assert re.search(reason, verdict.reason), verdict.reason


def test_a_problem_of_another_version_is_invalid_not_wrong() -> None:
    environment = make("gcd")
    task = next(iter(environment.tasks("train")))
    other = Task(
        id=task.id,
        environment=task.environment,
        prompt=task.prompt,
        reference=task.reference | {"fingerprint": "0" * 16, "package_version": "0.0.1"},
    )
    verdict = judge(environment.verifier(), other, "<answer>1</answer>")
    assert verdict.outcome == "invalid"
    assert "makes another problem of it than 0.0.1 did" in verdict.reason
