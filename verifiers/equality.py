r"""Is an answer the reference? All rules of equality, for every kind of answer.

- Numbers are equal exactly. One tolerance: a decimal with at least `MIN_DIGITS` significant digits stands for a number
  that is not written as a decimal when it is that number rounded or cut at its last place: 0.33333 for 1/3, 3.1416 for
  pi, but not 0.33, and never one decimal for another.
- Percent: 28% is 0.28; and it is 28 where that is more than 1 (a question may have asked "how many percent?").
- Units: both written, they must agree (1 m = 100 cm); where one side has none it is not asked for.
- `x = 3`, `x \in S` and `f(x) = ...` stand for what they say of the name. Two names must agree.
- Lists ("1, -2", "1 or -2", 1 \pm \sqrt2) and sets are compared without order; (tuples) and [intervals] with it, and
  so are the values of different names ("x = 1, y = 2" and a bare "1, 2").
- Equations are equal when their difference is a constant multiple, inequalities when it is a positive one; solved
  inequalities, intervals and unions of them are compared as sets of numbers.
- Formulas are equal when they have the same values (`verifiers.numeric`).
- Words are equal when they are the same words; sums, integrals and dots when they are written the same.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from verifiers import intervals, numeric, units
from verifiers.intervals import Interval
from verifiers.numeric import Meter, Undefined
from verifiers.tree import FUNCTIONS, ORDER, Decimal, Node, Tree, infinity, is_name, symbols

MIN_DIGITS = 5
MAX_ITEMS = 60
_SCALARS = FUNCTIONS | {"sym", "const", "add", "mul", "pow", "root", "call", "abs", "floor", "ceil", "fact"}


class _Unequal(Exception):
    pass


def equal(reference: Tree, answer: Tree, meter: Meter) -> bool:
    """Whether `answer` says what `reference` says. Raises `TooCostly`, and nothing else."""
    try:
        return _Comparison(meter).equal(reference, answer)
    except (_Unequal, Undefined):
        return False


def _op(tree: Tree) -> str:
    return "number" if isinstance(tree, Fraction) else "scalar" if tree.op in _SCALARS else tree.op


class _Comparison:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def equal(self, first: Tree, second: Tree) -> bool:
        if first == second:
            return not (isinstance(first, Node) and first.op == "rel" and self.says_nothing(first))
        if isinstance(first, Fraction) and isinstance(second, Fraction):
            return self.numbers(first, second)
        name_1, value_1 = self.named(first)
        name_2, value_2 = self.named(second)
        if _op(value_1) == "rel" or _op(value_2) == "rel" or (name_1 and name_2 and name_1 != name_2):
            return self.relations(first, second, name_1, name_2)
        return self.values(value_1, value_2)

    # -- names and relations

    def named(self, tree: Tree) -> tuple[Tree | None, Tree]:
        """`x = 3` is ("x", 3); what says nothing of one name is itself. Raises `_Unequal` on a false chain."""
        if _op(tree) != "rel":
            return None, tree
        signs, parts = tree.args  # type: ignore[union-attr]
        if signs == ("in",):
            return parts[0], parts[1]
        if set(signs) - {"=", "~"}:
            return None, tree
        if "=" in signs and "~" in signs:  # x = 1/3 ~ 0.33
            if signs[0] == "~":
                return None, tree
            parts = parts[: signs.index("~") + 1]
        if not symbols(tree) or (signs[0] == "~" and not any(map(symbols, parts))):
            if "~" not in signs:
                self.same(parts)
            elif any(abs(self.near(part) / (self.near(parts[0]) or 1) - 1) > 0.01 for part in parts[1:]):
                raise _Unequal
            return None, parts[0]
        for lhs, rest in ((parts[0], parts[1:]), (parts[-1], parts[:-1])):
            if is_name(lhs) and not any(symbols(lhs) & symbols(part) for part in rest):
                self.same(rest)
                return _sorted_by_name(lhs, rest[-1])
        if isinstance(parts[0], Node) and parts[0].op == "call" and len(parts) == 2:
            return parts[0], parts[1]
        return None, tree

    def near(self, tree: Tree) -> float:
        return numeric.approximate(tree, self.meter)

    def same(self, parts: tuple[Tree, ...]) -> None:
        if not all(self.values(parts[-1], part) for part in parts[:-1]):
            raise _Unequal

    def says_nothing(self, tree: Node) -> bool:
        signs, parts = tree.args
        return (
            set(signs) == {"="} and len(parts) == 2 and _op(parts[0]) in ("scalar", "number") and parts[0] == parts[1]
        )

    def relations(self, first: Tree, second: Tree, name_1: Tree | None, name_2: Tree | None) -> bool:
        if name_1 and name_2 and name_1.op != name_2.op:  # type: ignore[union-attr]
            return self.values(self.named(first)[1], self.named(second)[1])  # f(x) = ... and y = ...
        kinds = [set(tree.args[0]) if isinstance(tree, Node) and tree.op == "rel" else None for tree in (first, second)]
        if kinds[0] == kinds[1] == {"="}:
            conditions = [self.conditions(tree) for tree in (first, second)]
            return self.match(conditions[0], conditions[1], self.condition)
        variables = [intervals.variable(tree) for tree in (first, second)]
        if (found := self.sets(first, second)) is not None:
            return (None in variables or variables[0] == variables[1]) and found
        if None in kinds or not all(kind <= ORDER for kind in kinds if kind):
            return False
        conditions = [self.conditions(tree) for tree in (first, second)]
        return self.match(conditions[0], conditions[1], self.condition)

    def conditions(self, tree: Tree) -> list[Any]:
        """A chain as pairs (sign, difference): a < b <= c is (<, b - a), (<=, c - b)."""
        signs, parts = tree.args  # type: ignore[union-attr]
        result = []
        for sign, left, right in zip(signs, parts, parts[1:], strict=False):
            if not {_op(left), _op(right)} <= {"scalar", "number"}:
                raise _Unequal
            small, large = (left, right) if sign in ("<", "<=", "=", "!=") else (right, left)
            kind = {">": "<", ">=": "<="}.get(sign, sign)
            result.append((kind, Node("add", (large, Node("mul", (Fraction(-1), small))))))
        return result

    def condition(self, first: Any, second: Any) -> bool:
        if first[0] != second[0]:
            return False
        if first == second:
            return bool(symbols(first[1]))
        sign = numeric.proportional(first[1], second[1], self.meter)
        return sign > 0 or (sign < 0 and first[0] in ("=", "!="))

    # -- values

    def values(self, first: Tree, second: Tree) -> bool:
        kind_1, kind_2 = _op(first), _op(second)
        if "pm" in (kind_1, kind_2) or "list" in (kind_1, kind_2) or "set" in (kind_1, kind_2):
            return self.collections(first, second)
        if "unit" in (kind_1, kind_2):
            return self.with_units(first, second)
        if "percent" in (kind_1, kind_2):
            return self.percents(first, second)
        if kind_1 == "number" and kind_2 == "number":
            return self.numbers(first, second)  # type: ignore[arg-type]
        if {kind_1, kind_2} <= {"number", "scalar"}:
            return self.formulas(first, second)
        if kind_1 == kind_2 == "matrix":
            rows_1, rows_2 = first.args, second.args  # type: ignore[union-attr]
            return (len(rows_1), len(rows_1[0])) == (len(rows_2), len(rows_2[0])) and all(
                self.values(x, y) for r, s in zip(rows_1, rows_2, strict=True) for x, y in zip(r, s, strict=True)
            )
        if {kind_1, kind_2} == {"matrix", "seq"}:
            matrix, tuple_ = (first, second) if kind_1 == "matrix" else (second, first)
            column = [row[0] for row in matrix.args if len(row) == 1]  # type: ignore[union-attr]
            return tuple_.args[0] == "(" and self.in_order(column, tuple_.args[2])  # type: ignore[union-attr]
        if "ratio" in (kind_1, kind_2):
            return self.ratios(first, second)
        if kind_1 == kind_2 == "based":
            return first == second
        if kind_1 == kind_2 == "seq" and self.sequences(first, second):
            return True
        if kind_1 == kind_2 and kind_1 in ("text", "opaque", "rel"):
            return bool(first == second) if kind_1 != "rel" else self.equal(first, second)
        return bool(self.sets(first, second))

    def numbers(self, first: Fraction, second: Fraction) -> bool:
        if first == second:
            return True
        if isinstance(first, Decimal) == isinstance(second, Decimal):
            return False
        if isinstance(first, Decimal):
            return self.stands_for(first, second)
        return isinstance(second, Decimal) and self.stands_for(second, first)

    def stands_for(self, decimal: Decimal, exact: Fraction) -> bool:
        if decimal.digits < MIN_DIGITS or (exact < 0) != (decimal < 0):
            return False
        scaled = abs(exact) * 10**decimal.places
        wanted = abs(decimal) * 10**decimal.places
        return bool(int(scaled) == wanted or int(scaled + Fraction(1, 2)) == wanted)

    def formulas(self, first: Tree, second: Tree) -> bool:
        if infinity(first) or infinity(second):
            return infinity(first) == infinity(second)
        if numeric.identical(first, second, self.meter):
            return True
        decimal, other = (first, second) if isinstance(first, Decimal) else (second, first)
        if not isinstance(decimal, Decimal) or decimal.digits < MIN_DIGITS or symbols(other):
            return False
        value, context = numeric.constant(other, self.meter)
        if (value < 0) != (decimal < 0) or abs(context.mag(value)) > 200:
            return False
        scaled, wanted = abs(value) * 10**decimal.places, abs(decimal) * 10**decimal.places
        return bool(int(context.floor(scaled)) == wanted or int(context.floor(scaled + 0.5)) == wanted)

    def percents(self, first: Tree, second: Tree) -> bool:
        if _op(first) == _op(second):
            return self.values(first.args[0], second.args[0])  # type: ignore[union-attr]
        percent, plain = (first, second) if _op(first) == "percent" else (second, first)
        number = percent.args[0]  # type: ignore[union-attr]
        if _op(plain) not in ("number", "scalar"):
            return False
        if isinstance(number, Fraction) and isinstance(plain, Fraction):
            return plain * 100 == number or (abs(plain) > 1 and self.numbers(number, plain))
        if self.values(Node("mul", (number, Fraction(1, 100))), plain):
            return True
        return not isinstance(plain, Fraction) or (abs(plain) > 1 and self.values(number, plain))

    def with_units(self, first: Tree, second: Tree) -> bool:
        if _op(first) != _op(second):
            bare, other = (first.args[0], second) if _op(first) == "unit" else (second.args[0], first)  # type: ignore[union-attr]
            return _op(other) != "percent" and self.values(bare, other)
        (value_1, unit_1), (value_2, unit_2) = first.args, second.args  # type: ignore[union-attr]
        if unit_1 == unit_2 or () in (unit_1[1], unit_2[1]):
            return self.values(value_1, value_2)
        if unit_1[1] != unit_2[1]:
            return False
        return self.values(_times(value_1, unit_1), _times(value_2, unit_2))

    def ratios(self, first: Tree, second: Tree) -> bool:
        if _op(first) == _op(second):
            (written_1, *parts_1), (written_2, *parts_2) = first.args, second.args  # type: ignore[union-attr]
            if _is_clock(written_1) or _is_clock(written_2):
                return bool(written_1 == written_2)
            if len(parts_1) != len(parts_2) or not all(_op(part) in ("number", "scalar") for part in parts_1 + parts_2):
                return False
            return all(
                self.formulas(Node("mul", (parts_1[0], y)), Node("mul", (x, parts_2[0])))
                for x, y in zip(parts_1[1:], parts_2[1:], strict=True)
            )
        ratio, other = (first, second) if _op(first) == "ratio" else (second, first)
        written, *parts = ratio.args  # type: ignore[union-attr]
        if len(parts) != 2 or _is_clock(written) or _op(other) not in ("number", "scalar"):
            return False
        if not all(_op(part) in ("number", "scalar") for part in parts):
            return False
        return self.formulas(Node("mul", (parts[0], Node("pow", (parts[1], Fraction(-1))))), other)

    # -- many values

    def collections(self, first: Tree, second: Tree) -> bool:
        kinds = [_op(first), _op(second)]
        items = [self.items(first), self.items(second)]
        assigned = [self.assigned(side) for side in items]
        if "seq" in kinds:
            if "list" not in kinds:
                return False
            place = kinds.index("seq")
            opening, _, members = (first, second)[place].args  # type: ignore[union-attr]
            listed = [value for _, value in assigned[1 - place]] or items[1 - place]
            # An interval is no pair of values.
            return (len(listed) > 2 or opening == "(") and self.in_order(members, listed)
        if kinds[0] != kinds[1] and any(self.has_order(item) for side in items for item in side):
            found = self.sets(first, second)
            if found is not None:
                return found
        if kinds.count("set") < 2 and "union" in kinds:
            return False
        if "set" not in kinds and bool(assigned[0]) != bool(assigned[1]):
            named = assigned[0] or assigned[1]
            # The values of x and y have an order, and those of x_1 and x_2 have none.
            if len({name.args[0][0] for name, _ in named if name.op in ("sym", "call")}) > 1:
                values = [[value for _, value in side] or listed for side, listed in zip(assigned, items, strict=True)]
                return "pm" not in kinds and self.in_order(values[0], values[1])
        if "set" in kinds:
            items = [self.distinct(side) for side in items]
        if len(items[0]) == len(items[1]) == 1 and items[0][0] == first and items[1][0] == second:
            return False
        return self.match(items[0], items[1], self.member)

    def member(self, first: Tree, second: Tree) -> bool:
        """As `equal`, but that within a collection 1 is not {1}."""
        return (_op(first) == "set") == (_op(second) == "set") and self.equal(first, second)

    def assigned(self, items: list[Tree]) -> list[tuple[Node, Tree]]:
        """`y = 2, x = 1` as names and values in the order of the names; empty where any item has no name."""
        pairs = [self.named(item) for item in items]
        if any(name is None for name, _ in pairs):
            return []
        return sorted(pairs, key=lambda pair: str(pair[0]))  # type: ignore[arg-type]

    def items(self, tree: Tree) -> list[Tree]:
        """The single values of a list, a set or a plus-or-minus; any other tree is one value."""
        kind = _op(tree)
        if kind not in ("list", "set"):
            return self.signs_of(tree)
        items = [item for part in tree.args for item in self.signs_of(part)]  # type: ignore[union-attr]
        if len(items) > MAX_ITEMS:
            raise _Unequal
        return items

    def signs_of(self, tree: Tree) -> list[Tree]:
        """Both values of a plus-or-minus, also of `x = \\pm 2`; any other tree is one value."""
        value = self.named(tree)[1] if _op(tree) == "rel" else tree
        if _op(value) != "pm":
            return [tree]
        centre, distance = value.args  # type: ignore[union-attr]
        minus = Node("mul", (Fraction(-1), distance)) if not isinstance(distance, Fraction) else -distance
        return [item for part in self.signs_of(centre) for item in (_plus(part, distance), _plus(part, minus))]

    def has_order(self, tree: Tree) -> bool:
        return _op(tree) in ("seq", "union") or (_op(tree) == "rel" and bool(set(tree.args[0]) & ORDER))  # type: ignore[union-attr]

    def distinct(self, items: list[Tree]) -> list[Tree]:
        kept: list[Tree] = []
        for item in items:
            if item not in kept:
                kept.append(item)
        return kept

    def match(self, first: list[Any], second: list[Any], same: Any) -> bool:
        """Whether the two can be paired off. Greedy, which is right for an equality that is transitive."""
        if len(first) != len(second):
            return False
        rest = list(second)
        for item in first:
            found = next((i for i, other in enumerate(rest) if item == other), None)
            if found is None:
                found = next((i for i, other in enumerate(rest) if self.attempt(same, item, other)), None)
            if found is None:
                return False
            rest.pop(found)
        return True

    def attempt(self, same: Any, first: Any, second: Any) -> bool:
        try:
            return bool(same(first, second))
        except (_Unequal, Undefined):
            return False

    def in_order(self, first: Any, second: Any) -> bool:
        return len(first) == len(second) and all(self.equal(x, y) for x, y in zip(first, second, strict=True))

    def sequences(self, first: Tree, second: Tree) -> bool:
        (*brackets_1, items_1), (*brackets_2, items_2) = first.args, second.args  # type: ignore[union-attr]
        if len(items_1) < 3 and brackets_1 != brackets_2:
            return False
        return self.in_order(items_1, items_2)

    # -- sets of real numbers

    def sets(self, first: Tree, second: Tree) -> bool | None:
        """Whether two sets of real numbers are the same; `None` where one of the two is none."""
        read_1, read_2 = intervals.read(first, self.meter), intervals.read(second, self.meter)
        return None if read_1 is None or read_2 is None else self.same_set(read_1, read_2)

    def same_set(self, first: list[Interval], second: list[Interval]) -> bool:
        return len(first) == len(second) and all(
            x[1] == y[1] and self.values(x[0], y[0])
            for piece_1, piece_2 in zip(first, second, strict=True)
            for x, y in zip(piece_1, piece_2, strict=True)
        )


def _times(tree: Tree, unit: units.Unit) -> Tree:
    return tree * unit[0] if isinstance(tree, Fraction) else Node("mul", (tree, unit[0]))


def _plus(first: Tree, second: Tree) -> Tree:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first + second
    return Node("add", (first, second))


def _sorted_by_name(name: Tree, value: Tree) -> tuple[Tree, Tree]:
    """`(y, x) = (2, 1)` says what `(x, y) = (1, 2)` says."""
    if not (isinstance(name, Node) and isinstance(value, Node) and name.op == value.op == "seq"):
        return name, value
    names, values = name.args[2], value.args[2]
    if len(names) != len(values):
        return name, value
    order = sorted(range(len(names)), key=lambda i: str(names[i]))
    return tuple(Node("seq", (*tree.args[:2], tuple(tree.args[2][i] for i in order))) for tree in (name, value))  # type: ignore[return-value]


def _is_clock(written: str) -> bool:
    hours, _, minutes = written.partition(":")
    return hours.isdigit() and len(minutes) == 2 and minutes.isdigit()
