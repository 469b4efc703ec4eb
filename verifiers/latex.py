r"""LaTeX or plain mathematics -> a small tree. Nothing is evaluated but arithmetic on numbers, and that is bounded.

    answer    := relation (("," | ";" | "and" | "or") relation)*         several: a "list"
    relation  := sets (("=" | "<" | "\le" | "\in" | ...) sets)*          several: a "rel"
    sets      := sum (("\cup" | "\cap" | "\setminus") sum)*
    sum       := product (("+" | "-" | "\pm") product)* [unit]
    product   := power (["*" | "/"] power)*                              no sign: implied, but never before a number
    power     := atom ["!" | "%"] ["^" power]
    atom      := number | letter | "(" ... ")" | "\frac" | "\sqrt" | "|" sum "|" | function | matrix | ...

A tree is a `Fraction` (exact numbers, folded on the way) or a `Node` of one of the operations that this file writes;
there are no others. Bounds, all checked before the work they would cause: length, nesting, bits of a number, and bits
handled in all. `4\frac{1}{2}` and `4 1/2` are mixed numbers, `1,234` is a thousand and so on, `2e3` is 2000.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

from verifiers import units
from verifiers.tokens import MAX_LENGTH, ParseError, split_words, tokens, words_of

MAX_DEPTH = 30
MAX_BITS = 32_768  # of a numerator or denominator: 2006! has 19 000
MAX_SIGNS = 4
MAX_WORK = 400_000  # bits handled by arithmetic in one text

FUNCTIONS = split_words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp gcd lcm min max "
    "arcsec arccsc det deg"
)
GREEK = split_words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
RELATIONS = {"=", "<", ">", "<=", ">=", "!=", "~", "in"}
CALLED = set("fgFGPQ")  # f(x) is a call, k(x) is a product
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
_OPENING = {"(": ")", "[": "]", "<<": ">>", "\\{": "\\}"}
_WHOLE = {"list", "set", "seq", "union", "inter", "minus", "rel", "matrix", "text", "ratio", "based", "unit"}
_MIXED_LIST = {",", ";", "and", "or"}


class Node(NamedTuple):
    """`op` is one of: sym const add mul pow root call binom abs floor ceil fact FUNCTIONS | percent unit based pm
    | seq (brackets, items) list set union inter minus rel matrix ratio text opaque."""

    op: str
    args: tuple[Any, ...]


Tree = Fraction | Node


class Decimal(Fraction):
    """A number written with a decimal point. Arithmetic makes it a plain `Fraction`, which is exact."""

    text: str
    places: int
    digits: int

    def __new__(cls, text: str, negative: bool = False) -> Decimal:
        self: Decimal = super().__new__(cls, "-" + text if negative else text)
        self.text = text
        self.places = len(text.partition(".")[2])
        self.digits = len(text.replace(".", "").lstrip("0"))
        return self

    def negated(self) -> Decimal:
        return Decimal(self.text, self > 0)


EMPTY = Node("set", ())
REALS = Node("seq", ("(", ")", (Node("mul", (Fraction(-1), Node("const", ("oo",)))), Node("const", ("oo",)))))
_NO_SOLUTION = {"no solution", "no solutions", "empty set", "the empty set", "no real solution", "no real solutions"}


def parse_tree(text: str, *, thousands: bool = True) -> Tree:
    """The tree of `text`. Raises `ParseError`, and nothing else, on any text.

    `thousands=False` reads every comma as a separator: "(1,234)" has two readings.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"{len(text)} characters, and at most {MAX_LENGTH} are read")
    words = words_of(text)
    if words is not None:
        return EMPTY if words in _NO_SOLUTION else Node("text", (words,))
    found = tokens(text, thousands=thousands)
    if found.count("\\pm") > MAX_SIGNS:
        raise ParseError(f"more than {MAX_SIGNS} plus-or-minus signs")  # each doubles the values
    if any(token.startswith("~~") for token in found):  # sums, integrals, dots: equal when written the same
        return Node("opaque", tuple(found))
    return _Parser(found).answer()


class _Parser:
    def __init__(self, found: list[str]) -> None:
        self.tokens = found
        self.position = 0
        self.depth = 0
        self.work = 0
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

    # -- the grammar, from the outside in

    def answer(self) -> Tree:
        if not self.tokens:
            raise ParseError("nothing there")
        items = self.items()
        if self.peek():
            raise ParseError(f"{self.peek()[:20]!r} after the end of the expression")
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    def items(self) -> list[Tree]:
        items = [self.relation()]
        while self.peek() in _MIXED_LIST:
            while self.peek() in _MIXED_LIST and self.peek(1) in _MIXED_LIST:  # ", and"
                self.take()
            self.take()
            items.append(self.relation())
        return items

    def relation(self) -> Tree:
        parts: list[Any] = [self.sets()]
        signs: list[str] = []
        while self.peek() in RELATIONS:
            signs.append(self.take())
            parts.append(self.sets())
        return Node("rel", (tuple(signs), tuple(parts))) if signs else parts[0]

    def sets(self) -> Tree:
        tree = self.ratio()
        while self.peek() in ("union", "inter", "minus"):
            op = self.take()
            tree = Node(op, (tree, self.ratio()))
        return tree

    def ratio(self) -> Tree:
        first = self.quantity()
        if self.peek() != ":":
            return first
        parts, start = [first], self.position
        while self.peek() == ":":
            self.take()
            parts.append(self.quantity())
        written = "".join(self.tokens[start - 1 : self.position])
        return Node("ratio", (written, *parts))

    def quantity(self) -> Tree:
        """A sum and its unit, if it has one: `\\$5`, `15 cm^2`, `60 miles per hour`, `90^\\circ`."""
        money = self.peek() in ("\\$", "\u20ac", "\u00a3") and self.take()
        tree = self.sum()
        unit = None
        if money:
            unit = units.lookup({"\\$": "usd", "\u20ac": "euro", "\u00a3": "gbp"}[money])
        while self.peek()[:1] == '"' or self.peek() in ("\u20ac", "\\$", "deg"):
            more = self.unit()
            # "\$5 dollars" says it once more; in "5 dollars 20 cents" the number that follows is refused
            unit = more if unit is None or unit == more else units.product(unit, more)
        return tree if unit is None else Node("unit", (tree, unit))

    def unit(self) -> units.Unit:
        total: units.Unit = (Fraction(1), ())
        sign, ahead = 1, 0
        while self.peek()[:1] == '"' or self.peek() in ("\u20ac", "\\$", "deg"):
            word = self.take().lstrip('"')
            word = {"\u20ac": "euro", "\\$": "usd"}.get(word, word)
            if word in ("per", "an", "of"):
                sign = -1 if word == "per" else sign
                continue
            if word in ("square", "sq", "cubic") and self.peek()[:1] == '"':
                ahead = 3 if word == "cubic" else 2
                continue
            found = units.lookup(word)
            if found is None:
                raise ParseError(f"the words {word[:20]!r}")
            exponent = ahead or 1
            if self.peek() == "^":
                self.take()
                value = self.group()
                if not isinstance(value, Fraction) or value.denominator != 1 or abs(value) > 4:
                    raise ParseError("a unit to a strange power")
                exponent = int(value)
            total = units.product(total, units.power(found, sign * exponent))
            ahead = 0
            if self.peek() == "/" and self.peek(1)[:1] == '"':
                self.take()
                sign = -1
        return total

    def sum(self) -> Tree:
        self.deeper()
        terms: list[Tree] = []
        tree: Tree
        if self.peek() == "\\pm":
            self.take()
            tree = Node("pm", (Fraction(0), self.product()))
        else:
            tree = self.product()
        while self.peek() in ("+", "-", "\\pm"):
            sign, term = self.take(), self.product()
            if sign == "\\pm":
                tree, terms = Node("pm", (self.add([tree, *terms]), term)), []
            else:
                terms.append(term if sign == "+" else self.negative(term))
        self.depth -= 1
        return self.add([tree, *terms]) if terms else tree

    def product(self) -> Tree:
        factors = [self.signed()]
        while True:
            token = self.peek()
            if token == "*":
                self.take()
                factors.append(self.signed())
            elif token == "/":
                if self.peek(1)[:1] == '"':
                    break
                self.take()
                factors.append(self.inverse(self.signed()))
            elif self.starts_factor(token):
                factors.append(self.power())
            else:
                break
        return self.multiply(factors) if len(factors) > 1 else factors[0]

    def starts_factor(self, token: str) -> bool:
        if token in ("(", "{", "\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil", "\\begin", "\\const", "\\root"):
            return True
        if token == "|":
            return self.bars == 0
        if token in ("\\{", "[", "<<"):
            return False
        return token.isalpha() and token not in ("and", "or", "in", "union", "inter", "minus", "deg")

    def signed(self) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = self.power()
        return self.negative(tree) if negative else tree

    def power(self) -> Tree:
        self.deeper()
        tree = self.postfix(self.atom())
        if self.peek() == "^":
            self.take()
            negative = False
            while self.peek() in ("+", "-"):
                negative ^= self.take() == "-"
            exponent = self.power() if self.peek() != "{" else self.chained(self.group())
            tree = self.raise_to(tree, self.negative(exponent) if negative else exponent)
            tree = self.postfix(tree)
        self.depth -= 1
        return tree

    def chained(self, base: Tree) -> Tree:
        if self.peek() != "^":
            return base
        self.take()
        return self.raise_to(base, self.power())

    def postfix(self, tree: Tree) -> Tree:
        while self.peek() in ("!", "%"):
            if self.take() == "%":
                tree = Node("percent", (tree,))
            elif self.peek() == "!":
                raise ParseError("a factorial of a factorial")
            else:
                tree = self.factorial(tree)
        return tree

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

    # -- arithmetic, folded where both sides are numbers

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
