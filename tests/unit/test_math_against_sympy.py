"""The math verifier against sympy, an independent reference: the same value in another form, and its near misses."""

from __future__ import annotations

import random

import pytest
import sympy
from sympy import Expr, Rational, latex, symbols

from rlvr.types import Message, Task
from verifiers.math import MathVerifier

X, Y = symbols("x y")


def judged_equal(reference: Expr, answer: Expr) -> bool:
    task = Task(
        id="t", environment="e", prompt=(Message(role="user", content="?"),), reference={"answer": latex(reference)}
    )
    verdict = MathVerifier().verify(task, (Message(role="assistant", content=f"\\boxed{{{latex(answer)}}}"),))
    assert verdict.outcome != "invalid", (latex(reference), verdict.reason)
    return verdict.outcome == "correct"


def rational(rng: random.Random, depth: int) -> Expr:
    """A random rational function of two letters."""
    if depth == 0:
        return rng.choice([X, Y, X + rng.randint(1, 5), Rational(rng.randint(-9, 9), rng.randint(1, 7))])
    left, right = rational(rng, depth - 1), rational(rng, depth - 1)
    kind = rng.randrange(5)
    if kind == 0:
        return left * right
    if kind == 1:
        return left - right
    if kind == 2 and sympy.expand(right) != 0:
        return left / right
    if kind == 3:
        return left**2 + right
    return left + right


def number(rng: random.Random) -> Expr:
    """A random real number of radicals, pi and fractions."""
    a, b, c = (rng.randint(1, 12) for _ in range(3))
    terms = [sympy.sqrt(a), Rational(a, b) * sympy.pi, sympy.root(a, 3), sympy.log(b + 1), sympy.exp(Rational(a, c))]
    first, second = rng.sample(terms, 2)
    return rng.choice([first + second, first * second + c, first / (second + c), (first + b) ** 2])


@pytest.mark.parametrize("seed", range(60))
def test_a_rational_function_equals_its_other_forms_and_no_near_miss(seed: int) -> None:
    rng = random.Random(f"{seed}/rational")
    expression = rational(rng, 3)
    while not expression.free_symbols or sympy.cancel(expression).is_number:
        expression = rational(rng, 3)
    for form in (sympy.expand, sympy.factor, sympy.together, sympy.cancel):
        assert judged_equal(expression, form(expression)), (expression, form)
    for miss in (expression + Rational(1, 10**6), expression * (1 + Rational(1, 10**6)), expression.subs(X, X + 1)):
        if sympy.cancel(miss - expression) != 0:
            assert not judged_equal(expression, miss), (expression, miss)


@pytest.mark.parametrize("seed", range(60))
def test_a_number_equals_its_other_forms_and_no_near_miss(seed: int) -> None:
    value = number(random.Random(f"{seed}/number"))
    for form in (sympy.expand, sympy.radsimp, sympy.nsimplify, sympy.together):
        other = form(value)
        if abs((other - value).evalf(60)) < Rational(1, 10**50):
            assert judged_equal(value, other), (value, other)
    for miss in (
        value + Rational(1, 10**12),
        value * (1 + Rational(1, 10**9)),
        value + sympy.sqrt(2) * Rational(1, 10**15),
    ):
        assert not judged_equal(value, miss), (value, miss)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sympy.sin(X) ** 2, 1 - sympy.cos(X) ** 2),
        (sympy.sin(2 * X), 2 * sympy.sin(X) * sympy.cos(X)),
        (sympy.cos(X + Y), sympy.cos(X) * sympy.cos(Y) - sympy.sin(X) * sympy.sin(Y)),
        (sympy.tan(X), sympy.sin(X) / sympy.cos(X)),
        (sympy.exp(X + Y), sympy.exp(X) * sympy.exp(Y)),
        (sympy.log(sympy.exp(2) * 3), 2 + sympy.log(3)),
        (sympy.sqrt(5 + 2 * sympy.sqrt(6)), sympy.sqrt(2) + sympy.sqrt(3)),
        (sympy.cos(sympy.pi / 5), (1 + sympy.sqrt(5)) / 4),
    ],
)
def test_an_identity_holds_and_its_near_miss_does_not(one: Expr, other: Expr) -> None:
    assert judged_equal(one, other)
    assert not judged_equal(one, other + Rational(1, 10**8))
