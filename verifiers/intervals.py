r"""Sets of real numbers: `x < 3`, `1 \le x < 3`, `[0, 1) \cup \{5\}`, as intervals that are sorted and disjoint."""

from __future__ import annotations

from itertools import pairwise

from verifiers.numeric import Meter, Undefined, approximate
from verifiers.tree import ORDER, REALS, Node, Tree, is_name, symbols

MAX_PIECES = 60
_FLIP = str.maketrans("<>", "><")

End = tuple[Tree, bool]  # an end of an interval, and whether it belongs to it
Interval = tuple[End, End]


class NoSet(Exception):
    """The tree is no set of real numbers, or one that this file cannot tell."""


def read(tree: Tree, meter: Meter) -> list[Interval] | None:
    """The intervals of a tree; `None` where it is no such set. Commas join what does not overlap, and nothing else:
    `x > 0, x < 3` may mean both or either."""
    try:
        return _RealSet(meter).merged(_RealSet(meter).pieces(tree))
    except (Undefined, NoSet):
        return None


def variable(tree: Tree) -> frozenset[str] | None:
    """The name that a relation speaks of; `None` for an interval."""
    if isinstance(tree, Node) and tree.op in ("rel", "list", "inter", "union"):
        return symbols(tree) or None
    return None


class _RealSet:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def place(self, tree: Tree) -> float:
        return approximate(tree, self.meter)

    def pieces(self, tree: Tree) -> list[Interval]:
        if not isinstance(tree, Node):
            raise NoSet
        args = tree.args
        if tree.op == "seq" and len(args[2]) == 2:
            opening, closing, (low, high) = args
            return [((low, opening == "["), (high, closing == "]"))]
        if tree.op == "set":
            return [((item, True), (item, True)) for item in args]
        if tree.op == "minus":
            whole, removed = self.pieces(args[0]), self.pieces(args[1])
            if any(low != high for low, high in removed):
                raise NoSet
            return self.without(whole, [low[0] for low, _ in removed])
        if tree.op in ("union", "list", "inter"):
            return self.joined(tree)
        if tree.op == "rel":
            return self.pieces(args[1][1]) if args[0] == ("in",) else self.solved(tree)
        raise NoSet

    def joined(self, tree: Node) -> list[Interval]:
        names = {symbols(part) for part in tree.args if isinstance(part, Node) and part.op == "rel"}
        if len(names) > 1:
            raise NoSet
        sides = [self.merged(self.pieces(part)) for part in tree.args]
        if tree.op == "inter":
            result = sides[0]
            for side in sides[1:]:
                result = [both for one in result for other in side if (both := self.overlap(one, other)) is not None]
                if len(result) > MAX_PIECES:
                    raise NoSet
            return result
        every = [piece for side in sides for piece in side]
        if len(every) > MAX_PIECES:
            raise NoSet
        if tree.op == "list":
            placed = sorted(every, key=lambda piece: (self.place(piece[0][0]), not piece[0][1]))
            if any(self.overlap(one, other) is not None for one, other in pairwise(placed)):
                raise NoSet
        return every

    def overlap(self, first: Interval, second: Interval) -> Interval | None:
        """What two intervals have in common; `None` for nothing."""
        low = max(first[0], second[0], key=lambda end: (self.place(end[0]), not end[1]))
        high = min(first[1], second[1], key=lambda end: (self.place(end[0]), end[1]))
        gap = self.place(high[0]) - self.place(low[0])
        return (low, high) if gap > 0 or (gap == 0 and low[1] and high[1]) else None

    def solved(self, tree: Node) -> list[Interval]:
        """`x < 3`, `1 <= x < 3`, `x != 3`: a lone name between numbers."""
        signs, parts = tree.args
        if not set(signs) <= ORDER or len(parts) > 3:
            raise NoSet
        if len(parts) == 2 and not is_name(parts[0]):
            signs, parts = tuple(sign.translate(_FLIP) for sign in signs), parts[::-1]
        name = parts[0] if len(parts) == 2 else parts[1]
        if not is_name(name) or any(symbols(part) for part in parts if part is not name):
            raise NoSet
        infinite = REALS.args[2]
        if len(parts) == 2:
            sign, end = signs[0], parts[1]
            if sign == "!=":
                return self.without([((infinite[0], False), (infinite[1], False))], [end])
            if sign[0] == "<":
                return [((infinite[0], False), (end, sign == "<="))]
            return [((end, sign == ">="), (infinite[1], False))]
        if "!=" in signs or signs[0][0] != signs[1][0]:
            raise NoSet
        ends = [(parts[0], signs[0][1:] == "="), (parts[2], signs[1][1:] == "=")]
        return [(ends[0], ends[1])] if signs[0][0] == "<" else [(ends[1], ends[0])]

    def without(self, pieces: list[Interval], points: list[Tree]) -> list[Interval]:
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

    def merged(self, pieces: list[Interval]) -> list[Interval]:
        if len(pieces) > MAX_PIECES or any(self.place(low[0]) > self.place(high[0]) for low, high in pieces):
            raise NoSet
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
