"""Are two formulas the same function? Decided by values, never by rewriting: no input can make it grow.

Rational functions are evaluated at random points of the field of integers modulo 2^255 - 19: exact arithmetic, and two
different ones of degree d agree at a point with probability d / 2^255 (Schwartz, Zippel). All others (roots, powers,
logarithms, trigonometry) are evaluated at random real points with 60 digits more than the numbers in them have, and an
error bound is carried along; points where either is not real are passed over. The points are a hash of the symbol's
name, so a verdict repeats itself.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath import MPContext

from verifiers.tree import Tree, has_steps, infinity, size, symbols

PRIME = 2**255 - 19
_ROOT_OF_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)
_LOCAL = threading.local()  # mpmath's precision belongs to a context: one a thread
BASE_BITS = 200
FINE_BITS = 4000  # where those are not enough to see every part of a formula
MAX_BITS = 8000  # of the numbers in two formulas that are no rational functions; beyond, only the same text is equal
MAX_GAMMA_BITS = 1000  # of precision: the coefficients of the gamma function take 0.1 s at 1000, 4 s at 4000
MAX_EXPONENT = 1e5  # of e, in any value on the way
BUDGET = 40_000  # evaluations of a node at 256 bits that one verdict may cost in this process


class Undefined(ValueError):
    """The formula has no value here: a division by zero, an infinity, or a value too large to compute."""


class Unresolved(Undefined):
    """A part vanishes beside another at this precision: the two formulas cannot be told apart here."""


class TooCostly(Exception):
    """The budget is spent; `verifiers.worker` may go on with it under a time limit."""


class _NotRationalError(Exception):
    pass


class Meter:
    """Counts the cost of one verdict. `budget=None` never ends."""

    def __init__(self, budget: int | None = BUDGET) -> None:
        self.left = budget

    def charge(self, cost: int) -> None:
        if self.left is not None:
            self.left -= cost
            if self.left < 0:
                raise TooCostly


def identical(first: Tree, second: Tree, meter: Meter) -> bool:
    """Whether two formulas are equal wherever both are real."""
    if first == second:
        return True
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return False
    try:
        return _compare_exactly(first, second)
    except _NotRationalError:
        pass
    except Undefined:
        return False
    names = sorted(symbols(first) | symbols(second))
    real = not_real = 0
    for turn in range(16 if names else 1):
        pair = _values(first, second, names, turn, meter)
        if pair is None:
            continue
        (a, error_a), (b, error_b), context = pair
        agree = bool(abs(a - b) <= (error_a + error_b) * context.ldexp(1, 24 - context.prec))
        if names and not (_is_real(a, context) and _is_real(b, context)):
            not_real += agree and turn < 8
            continue
        if not agree:
            return False
        real += 1
        if real == 5:
            return True
    return real >= 2 or (not names and real == 1) or (real == 0 and not_real >= 6)


def proportional(first: Tree, second: Tree, meter: Meter) -> int:
    """The sign of the constant c != 0 with first = c * second at every point, or 0 where there is none."""
    names = sorted(symbols(first) | symbols(second))
    if not names:
        return 0
    ratios, signs = [], []
    for turn in range(10):
        pair = _values(first, second, names, turn, meter)
        if pair is None:
            continue
        (a, error_a), (b, error_b), context = pair
        epsilon = context.ldexp(1, 24 - context.prec)
        if abs(a) <= error_a * epsilon or abs(b) <= error_b * epsilon:
            return 0
        ratios.append(a / b)
        signs.append((error_a / abs(a) + error_b / abs(b)) * epsilon)
        if abs(ratios[-1] - ratios[0]) > abs(ratios[0]) * (signs[-1] + signs[0]):
            return 0
        if len(ratios) == 3:
            real = _is_real(ratios[0], context)
            return 1 if real and context.re(ratios[0]) > 0 else -1
    return 0


def constant(tree: Tree, meter: Meter) -> tuple[Any, Any]:
    """The real value of a formula without symbols, and its context. Raises `Undefined`."""
    context = _context(tree, tree)
    meter.charge(size(tree)[0] * (context.prec // 256 + 1))
    value, _ = _evaluate(tree, {}, context)
    if not _is_real(value, context):
        raise Undefined
    return context.re(value), context


def approximate(tree: Tree, meter: Meter) -> float:
    """A float to sort by; infinities too. Raises `Undefined`."""
    if isinstance(tree, Fraction):
        try:
            return float(tree)
        except OverflowError:
            raise Undefined from None
    sign = infinity(tree)
    if sign:
        return sign * math.inf
    if symbols(tree):
        raise Undefined
    return float(constant(tree, meter)[0])


# -- exact: modulo a prime


@lru_cache(maxsize=4096)
def _random(name: str, turn: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{turn}/{name}".encode()).digest() * 2, "big")


def _compare_exactly(first: Tree, second: Tree) -> bool:
    defined = 0
    for turn in range(4):
        try:
            if _modular(first, turn) != _modular(second, turn):
                return False
        except Undefined:
            continue
        defined += 1
        if defined == 2:
            return True
    raise Undefined


def _modular(tree: Tree, turn: int) -> int:
    if isinstance(tree, Fraction):
        return tree.numerator * _inverse(tree.denominator) % PRIME
    op, args = tree
    if op == "sym":
        return _random(args[0], turn) % PRIME
    if op == "const" and args[0] != "oo":  # pi and e are taken for independent of all else, as symbols are
        return _ROOT_OF_MINUS_ONE if args[0] == "i" else _random(f"const {args[0]}", turn) % PRIME
    if op == "add":
        return sum(_modular(part, turn) for part in args) % PRIME
    if op == "mul":
        product = 1
        for part in args:
            product = product * _modular(part, turn) % PRIME
        return product
    if op == "pow" and isinstance(args[1], Fraction) and args[1].denominator == 1:
        base = _modular(args[0], turn)
        exponent = args[1].numerator
        return pow(base if exponent >= 0 else _inverse(base), abs(exponent), PRIME)
    raise _NotRationalError


def _inverse(value: int) -> int:
    if value == 1:
        return 1
    try:
        return pow(value, -1, PRIME)
    except ValueError:
        raise Undefined from None


# -- real: with an error bound


def _context(first: Tree, second: Tree) -> Any:
    context = getattr(_LOCAL, "context", None)
    if context is None:
        context = _LOCAL.context = MPContext()
    bits = size(first)[1] + size(second)[1]
    if bits > MAX_BITS:
        raise Undefined
    context.prec = BASE_BITS + bits
    return context


def _is_real(value: Any, context: Any) -> bool:
    return bool(abs(context.im(value)) <= abs(value) * context.ldexp(1, 40 - context.prec))


def _values(first: Tree, second: Tree, names: list[str], turn: int, meter: Meter) -> Any:
    context = _context(first, second)
    meter.charge((size(first)[0] + size(second)[0]) * (context.prec // 256 + 1))
    whole = turn % 2 and (has_steps(first) or has_steps(second))
    point = {}
    for name in names:
        unit = context.ldexp(_random(name, turn) >> 384, -128)  # in [0, 1)
        low, wide = ((0, 1), (-2, 2), (1, 3), (-9, 18), (1, 9), (10, 90))[turn % 6]
        point[name] = context.floor(low + wide * unit) if whole else low + wide * unit
    for precision in (context.prec, FINE_BITS):
        context.prec = max(precision, context.prec)
        try:
            return _evaluate(first, point, context), _evaluate(second, point, context), context
        except Unresolved:
            meter.charge((size(first)[0] + size(second)[0]) * (FINE_BITS // 8))  # far dearer than it is long
        except (Undefined, ZeroDivisionError, OverflowError, ValueError):
            return None
    return None


_ONE_ARGUMENT: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    # value, and how much it magnifies an error of its argument
    "sin": lambda c, x: (c.sin(x), c.one + abs(c.im(x))),
    "cos": lambda c, x: (c.cos(x), c.one + abs(c.im(x))),
    "tan": lambda c, x: (c.tan(x), 1 + abs(c.tan(x)) ** 2),
    "cot": lambda c, x: (c.cot(x), 1 + abs(c.cot(x)) ** 2),
    "sec": lambda c, x: (c.sec(x), 1 + abs(c.sec(x)) ** 2),
    "csc": lambda c, x: (c.csc(x), 1 + abs(c.csc(x)) ** 2),
    "arcsin": lambda c, x: (c.asin(x), 1 / abs(c.sqrt(abs(1 - x * x)) or c.eps)),
    "arccos": lambda c, x: (c.acos(x), 1 / abs(c.sqrt(abs(1 - x * x)) or c.eps)),
    "arctan": lambda c, x: (c.atan(x), c.one),
    "arccot": lambda c, x: (c.acot(x), c.one),
    "arcsec": lambda c, x: (c.asec(x), c.mpf(10) ** 6),
    "arccsc": lambda c, x: (c.acsc(x), c.mpf(10) ** 6),
    "sinh": lambda c, x: (c.sinh(x), abs(c.cosh(x))),
    "cosh": lambda c, x: (c.cosh(x), abs(c.cosh(x))),
    "tanh": lambda c, x: (c.tanh(x), c.one),
    "ln": lambda c, x: (c.ln(x), 1 / abs(x)),
    "abs": lambda c, x: (abs(x), c.one),
    "floor": lambda c, x: (c.floor(x), c.zero),
    "ceil": lambda c, x: (c.ceil(x), c.zero),
    "fact": lambda c, x: (c.gamma(x + 1), abs(c.gamma(x + 1)) * (1 + c.ln(abs(x) + 2))),
}

_STEEP = {"ln", "abs", "fact", "sin", "tan", "arcsin", "arctan", "sinh"}  # near 0 they are no constants


def _evaluate(tree: Tree, point: dict[str, Any], context: Any) -> tuple[Any, Any]:
    """Value and error, the error in units of 2^-prec."""
    if isinstance(tree, Fraction):
        value = context.mpf(tree.numerator) / tree.denominator
        return value, abs(value)
    op, args = tree
    if op == "sym":
        return point[args[0]], context.zero
    if op == "const":
        if args[0] == "oo":
            raise Undefined
        return {"pi": context.pi, "e": context.e, "i": context.j}[args[0]] + context.zero, context.mpf(4)
    if op == "call":
        return _call(args, point, context)
    if op == "root":
        value, error = _evaluate(args[1], point, context)
        index = args[0]
        if index % 2 and _is_real(value, context) and context.re(value) < 0:
            result = -context.root(-context.re(value), index)
        else:
            result = context.root(value, index)
        return result, abs(result) + (error * abs(result) / (index * abs(value)) if value else context.zero)
    if op not in ("add", "mul", "pow") and op not in _ONE_ARGUMENT:
        raise Undefined
    parts = [_evaluate(part, point, context) for part in args]
    if op == "add":
        value = sum(part[0] for part in parts)
        largest = max((context.mag(part) for part, _ in parts if part), default=0)
        for part, error in parts:
            if _matters(part, error, context) and context.mag(part) < largest - context.prec + 60:
                raise Unresolved
        return value, sum(part[1] for part in parts) + abs(value)
    if op == "mul":
        value, error = parts[0]
        for more, more_error in parts[1:]:
            error = abs(value) * more_error + abs(more) * error + abs(value * more)
            value = value * more
        return _bounded(value, context), error
    value, error = parts[0]
    if op == "pow":
        exponent, exponent_error = parts[1]
        if not value:
            if _is_real(exponent, context) and context.re(exponent) > 0:
                return context.zero, error
            raise Undefined
        logarithm = context.ln(value)
        if abs(exponent * logarithm) > MAX_EXPONENT:
            raise Undefined
        if _matters(exponent, exponent_error, context) and context.mag(exponent) < 60 - context.prec:
            raise Unresolved
        power = args[1]
        if isinstance(power, Fraction) and power.denominator == 1:
            result = value**power.numerator
        else:
            result = context.exp(exponent * logarithm)
        relative = abs(exponent) * error / abs(value) + (exponent_error + abs(exponent)) * (abs(logarithm) + 1)
        return result, abs(result) * (1 + relative)
    if op in _ONE_ARGUMENT:
        if abs(value) > MAX_EXPONENT and op not in ("ln", "abs", "floor", "ceil"):
            raise Undefined
        if op == "fact" and (abs(value) > 1000 or context.prec > MAX_GAMMA_BITS):
            raise Undefined
        if op in ("floor", "ceil"):
            nearest = context.nint(context.re(value))
            if abs(value - nearest) <= error * context.ldexp(1, 24 - context.prec):
                return nearest, context.zero
        elif _is_flat(op, value, context) and _matters(value, error, context):
            raise Unresolved
        result, slope = _ONE_ARGUMENT[op](context, value)
        return result, abs(result) + slope * error + 1
    raise Undefined


def _is_flat(op: str, value: Any, context: Any) -> bool:
    """Whether the function is so flat here that its argument is lost in its value: 1 - cos(10^-300), 1 - tanh(1000)."""
    if op == "tanh":
        return bool(abs(context.re(value)) * 3 > context.prec - 60)
    return op not in _STEEP and bool(value) and bool(2 * context.mag(value) < 60 - context.prec)


def _matters(value: Any, error: Any, context: Any) -> bool:
    """Whether a value is truly other than 0, and no residue of rounding."""
    return bool(value and abs(value) > error * context.ldexp(1, 24 - context.prec))


def _bounded(value: Any, context: Any) -> Any:
    if value and abs(context.mag(value)) > 4 * MAX_EXPONENT:
        raise Undefined
    return value


def _call(args: tuple[Any, ...], point: dict[str, Any], context: Any) -> tuple[Any, Any]:
    """A function that nobody defined: some number that depends on its name and on the values of its arguments."""
    values = [_evaluate(part, point, context)[0] for part in args[1:]]
    if args[0] in ("min", "max") and all(_is_real(value, context) for value in values):
        return (min if args[0] == "min" else max)(context.re(value) for value in values), context.one
    shown = ", ".join(context.nstr(value, 25) for value in values)
    return context.ldexp(1 + (_random(f"{args[0]}({shown})", 0) >> 384), -120), context.zero
