"""Arithmetic on numbers while an answer is read, bounded before the work; what is no number stays a formula."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from verifiers.tokens import ParseError
from verifiers.tree import Decimal, Node, Tree

MAX_BITS = 32_768  # of a numerator or denominator: 2006! has 19 000
MAX_WORK = 400_000  # bits handled by arithmetic in one text
_WHOLE = {"list", "set", "seq", "union", "inter", "minus", "rel", "matrix", "text", "ratio", "based", "unit"}


class Arithmetic:
    """Folds what it is given where all sides are numbers. Every method raises `ParseError` past a bound."""

    def __init__(self) -> None:
        self.work = 0

    def charge(self, value: Fraction) -> Fraction:
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        if bits > MAX_BITS:
            raise ParseError(f"a number of more than {MAX_BITS} bits on the way")
        self.work += bits
        if self.work > MAX_WORK:
            raise ParseError("too much arithmetic")
        return value

    def add(self, terms: list[Any]) -> Tree:
        if len(terms) == 1:
            return terms[0]  # type: ignore[no-any-return]
        if all(isinstance(term, Fraction) for term in terms):
            total = Fraction(0)
            for term in terms:
                total = self.charge(total + term)
            return total
        return Node("add", tuple(_scalar(term) for term in terms))

    def negative(self, tree: Tree) -> Tree:
        if isinstance(tree, Decimal):
            return tree.negated()
        if isinstance(tree, Node) and tree.op in ("percent", "pm"):
            return Node(tree.op, tuple(self.negative(part) for part in tree.args))
        return -tree if isinstance(tree, Fraction) else self.multiply([Fraction(-1), tree])

    def multiply(self, factors: list[Any]) -> Tree:
        if len(factors) == 1:
            return factors[0]  # type: ignore[no-any-return]
        if all(isinstance(factor, Fraction) for factor in factors):
            total = Fraction(1)
            for factor in factors:
                total = self.charge(total * factor)
            return total
        matrices = [factor for factor in factors if isinstance(factor, Node) and factor.op == "matrix"]
        if len(matrices) == 1:
            rest = [factor for factor in factors if factor is not matrices[0]]
            return Node("matrix", tuple(tuple(self.multiply([*rest, x]) for x in row) for row in matrices[0].args))
        return Node("mul", tuple(_scalar(factor) for factor in factors))

    def inverse(self, tree: Tree) -> Tree:
        if not isinstance(tree, Fraction):
            return Node("pow", (_scalar(tree), Fraction(-1)))
        if tree == 0:
            raise ParseError("division by zero")
        return 1 / Fraction(tree)

    def divide(self, above: Tree, below: Tree) -> Tree:
        return self.multiply([above, self.inverse(below)])

    def raise_to(self, base: Tree, exponent: Tree) -> Tree:
        if not (isinstance(base, Fraction) and isinstance(exponent, Fraction)):
            if isinstance(exponent, Fraction) and abs(exponent) > MAX_BITS:
                raise ParseError("a power too large")
            return Node("pow", (_scalar(base), _scalar(exponent)))
        if base == 0 and exponent <= 0:
            raise ParseError("zero to a power that is not positive")
        if exponent.denominator != 1:
            if base > 0 and exponent.denominator <= 100 and abs(exponent.numerator) <= 1000:
                return self.exact_root(self.raise_to(base, Fraction(exponent.numerator)), exponent.denominator)
            return Node("pow", (base, exponent))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) != 1 and (bits - 1) * abs(exponent.numerator) > MAX_BITS:
            raise ParseError(f"a power of more than {MAX_BITS} bits")
        return self.charge(Fraction(base) ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2))

    def exact_root(self, radicand: Tree, index: int) -> Tree:
        if isinstance(radicand, Fraction) and (radicand >= 0 or index % 2):
            above, below = (_whole_root(abs(n), index) for n in (radicand.numerator, radicand.denominator))
            if above is not None and below is not None:
                return Fraction(above if radicand >= 0 else -above, below)
        return Node("root", (index, _scalar(radicand)))

    def factorial(self, tree: Tree) -> Tree:
        if not isinstance(tree, Fraction):
            return Node("fact", (tree,))
        n = tree.numerator
        if tree.denominator != 1 or n < 0 or n * max(1, n.bit_length() - 1) > MAX_BITS:
            raise ParseError("a factorial too large, or of no whole number")
        return self.charge(Fraction(math.factorial(n)))

    def binomial(self, n: Tree, k: Tree) -> Tree:
        if not (isinstance(n, Fraction) and isinstance(k, Fraction)):
            return Node("call", ("binom", n, k))
        if n.denominator != 1 or k.denominator != 1 or k < 0 or not 0 <= n <= MAX_BITS:
            raise ParseError("a binomial of no small whole numbers")
        return (
            self.charge(Fraction(math.comb(int(n), int(k)))) if min(k, n - k) < 2000 else self.factorial(Fraction(-1))
        )


def _whole_root(n: int, index: int) -> int | None:
    """The exact root of `n`, or `None`. Newton's iteration on whole numbers; `n` has at most MAX_BITS bits."""
    if index == 2:
        root = math.isqrt(n)
        return root if root * root == n else None
    if n.bit_length() > 4000:
        return None
    low = 1 << max(0, (n.bit_length() - 1) // index)
    high = low * 2
    while low < high:
        middle = (low + high) // 2
        if middle**index < n:
            low = middle + 1
        else:
            high = middle
    return low if low**index == n else None


def _scalar(tree: Tree) -> Tree:
    """`tree` itself, where a formula may go on with it; sets, lists and relations are whole answers."""
    if isinstance(tree, Node) and tree.op in _WHOLE:
        raise ParseError(f"a {tree.op} inside a formula")
    return tree
