r"""Is an answer the reference? All rules of equality, for every kind of answer.

- Numbers are equal exactly. One tolerance: a decimal with at least `MIN_DIGITS` significant digits stands for a number
  that is not written as a decimal when it is that number rounded or cut at its last place: 0.33333 for 1/3, 3.1416 for
  pi, but not 0.33, and never one decimal for another.
- Percent: 28% is 0.28; and it is 28 where that is more than 1 (a question may have asked "how many percent?").
- Units: both written, they must agree (1 m = 100 cm); where one side has none it is not asked for.
- `x = 3`, `x \in S` and `f(x) = ...` stand for what they say of the name. Two names must agree.
- Lists ("1, -2", "1 or -2", 1 \pm \sqrt2) and sets are compared without order; (tuples) and [intervals] with it.
- Equations are equal when their difference is a constant multiple, inequalities when it is a positive one; solved
  inequalities, intervals and unions of them are compared as sets of numbers.
- Formulas are equal when they have the same values (`verifiers.numeric`).
- Words are equal when they are the same words; sums, integrals and dots when they are written the same.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from verifiers import numeric, units
from verifiers.latex import FUNCTIONS, REALS, Decimal, Node, Tree
from verifiers.numeric import Meter, Undefined

MIN_DIGITS = 5
MAX_ITEMS = 60
_SCALARS = FUNCTIONS | {"sym", "const", "add", "mul", "pow", "root", "call", "abs", "floor", "ceil", "fact"}
_ORDER = {"<", ">", "<=", ">=", "!="}

End = tuple[Tree, bool]  # an end of an interval, and whether it belongs to it
Interval = tuple[End, End]


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
        if not numeric.symbols(tree) or (signs[0] == "~" and not any(map(numeric.symbols, parts))):
            if "~" not in signs:
                self.same(parts)
            elif any(abs(self.place(part) / (self.place(parts[0]) or 1) - 1) > 0.01 for part in parts[1:]):
                raise _Unequal
            return None, parts[0]
        for lhs, rest in ((parts[0], parts[1:]), (parts[-1], parts[:-1])):
            if self.is_name(lhs) and not any(numeric.symbols(lhs) & numeric.symbols(part) for part in rest):
                self.same(rest)
                return lhs, rest[0] if len(rest) == 1 else rest[-1]
        if isinstance(parts[0], Node) and parts[0].op == "call" and len(parts) == 2:
            return parts[0], parts[1]
        return None, tree

    def is_name(self, tree: Tree) -> bool:
        if isinstance(tree, Node) and tree.op == "seq":
            return all(map(self.is_name, tree.args[2]))
        return isinstance(tree, Node) and tree.op == "sym"

    def same(self, parts: tuple[Tree, ...]) -> None:
        if not all(self.values(parts[-1], part) for part in parts[:-1]):
            raise _Unequal

    def says_nothing(self, tree: Node) -> bool:
        signs, parts = tree.args
        return (
            set(signs) == {"="} and len(parts) == 2 and _op(parts[0]) in ("scalar", "number") and parts[0] == parts[1]
        )

    def relations(self, first: Tree, second: Tree, name_1: Tree | None, name_2: Tree | None) -> bool:
        if name_1 and name_2 and (_op(name_1) != "scalar" or name_1.op != name_2.op):  # type: ignore[union-attr]
            return self.values(self.named(first)[1], self.named(second)[1])  # f(x) = ... and y = ...
        kinds = [set(tree.args[0]) if isinstance(tree, Node) and tree.op == "rel" else None for tree in (first, second)]
        if kinds[0] == kinds[1] == {"="}:
            conditions = [self.conditions(tree) for tree in (first, second)]
            return self.match(conditions[0], conditions[1], self.condition)
        intervals = [self.intervals(tree) for tree in (first, second)]
        if intervals[0] is not None and intervals[1] is not None:
            variables = [self.variable(tree) for tree in (first, second)]
            return (None in variables or variables[0] == variables[1]) and self.same_set(intervals[0], intervals[1])
        if None in kinds or not all(kind <= _ORDER for kind in kinds if kind):
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
            return bool(numeric.symbols(first[1]))
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
        intervals = self.intervals(first), self.intervals(second)
        return intervals[0] is not None and intervals[1] is not None and self.same_set(intervals[0], intervals[1])

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
        if numeric.infinity(first) or numeric.infinity(second):
            return numeric.infinity(first) == numeric.infinity(second)
        if numeric.identical(first, second, self.meter):
            return True
        decimal, other = (first, second) if isinstance(first, Decimal) else (second, first)
        if not isinstance(decimal, Decimal) or decimal.digits < MIN_DIGITS or numeric.symbols(other):
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
        items = [self.items(first), self.items(second)]
        kinds = [_op(first), _op(second)]
        if "seq" in kinds:
            tuple_ = first if kinds[0] == "seq" else second
            other = kinds[1] if kinds[0] == "seq" else kinds[0]
            if other != "list":
                return False
            if kinds[0] == "seq" or kinds[1] == "seq":
                listed = items[1] if kinds[0] == "seq" else items[0]
                assigned = [self.named(item) for item in listed]
                if all(name is not None for name, _ in assigned):
                    listed = [value for _, value in sorted(assigned, key=lambda pair: str(pair[0]))]
                if len(listed) < 3 and tuple_.args[0] != "(":  # type: ignore[union-attr]
                    return False  # an interval is no pair of values
                return self.in_order(tuple_.args[2], listed)  # type: ignore[union-attr]
        if any(self.has_order(item) for side in items for item in side):
            intervals = self.intervals(first), self.intervals(second)
            if intervals[0] is not None and intervals[1] is not None:
                return self.same_set(intervals[0], intervals[1])
        if kinds.count("set") < 2 and "union" in kinds:
            return False
        if "set" in kinds:
            items = [self.distinct(side) for side in items]
        if len(items[0]) == len(items[1]) == 1 and items[0][0] == first and items[1][0] == second:
            return False
        return self.match(items[0], items[1], self.equal)

    def items(self, tree: Tree) -> list[Tree]:
        """The single values of a list, a set or a plus-or-minus; any other tree is one value."""
        kind = _op(tree)
        if kind == "pm":
            centre, distance = tree.args  # type: ignore[union-attr]
            minus = Node("mul", (Fraction(-1), distance)) if not isinstance(distance, Fraction) else -distance
            if _op(centre) == "pm":
                return [item for part in self.items(centre) for item in (_plus(part, distance), _plus(part, minus))]
            return [_plus(centre, distance), _plus(centre, minus)]
        if kind == "rel":
            name, value = self.named(tree)
            if name is not None and _op(value) in ("pm", "list", "set"):
                return self.items(value)
        if kind not in ("list", "set"):
            return [tree]
        items = [item for part in tree.args for item in self.items(part)]  # type: ignore[union-attr]
        if len(items) > MAX_ITEMS:
            raise _Unequal
        return items

    def has_order(self, tree: Tree) -> bool:
        return _op(tree) in ("seq", "union") or (_op(tree) == "rel" and bool(set(tree.args[0]) & _ORDER))  # type: ignore[union-attr]

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

    def variable(self, tree: Tree) -> frozenset[str] | None:
        return (numeric.symbols(tree) or None) if _op(tree) == "rel" else None

    def intervals(self, tree: Tree) -> list[Interval] | None:
        """A set of real numbers as intervals, sorted and disjoint; `None` where the tree is no such set."""
        try:
            return self.merged(self.pieces(tree))
        except (Undefined, _Unequal):
            return None

    def pieces(self, tree: Tree) -> list[Interval]:
        kind = _op(tree)
        if kind == "seq" and len(tree.args[2]) == 2:  # type: ignore[union-attr]
            opening, closing, (low, high) = tree.args  # type: ignore[union-attr]
            return [((low, opening == "["), (high, closing == "]"))]
        if kind == "set":
            return [((item, True), (item, True)) for item in self.items(tree)]
        if kind in ("union", "list"):
            return [piece for part in tree.args for piece in self.pieces(part)]  # type: ignore[union-attr]
        if kind == "minus":
            whole, removed = (self.pieces(part) for part in tree.args)  # type: ignore[union-attr]
            return self.without(whole, [piece[0][0] for piece in removed if piece[0] == piece[1]], len(removed))
        if kind == "rel" and tree.args[0] == ("in",):  # type: ignore[union-attr]
            return self.pieces(tree.args[1][1])  # type: ignore[union-attr]
        if kind == "rel":
            return self.solved(tree)
        raise _Unequal

    def solved(self, tree: Tree) -> list[Interval]:
        """`x < 3`, `1 <= x < 3`, `x != 3`: a lone name between numbers."""
        signs, parts = tree.args  # type: ignore[union-attr]
        if not set(signs) <= _ORDER or len(parts) > 3:
            raise _Unequal
        if len(parts) == 2 and not self.is_name(parts[0]):
            signs, parts = tuple(sign.translate(_FLIP) for sign in signs), parts[::-1]
        name = parts[0] if len(parts) == 2 else parts[1]
        if not self.is_name(name) or any(numeric.symbols(part) for part in parts if part is not name):
            raise _Unequal
        infinite = REALS.args[2]
        if len(parts) == 2:
            sign, end = signs[0], parts[1]
            if sign == "!=":
                return self.without([((infinite[0], False), (infinite[1], False))], [end], 1)
            if sign[0] == "<":
                return [((infinite[0], False), (end, sign == "<="))]
            return [((end, sign == ">="), (infinite[1], False))]
        if "!=" in signs or signs[0][0] != signs[1][0]:
            raise _Unequal
        ends = [(parts[0], signs[0][1:] == "="), (parts[2], signs[1][1:] == "=")]
        return [(ends[0], ends[1])] if signs[0][0] == "<" else [(ends[1], ends[0])]

    def without(self, pieces: list[Interval], points: list[Tree], count: int) -> list[Interval]:
        if len(points) != count:
            raise _Unequal
        for point in points:
            at = self.place(point)
            split: list[Interval] = []
            for low, high in pieces:
                if self.place(low[0]) < at < self.place(high[0]):
                    split += [(low, (point, False)), ((point, False), high)]
                else:
                    low = (low[0], low[1] and self.place(low[0]) != at)
                    split.append((low, (high[0], high[1] and self.place(high[0]) != at)))
            pieces = split
        return pieces

    def place(self, tree: Tree) -> float:
        return numeric.approximate(tree, self.meter)

    def merged(self, pieces: list[Interval]) -> list[Interval]:
        if len(pieces) > MAX_ITEMS:
            raise _Unequal
        for low, high in pieces:
            if self.place(low[0]) > self.place(high[0]):
                raise _Unequal
        result: list[Interval] = []
        for low, high in sorted(pieces, key=lambda piece: (self.place(piece[0][0]), not piece[0][1])):
            if result:
                last_low, last_high = result[-1]
                gap = self.place(low[0]) - self.place(last_high[0])
                if gap < 0 or (gap == 0 and (low[1] or last_high[1])):
                    if (self.place(high[0]), high[1]) > (self.place(last_high[0]), last_high[1]):
                        result[-1] = (last_low, high)
                    continue
            result.append((low, high))
        return result

    def same_set(self, first: list[Interval], second: list[Interval]) -> bool:
        return len(first) == len(second) and all(
            x[1] == y[1] and self.values(x[0], y[0])
            for piece_1, piece_2 in zip(first, second, strict=True)
            for x, y in zip(piece_1, piece_2, strict=True)
        )


_FLIP = str.maketrans("<>", "><")


def _times(tree: Tree, unit: units.Unit) -> Tree:
    return tree * unit[0] if isinstance(tree, Fraction) else Node("mul", (tree, unit[0]))


def _plus(first: Tree, second: Tree) -> Tree:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first + second
    return Node("add", (first, second))


def _is_clock(written: str) -> bool:
    hours, _, minutes = written.partition(":")
    return hours.isdigit() and len(minutes) == 2 and minutes.isdigit()
