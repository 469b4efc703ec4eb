r"""What stands between the operators of a text: numbers, letters, brackets, roots, functions, matrices.

    atom := number | letter | "(" ... ")" | "\frac" | "\sqrt" | "|" sum "|" | function | matrix | ...

`verifiers.latex` knows the operators around them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from fractions import Fraction

from verifiers import units
from verifiers.arithmetic import MAX_BITS, Arithmetic
from verifiers.tokens import ParseError, split_words
from verifiers.tree import EMPTY, FUNCTIONS, REALS, Decimal, Node, Tree

MAX_DEPTH = 30
GREEK = split_words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
CALLED = set("fgFGPQ")  # f(x) is a call, k(x) is a product
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
_OPENING = {"(": ")", "[": "]", "<<": ">>", "\\{": "\\}"}


class Atoms(Arithmetic, ABC):
    """A tape of tokens, and the reading of one atom from it. Raises `ParseError` on all else."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.tokens = found
        self.position = 0
        self.depth = 0
        self.bars = 0

    # -- the tape

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise ParseError(f"{token!r} expected, not {self.peek() or 'the end'!r}")
        self.position += 1

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH}")

    # -- the operators, which the subclass knows

    @abstractmethod
    def items(self) -> list[Tree]: ...

    @abstractmethod
    def relation(self) -> Tree: ...

    @abstractmethod
    def sum(self) -> Tree: ...

    @abstractmethod
    def signed(self) -> Tree: ...

    @abstractmethod
    def power(self) -> Tree: ...

    @abstractmethod
    def starts_factor(self, token: str) -> bool: ...

    # -- atoms

    def atom(self) -> Tree:
        token = self.take()
        first = token[:1]
        if first.isdigit() or (first == "." and len(token) > 1):
            return self.number(token)
        if token in _OPENING:
            return self.bracketed(token)
        if token == "{":
            self.position -= 1
            return self.group()
        if token == "|":
            self.bars += 1
            outer, self.bars = self.bars, 1
            tree = self.sum()
            self.bars = outer - 1
            self.expect("|")
            return abs(tree) if isinstance(tree, Fraction) else Node("abs", (tree,))
        if token == "\\frac":
            return self.divide(self.group(), self.group())
        if token == "\\sqrt":
            return self.root()
        if token == "\\binom":
            return self.binomial(self.group(), self.group())
        if token in ("\\lfloor", "\\lceil"):
            tree = self.sum()
            self.expect(token.replace("\\l", "\\r"))
            if isinstance(tree, Fraction):
                return Fraction(math.floor(tree) if token == "\\lfloor" else math.ceil(tree))
            return Node("floor" if token == "\\lfloor" else "ceil", (tree,))
        if token == "\\begin":
            return self.matrix()
        if token == "emptyset":
            return EMPTY
        if token == "reals":
            return REALS
        if token in ("pi", "oo"):
            return Node("const", (token,))
        if token in FUNCTIONS:
            return self.function(token)
        if token == "overline":
            return Node("sym", (f"overline {self.raw_group()}",))
        if token.isalpha() and (len(token) == 1 or token in GREEK):
            return self.letter(token)
        raise ParseError(f"a number expected, not {token[:20].lstrip(chr(34)) or 'the end'!r}")

    def number(self, token: str) -> Tree:
        following = self.peek()
        if following == "overline" and "." in token:
            self.take()
            return self.repeating(token)
        if following == "_":
            self.take()
            base = self.group()
            if not token.isdigit() or not isinstance(base, Fraction):
                raise ParseError("a number with a subscript that is no base")
            return Node("based", (token.lstrip("0"), base))
        value = self.literal(token)
        if token.isdigit():
            if following == "\\frac":
                fraction = self.power()
                proper = isinstance(fraction, Fraction) and 0 < fraction < 1
                return self.add([value, fraction]) if proper else self.multiply([value, fraction])
            if following.isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
                fraction = Fraction(int(following), int(self.peek(2)) or 1)
                if fraction < 1 and int(self.peek(2)):
                    self.position += 3
                    return self.charge(value + fraction)
        if following[:1].isdigit() or following[:1] == ".":
            raise ParseError(f"{following[:20]!r} after a number")
        return value

    def literal(self, token: str) -> Fraction:
        mantissa, _, exponent = token.partition("e")
        if exponent:
            if len(exponent) > 6 or abs(int(exponent)) * 4 > MAX_BITS:
                raise ParseError("a number too large")
            return self.charge(Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent))
        if "." not in mantissa:
            return Fraction(int(mantissa))
        return Decimal(mantissa) if not mantissa.endswith(".") else Fraction(int(mantissa[:-1] or "0"))

    def repeating(self, token: str) -> Fraction:
        digits = self.raw_group()
        if not digits.isdigit() or len(digits) > 60:
            raise ParseError("a repeating part that is no digits")
        scale = 10 ** len(token.partition(".")[2])
        return Fraction(token.rstrip(".")) + Fraction(int(digits), (10 ** len(digits) - 1) * scale)

    def raw_group(self) -> str:
        self.expect("{")
        parts = []
        while self.peek() not in ("}", ""):
            parts.append(self.take().lstrip('"'))
        self.expect("}")
        return "".join(parts)

    def letter(self, token: str) -> Tree:
        name = token
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                name += "_" + self.raw_group()
            else:
                name += "_" + self.take().lstrip('"')
        while self.peek() == "'":
            name += self.take()
        if name[0] in CALLED and self.peek() == "(":
            self.take()
            arguments = self.items()
            self.expect(")")
            return Node("call", (name, *arguments))
        if name in ("e", "i"):
            return Node("const", (name,))
        return Node("sym", (name,))

    def group(self) -> Tree:
        """An argument: in braces, or one digit, letter or command of what follows, as TeX reads it."""
        token = self.peek()
        if token.isdigit():
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]] if len(token) > 1 else [token]
            return Fraction(int(self.take()))
        if token != "{":
            self.deeper()
            tree = self.atom()
            self.depth -= 1
            return tree
        self.take()
        if self.peek() == "}":
            raise ParseError("empty braces")
        self.deeper()
        items = self.items()
        self.depth -= 1
        self.expect("}")
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    def bracketed(self, opening: str) -> Tree:
        closing = _OPENING[opening]
        if opening == "\\{" and self.peek() == closing:
            self.take()
            return EMPTY
        self.deeper()
        bars, self.bars = self.bars, 0
        if opening == "\\{" and (described := self.described()) is not None:
            self.bars = bars
            self.depth -= 1
            return described
        items = self.items()
        self.bars = bars
        self.depth -= 1
        last = self.take()
        if opening == "\\{" and last == closing:
            return Node("set", tuple(items))
        if last != closing and not (len(items) == 2 and opening in "([" and last in (")", "]")):
            raise ParseError(f"{closing!r} expected, not {last[:20] or 'the end'!r}")
        if len(items) == 1 and (opening == "(" or (isinstance(items[0], Node) and items[0].op == "matrix")):
            return items[0]
        return Node("seq", ("(" if opening == "<<" else opening, ")" if last == ">>" else last, tuple(items)))

    def described(self) -> Tree | None:
        """The condition of `x | x > 2 }`; `None` where the set is written otherwise, a ratio of letters say."""
        start, name = self.position, self.peek()
        if not (len(name) == 1 and name.isalpha() and self.peek(1) in ("|", ":")):
            return None
        self.position += 2
        condition = self.relation()
        if isinstance(condition, Node) and condition.op == "rel" and self.peek() == "\\}":
            self.take()
            return condition
        self.position = start
        return None

    def root(self) -> Tree:
        index: Tree = Fraction(2)
        if self.peek() == "[":
            self.take()
            index = self.sum()
            self.expect("]")
        token = self.peek()
        if token[:1].isdigit():
            radicand: Tree = self.literal(self.take())
        else:
            radicand = self.group()
        if not isinstance(index, Fraction) or index.denominator != 1 or not 2 <= index <= 100:
            raise ParseError("a root of a strange degree")
        return self.exact_root(radicand, int(index))

    def function(self, name: str) -> Tree:
        exponent: Tree | None = None
        base: Tree | None = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                negative = self.peek() == "-" and bool(self.take())
                exponent = self.group()
                exponent = self.negative(exponent) if negative else exponent
            else:
                base = self.group()
        if self.peek() == "(":
            self.take()
            arguments = self.items()
            self.expect(")")
        elif self.peek() == "{":
            arguments = [self.group()]
        else:
            factors = [self.signed()]
            while self.peek() not in FUNCTIONS and self.peek() != "(" and self.starts_factor(self.peek()):
                factors.append(self.power())
            arguments = [self.multiply(factors)]
        if name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            arguments = [self.radians(argument) for argument in arguments]
        if exponent == -1 and name in ("sin", "cos", "tan"):
            name, exponent = "arc" + name, None
        if name in ("log", "ln", "lg"):
            base = Fraction(10) if name == "lg" else base
            name = "ln"
        if name == "exp":
            tree = Node("pow", (Node("const", ("e",)), arguments[0]))
        elif name in ("gcd", "lcm", "min", "max"):
            tree = Node("call", (name, *arguments))
        elif len(arguments) != 1 or name in ("det", "deg"):
            raise ParseError(f"{name} of {len(arguments)} arguments")
        else:
            tree = Node(name, (arguments[0],))
        if base is not None:
            tree = Node("mul", (tree, Node("pow", (Node("ln", (base,)), Fraction(-1)))))
        return tree if exponent is None else self.raise_to(tree, exponent)

    def radians(self, tree: Tree) -> Tree:
        """The angle as a number: `\\sin 30^\\circ` and `\\sin(30^\\circ)` are 1/2."""
        if self.peek() == "deg":
            self.take()
        elif isinstance(tree, Node) and tree.op == "unit" and tree.args[1] == units.lookup("deg"):
            tree = tree.args[0]
        else:
            return tree
        return self.multiply([tree, Node("const", ("pi",)), Fraction(1, 180)])

    def matrix(self) -> Tree:
        name = self.take()
        if name not in MATRICES:
            raise ParseError(f"the environment {name[:20]!r}")
        rows: list[list[Tree]] = [[]]
        self.deeper()
        while self.peek() != "\\end":
            if self.peek() == "\\\\":
                self.take()
                if self.peek() != "\\end":
                    rows.append([])
                continue
            if self.peek() == "&":
                self.take()
            rows[-1].append(self.relation())
            if self.peek() not in ("&", "\\\\", "\\end"):
                raise ParseError(f"{self.peek()[:20] or 'the end'!r} in a matrix")
        self.depth -= 1
        self.take()
        if self.take() not in MATRICES or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ParseError("a matrix of uneven rows")
        return Node("matrix", tuple(tuple(row) for row in rows))
