"""Judges the last `\\boxed{...}` of an answer by exact value.

    expression := sum ["=" sum]                 with "=", the left side is a lone letter: "x = 3" means 3
    sum        := product (("+" | "-") product)*
    product    := factor (("*" | "\\times" | "\\cdot" | "/") factor)*
    factor     := ("+" | "-")* power
    power      := atom ["^" exponent]           an exponent is a whole number, maybe signed, maybe in brackets
    atom       := number | "(" sum ")" | "{" sum "}" | "\\frac" group group

Nothing of the model's text is ever evaluated: a tokenizer and a recursive-descent parser make exact rationals
(sympy's), and every bound (length, nesting, size of a power) is checked before the work it would cause.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from sympy import Integer, Rational

from rlvr.types import Message, Outcome, Task, Verdict

MAX_CONTENT = 100_000  # characters of an answer that are looked at, from its end
MAX_EXPRESSION = 300  # characters in a box
MAX_DEPTH = 30
MAX_BITS = 4_000  # of a numerator or denominator, in a power's result or anywhere on the way

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)"
    r"|(?P<command>\\(?:[dt]?frac|times|cdot|left|right|[,;! ]))"
    r"|(?P<symbol>[-+*/^(){}=\u2212\u00b7\u00d7\u00f7])"
    r"|(?P<letter>[A-Za-z]))",
    re.ASCII,
)
_SAME = {"\N{MINUS SIGN}": "-", "\N{MIDDLE DOT}": "*", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"}
_SAME |= {"\\times": "*", "\\cdot": "*", "\\dfrac": "\\frac", "\\tfrac": "\\frac"}
_SPACING = {"\\left", "\\right", "\\,", "\\;", "\\!", "\\ "}
_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


class ParseError(ValueError):
    """The text is no expression of the grammar, or passes a bound. Says which."""


class MathVerifier:
    """Correct when the box holds the reference's value, exactly. Invalid only when the reference does not parse."""

    id = "math"
    version = _VERSION

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        start = perf_counter()
        checks = {"boxed": False, "parses": False, "equal": False}

        def verdict(outcome: Outcome, reason: str) -> Verdict:
            return Verdict(
                outcome=outcome,
                reward={"correct": 1.0, "incorrect": -1.0, "invalid": None}[outcome],
                reason=reason,
                checks=checks,
                verifier=self.id,
                version=self.version,
                seconds=perf_counter() - start,
            )

        try:
            expected = parse(str(task.reference["answer"]))
        except (KeyError, ParseError) as error:
            return verdict("invalid", f"the reference of task {task.id} is no expression: {error!r}")
        content = next((message.content for message in reversed(transcript) if message.role == "assistant"), "")
        box = last_boxed(content)
        if box is None:
            return verdict("incorrect", "no complete \\boxed{...} in the answer")
        checks["boxed"] = True
        try:
            given = parse(box)
        except ParseError as error:
            return verdict("incorrect", f"the box holds no expression: {error}")
        checks["parses"] = True
        if given != expected:
            return verdict("incorrect", f"the box holds {_brief(given)}, the answer is {_brief(expected)}")
        checks["equal"] = True
        return verdict("correct", f"the box holds {_brief(given)}")


def last_boxed(content: str) -> str | None:
    """What stands in the last `\\boxed{...}` whose braces close, nested braces included; `None` where there is none.

    Braces are paired once over the whole text, so the cost is linear however many boxes are left open.
    """
    content = content[-MAX_CONTENT:]
    opening = {match.end() - 1 for match in re.finditer(r"\\boxed\s*\{", content)}
    stack: list[int] = []
    last: tuple[int, int] | None = None
    for match in re.finditer(r"\\[{}]|[{}]", content):
        if match.group() == "{":
            stack.append(match.start())
        elif match.group() == "}" and stack:
            start = stack.pop()
            if start in opening and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else content[last[0] + 1 : last[1]]


def parse(text: str) -> Rational:
    """The exact value of `text`. Raises `ParseError`, and nothing else, on any text."""
    return _Parser(_tokens(text)).expression()


def _brief(value: Rational) -> str:
    text = str(value) if max(value.p.bit_length(), value.q.bit_length()) <= 256 else "a very long number"
    return text if len(text) <= 40 else text[:37] + "..."


def _tokens(text: str) -> list[str]:
    text = text.strip().strip("$").rstrip(". \t\r\n")
    if len(text) > MAX_EXPRESSION:
        raise ParseError(f"{len(text)} characters, and at most {MAX_EXPRESSION} are read")
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"{text[position : position + 10]!r} is not understood")
        token = match.group(match.lastgroup or 0).replace(",", "") if match["number"] else match.group().strip()
        if token not in _SPACING:
            tokens.append(_SAME.get(token, token))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def expression(self) -> Rational:
        if len(self.tokens) > 2 and self.tokens[0].isalpha() and self.tokens[1] == "=":
            self.position = 2
        value = self.sum()
        if self.peek():
            raise ParseError(f"{self.peek()!r} after the end of the expression")
        return value

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise ParseError(f"{token!r} expected, not {self.peek() or 'the end'!r}")
        self.position += 1

    def sum(self) -> Rational:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH}")
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _bounded(value + self.product() if self.take() == "+" else value - self.product())
        self.depth -= 1
        return value

    def product(self) -> Rational:
        value = self.factor()
        while self.peek() in ("*", "/"):
            value = _bounded(value * self.factor() if self.take() == "*" else _divide(value, self.factor()))
        return value

    def factor(self) -> Rational:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Rational:
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        return _power(base, self.exponent())

    def exponent(self) -> Rational:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.atom()
        if self.peek() == "^":
            raise ParseError("a tower of powers")
        return -value if negative else value

    def atom(self) -> Rational:
        token = self.take()
        if token[:1].isdigit() or token[:1] == ".":
            return Rational(token.rstrip("."))
        if token in ("(", "{"):
            value = self.sum()
            self.expect({"(": ")", "{": "}"}[token])
            return value
        if token == "\\frac":
            return _divide(self.group(), self.group())
        raise ParseError(f"a number expected, not {token or 'the end'!r}")

    def group(self) -> Rational:
        """An argument of `\\frac`: in braces, or one digit of what follows, as TeX reads it."""
        token = self.peek()
        if token[:1].isdigit() and token.isdigit():
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]] if len(token) > 1 else [token]
            return Integer(int(self.take()))
        self.expect("{")
        value = self.sum()
        self.expect("}")
        return value


def _bounded(value: Rational) -> Rational:
    if max(value.p.bit_length(), value.q.bit_length()) > MAX_BITS:
        raise ParseError(f"a number of more than {MAX_BITS} bits on the way")
    return value


def _divide(value: Rational, by: Rational) -> Rational:
    if by == 0:
        raise ParseError("division by zero")
    return value / by


def _power(base: Rational, exponent: Rational) -> Rational:
    if exponent.q != 1:
        raise ParseError("a power that is not whole")
    bits = max(base.p.bit_length(), base.q.bit_length())
    if bits * abs(exponent.p) > MAX_BITS:
        raise ParseError(f"a power of more than {MAX_BITS} bits")
    if base == 0 and exponent <= 0:
        raise ParseError("zero to a power that is not positive")
    return base**exponent
