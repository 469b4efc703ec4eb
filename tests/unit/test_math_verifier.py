from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.types import Message, Task, Verdict
from verifiers.math import MathVerifier, ParseError, last_boxed, parse


def judge(answer: str, content: str, thinking: str = "") -> Verdict:
    task = Task(
        id="math_solver/train/0",
        environment="math_solver",
        prompt=(Message(role="user", content="What is 12+30? An example of a box: \\boxed{42}"),),
        reference={"answer": answer},
    )
    return MathVerifier().verify(task, [*task.prompt, Message(role="assistant", content=content, thinking=thinking)])


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("42", "\\boxed{42}"),
        ("42", "so \\boxed{ 42 }."),
        ("42", "$\\boxed{042}$"),
        ("42", "\\boxed{x = 42}"),
        ("42", "\\boxed{41} no, \\boxed{42}"),
        ("42", "\\boxed{42} and then \\boxed{"),
        ("42", "\\boxed{\\boxed{42}}"),
        ("42", "\\boxed{(6*7)}"),
        ("-7", "\\boxed{-7}"),
        ("-7", "\\boxed{\N{MINUS SIGN}7}"),
        ("-7", "\\boxed{--(-7)}"),
        ("1/2", "\\boxed{0.5}"),
        ("1/2", "\\boxed{\\frac{1}{2}}"),
        ("1/2", "\\boxed{\\dfrac12}"),
        ("0.1", "\\boxed{1/10}"),
        ("-1/2", "\\boxed{-\\frac{2}{4}}"),
        ("1234567", "\\boxed{1,234,567}"),
        ("1024", "\\boxed{2^{10}}"),
        ("-4", "\\boxed{-2^2}"),
        ("4", "\\boxed{(-2)^2}"),
        ("1/8", "\\boxed{2^-3}"),
        ("6", "\\boxed{\\left(2\\right) \\times 3}"),
    ],
)
def test_equal_values_are_correct(answer: str, content: str) -> None:
    verdict = judge(answer, content)
    assert (verdict.outcome, verdict.reward) == ("correct", 1.0), verdict.reason
    assert verdict.checks == {"boxed": True, "parses": True, "equal": True}


@pytest.mark.parametrize(
    ("content", "boxed", "parses"),
    [
        ("", False, False),
        ("the number 42", False, False),
        ("\\boxed{", False, False),
        ("\\boxed{42", False, False),
        ("\\boxed42", False, False),
        ("\\boxed{}", True, False),
        ("\\boxed{ }", True, False),
        ("\\boxed{43}", True, True),
        ("\\boxed{42} \\boxed{43}", True, True),
        ("\\boxed{42.0000000000000000001}", True, True),
        ("\\boxed{42, 43}", True, True),
        ("\\boxed{4 2}", True, False),
        ("\\boxed{42 or so}", True, False),
        ("\\boxed{y}", True, True),
        ("\\boxed{=42}", True, False),
        ("\\boxed{1/0}", True, False),
        ("\\boxed{\\frac{1}{0}}", True, False),
        ("\\boxed{0^-1}", True, False),
        ("\\boxed{4^{1/2}}", True, True),
        ("\\boxed{9**9**9}", True, False),
        ("\\boxed{9^9^9}", True, False),
        ("\\boxed{9^{9^{9}}}", True, False),
        ("\\boxed{9^999999999999}", True, False),
        ("\\boxed{(((9^999)^999)^999)}", True, False),
        ("\\boxed{__import__('os')}", True, False),
        ("\\boxed{\N{ARABIC-INDIC DIGIT FOUR}}", True, False),
        ("\\boxed{\ud800}", True, False),
        ("\\boxed{" + "(" * 299 + "}", True, False),
        ("\\boxed{" + "-" * 299 + "}", True, False),
        ("\\boxed{" + "9" * 100_000 + "}", False, False),
        ("\\boxed{" + "9" * 10_000 + "}", True, False),
        ("\\boxed{" * 100_000, False, False),
        ("{" * 1_000_000, False, False),
    ],
)
def test_all_else_is_incorrect_and_cheap(content: str, boxed: bool, parses: bool) -> None:
    start = time.perf_counter()
    verdict = judge("42", content)
    assert time.perf_counter() - start < 1.0
    assert (verdict.outcome, verdict.reward) == ("incorrect", -1.0)
    assert verdict.checks == {"boxed": boxed, "parses": parses, "equal": False}
    assert len(verdict.reason) < 200


def test_a_box_in_the_thought_or_in_the_prompt_does_not_count() -> None:
    verdict = judge("42", "the answer is above", thinking="\\boxed{42}")
    assert (verdict.outcome, verdict.checks["boxed"]) == ("incorrect", False)


def test_no_answer_at_all_is_incorrect() -> None:
    task = Task(id="m/train/0", environment="m", prompt=(), reference={"answer": "1"})
    assert MathVerifier().verify(task, []).outcome == "incorrect"


@pytest.mark.parametrize("reference", [{"answer": "about 3"}, {"answer": ""}, {}])
def test_only_a_broken_reference_is_invalid(reference: dict[str, str]) -> None:
    task = Task(id="m/train/7", environment="m", prompt=(), reference=reference)
    verdict = MathVerifier().verify(task, [Message(role="assistant", content="\\boxed{3}")])
    assert (verdict.outcome, verdict.reward) == ("invalid", None)
    assert "m/train/7" in verdict.reason


def test_it_works_in_threads_and_repeats_itself() -> None:
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda n: judge("42", f"\\boxed{{{n}}}"), range(100)))
    assert [verdict.outcome == "correct" for verdict in verdicts] == [n == 42 for n in range(100)]
    assert {verdict.version for verdict in verdicts} == {MathVerifier.version}


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    for content in (text, f"\\boxed{{{text}}}"):
        assert judge("42", content).outcome in ("correct", "incorrect")


@given(st.text("0123456789+-*/^(){}.,= \\fracx", max_size=60))
def test_no_near_expression_makes_the_parser_raise_anything_else(text: str) -> None:
    with suppress(ParseError):
        parse(text)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**15))
def test_fractions_are_read_exactly(p: int, q: int) -> None:
    expected = Fraction(p, q)
    for text in (f"{p}/{q}", f"\\frac{{{p}}}{{{q}}}", f"({p})/({q})"):
        assert parse(text) == expected
    assert judge(str(expected), f"\\boxed{{{p}/{q}}}").outcome == "correct"
    assert judge(str(expected + Fraction(1, 10**40)), f"\\boxed{{{p}/{q}}}").outcome == "incorrect"


_EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
    max_leaves=12,
)


@given(_EXPRESSIONS)
def test_arithmetic_agrees_with_pythons(text: str) -> None:
    assert parse(text) == eval(text)


@given(st.text("ab{}\\", max_size=30))
def test_a_box_ends_where_its_braces_balance(inside: str) -> None:
    box = last_boxed(f"\\boxed{{{inside}}}")
    unescaped = re.sub(r"\\.", "", inside)
    if unescaped.count("{") == unescaped.count("}") == 0 and not unescaped.endswith("\\"):
        assert box == inside
