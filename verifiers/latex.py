r"""LaTeX or plain mathematics -> a small tree. Nothing is evaluated but arithmetic on numbers, and that is bounded.

    answer    := relation (("," | ";" | "and" | "or") relation)*         several: a "list"; inequalities of one
                                                                         letter with "and": what both allow
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

from fractions import Fraction
from typing import Any

from verifiers import units
from verifiers.atoms import Atoms
from verifiers.tokens import MAX_LENGTH, ParseError, tokens, words_of
from verifiers.tree import EMPTY, ORDER, Node, Tree, symbols

MAX_SIGNS = 4
RELATIONS = ORDER | {"=", "~", "in"}
_SEPARATORS = {",", ";", "and", "or"}
_HALVES_OF_DAY = (units.lookup("am"), units.lookup("pm"))
_SCALES = {"F": "fahrenheit", "C": "celsius"}
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


class _Parser(Atoms):
    """The grammar, from the outside in."""

    def answer(self) -> Tree:
        if not self.tokens:
            raise ParseError("nothing there")
        words = {token for token in self.tokens if token in ("and", "or", ",", ";")}
        items = self.items()
        if self.peek():
            raise ParseError(f"{self.peek()[:20]!r} after the end of the expression")
        if len(items) == 1:
            return items[0]
        if words in ({"and"}, {"or"}) and _about_one_name(items):
            return Node("inter" if words == {"and"} else "union", tuple(items))
        return Node("list", tuple(items))

    def items(self) -> list[Tree]:
        items = [self.relation()]
        while self.peek() in _SEPARATORS:
            while self.peek() in _SEPARATORS and self.peek(1) in _SEPARATORS:  # ", and"
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
        last, half_of_day = parts[-1], None
        if isinstance(last, Node) and last.op == "unit" and last.args[1] in _HALVES_OF_DAY:  # 8:30 p.m.
            parts[-1], half_of_day = last.args
        written = "".join(token for token in self.tokens[start - 1 : self.position] if token[0] != '"')
        tree = Node("ratio", (written, *parts))
        return tree if half_of_day is None else Node("unit", (tree, half_of_day))

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
            if word == "deg" and self.peek() in _SCALES:
                word = _SCALES[self.take()]
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
                if token == "{" and self.peek(1)[:1].isdigit():
                    raise ParseError(f"{self.peek(1)[:20]!r} after a factor")  # {5}{6} looks like 56
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


def _about_one_name(items: list[Tree]) -> bool:
    """Whether all are inequalities of the same letter: "and" then means what both allow."""
    if not all(isinstance(item, Node) and item.op == "rel" and set(item.args[0]) <= ORDER for item in items):
        return False
    return len({symbols(item) for item in items}) == 1 and len(symbols(items[0])) == 1
