"""What an answer is once it has been read: a `Fraction` (exact numbers, folded on the way) or a `Node`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from verifiers.tokens import split_words

FUNCTIONS = split_words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp gcd lcm min max "
    "arcsec arccsc det deg"
)

ORDER = frozenset({"<", ">", "<=", ">=", "!="})


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


def children(tree: Tree) -> tuple[Any, ...]:
    """The parts of a node that are trees."""
    if isinstance(tree, Fraction) or tree.op in ("sym", "const", "text", "opaque"):
        return ()
    args = tree.args
    if tree.op in ("rel", "seq"):
        args = args[-1]
    elif tree.op == "matrix":
        args = tuple(part for row in args for part in row)
    return tuple(part for part in args if isinstance(part, Fraction | Node))


def symbols(tree: Tree) -> frozenset[str]:
    if isinstance(tree, Node) and tree.op == "sym":
        return frozenset(tree.args)
    parts = [symbols(part) for part in children(tree)]
    return frozenset().union(*parts) if parts else frozenset()


def has_steps(tree: Tree) -> bool:
    """Whether it rounds somewhere: such formulas can differ at whole numbers alone."""
    return isinstance(tree, Node) and (tree.op in ("floor", "ceil") or any(map(has_steps, children(tree))))


def size(tree: Tree) -> tuple[int, int]:
    """Nodes of a tree, and bits of the numbers in it."""
    if isinstance(tree, Fraction):
        return 1, tree.numerator.bit_length() + tree.denominator.bit_length()
    nodes, bits = 1, 0
    for part in children(tree):
        more = size(part)
        nodes, bits = nodes + more[0], bits + more[1]
    return nodes, bits


def is_name(tree: Tree) -> bool:
    """A letter, or letters in brackets: what an equation may be solved for."""
    if isinstance(tree, Node) and tree.op == "seq":
        return all(map(is_name, tree.args[2]))
    return isinstance(tree, Node) and tree.op == "sym"


def infinity(tree: Tree) -> int:
    """1 and -1 for plus and minus infinity, 0 for all else."""
    if tree == Node("const", ("oo",)):
        return 1
    if isinstance(tree, Node) and tree.op == "mul" and len(tree.args) == 2 and tree.args[1] == Node("const", ("oo",)):
        factor = tree.args[0]
        return (factor > 0) - (factor < 0) if isinstance(factor, Fraction) else 0
    return 0


def show(tree: Any) -> str:
    """A tree for a person to read: `list(1/2, rel(=, x, 3))`."""
    if isinstance(tree, Node):
        if tree.op in ("sym", "const", "text"):
            return str(tree.args[0])
        if tree.op == "opaque":
            return f"as written: {' '.join(tree.args)}".replace("~~", "\\")
        return f"{tree.op}({', '.join(map(show, tree.args))})"
    if isinstance(tree, Decimal):
        return f"{'-' if tree < 0 else ''}{tree.text}"
    return " ".join(map(show, tree)) if isinstance(tree, tuple) else str(tree)
