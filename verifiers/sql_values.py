"""The values that fuzzed instances are filled with, chosen so that look-alike queries come apart.

A query's constants decide where it can be wrong: around each one stand its neighbours (one less, one more, half), its
case variants, the texts that its pattern matches and just does not match, the days before and after. Columns that are
compared with each other, or share a name, share their values, so that joins meet.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import islice

from verifiers.sql_run import Value
from verifiers.sql_text import Token, tokens

MAX_CONSTANTS = 60
MAX_CONSTANT_LENGTH = 100
MAX_WINDOW = 200  # of a LIMIT for which there is an instance with more rows
REACH = 14  # tokens before a constant among which the columns are looked for that it is compared with
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?$")
_YEAR = re.compile(r"(?:19|20)\d\d$")
_DATE_FUNCTIONS = {"STRFTIME", "DATE", "DATETIME", "JULIANDAY", "UNIXEPOCH"}
_COMPARE = {"=", "==", "<", ">", "<=", ">=", "<>", "!="}


class Hints:
    """What queries tell about the data: `near[column]` are the constants that stand by a column's name,
    `loose` those that stand by none, `dates` the columns handed to a date function."""

    def __init__(self, queries: list[str], columns: set[str], now: str) -> None:
        self.near: dict[str, list[Value]] = defaultdict(list)
        self.loose: list[Value] = []
        self.counts: list[int] = []  # small whole numbers: LIMIT, HAVING count(*) > 3
        self.dates: set[str] = set()
        self._same: dict[str, str] = {}
        seen: set[tuple[str, str]] = set()
        for query in queries:
            words = tokens(query)
            for i, token in enumerate(words):
                if token.text in _COMPARE:
                    self._link(words, i, columns)
                if token.upper in _DATE_FUNCTIONS and words[i + 1 : i + 2] and words[i + 1].text == "(":
                    self.dates |= {t.name for t in words[i + 1 : i + 8] if t.name in columns}
                if token.text.lower() == "'now'" or token.upper.startswith("CURRENT_"):
                    self._add(words, i, now[:10], columns)
                value = literal(token)
                if value is None or len(seen) >= MAX_CONSTANTS:
                    continue
                if isinstance(value, int | float) and i and words[i - 1].text == "-":
                    value = -value
                around = " ".join(t.name for t in words[max(i - REACH, 0) : i + 4] if t.name in columns)
                if (around, repr(value)) not in seen:
                    seen.add((around, repr(value)))
                    self._add(words, i, value, columns)

    def _add(self, words: list[Token], i: int, value: Value, columns: set[str]) -> None:
        window = any(word.upper in ("LIMIT", "OFFSET") for word in words[max(i - 3, 0) : i])
        if isinstance(value, int) and 1 < value <= (MAX_WINDOW if window else 40):
            self.counts.append(value)
        before = [t.name for t in reversed(words[max(i - REACH, 0) : i]) if t.name in columns]
        names = before[:2] or [t.name for t in words[i : i + 5] if t.name in columns][:1]
        for name in dict.fromkeys(names):
            self.near[self.root(name)].append(value)
        if not names:
            self.loose.append(value)

    def _link(self, words: list[Token], i: int, columns: set[str]) -> None:
        """`a.x = b.y`: the two columns share their values."""
        if not 0 < i < len(words) - 1 or words[i - 1].name not in columns:
            return
        right = next((t.name for t in reversed(words[i + 1 : i + 4 : 2]) if t.name in columns), "")
        if right:
            self._same[self.root(words[i - 1].name)] = self.root(right)

    def root(self, name: str) -> str:
        """The one name of all columns that share values with `name`."""
        for _ in range(20):
            if self._same.get(name, name) == name:
                break
            name = self._same[name]
        return name


def literal(token: Token) -> Value:
    """The value of a constant, `None` for every other token."""
    if token.kind == "string" and len(token.text) <= MAX_CONSTANT_LENGTH:
        return token.text[1:-1].replace("''", "'")
    if token.kind == "number" and len(token.text) <= 18:
        if token.text[:2].lower() == "0x":
            return int(token.text, 16)
        return int(token.text) if token.text.isdigit() else float(token.text)
    return None


def constants(query: str) -> set[str]:
    """The constants of a query, to tell whether another one brings new ones."""
    values = (literal(token) for token in tokens(query))
    return {repr(value) for value in islice((v for v in values if v is not None), MAX_CONSTANTS)}


def kind_of(declared: str, samples: list[Value]) -> str:
    """What values fit a column: "integer", "real", "text", "date" or "boolean"; "any" where nothing tells."""
    upper = declared.upper()
    texts = [value for value in samples if isinstance(value, str)]
    if texts and all(_DATE.match(text) for text in texts):
        return "date"
    if "BOOL" in upper:
        return "boolean"
    if "DATE" in upper or "TIME" in upper:
        return "integer" if samples and not texts else "date"
    if "INT" in upper:
        return "integer"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT", "STRING")):
        return "text"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC", "MONEY")):
        return "real"
    numbers = [value for value in samples if isinstance(value, int | float)]
    return "any" if not samples else "text" if texts else "integer" if all(map(_whole, numbers)) else "real"


def around(value: Value, kind: str) -> list[Value]:
    """Values of `kind` on which a query with the constant `value` is most easily wrong, the constant first."""
    if kind == "any":
        return around(value, "text") if isinstance(value, str) else around(value, "real")
    if kind == "boolean":
        return [0, 1]
    if kind == "date":
        return list(_dates_around(value))
    if kind == "text":
        return _texts_around(value)
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return []
    if not isinstance(value, int | float) or not math.isfinite(value):
        return []
    close: list[Value] = [value, value - 1, value + 1]
    if kind == "real":
        close += [value - 0.5, value + 0.5, value / 2, value * 2]
    elif isinstance(value, float):
        close = [math.floor(value), math.ceil(value)]
    if isinstance(value, int) and 4 <= value < 10**12:
        close += [value // 2, value // 2 + 1, value - value // 2, math.isqrt(value), value // 3, 2 * value, 1, 2]
    return close


def _texts_around(value: Value) -> list[Value]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 30:
        return [str(value), *("m" * n for n in (value - 1, value, value + 1) if n >= 0)]
    text = value if isinstance(value, str) else repr(value)
    if "%" in text or "_" in text:
        filled = [text.replace("%", fill).replace("_", "k") for fill in ("", "x", "yy")]
        values: list[Value] = [
            *filled,
            "x" + filled[0],
            filled[0] + "x",
            filled[1].upper(),
            filled[0].lower(),
            filled[0][:-1],
            text,
        ]
        return values
    near: list[Value] = [text, text.lower(), text.upper(), text.capitalize(), text + "s", "x" + text, text[:-1]]
    return [text, *near, text + " "]


def _dates_around(value: Value) -> Sequence[Value]:
    text = str(value)
    if _YEAR.match(text):
        year = int(text)
        return [f"{year}-01-01", f"{year}-12-31", f"{year - 1}-12-31", f"{year + 1}-01-01", f"{year}-06-15"]
    if re.match(r"(0[1-9]|1[0-2])$", text):
        return [f"2020-{text}-01", f"2021-{text}-28", f"2020-{int(text) % 12 + 1:02}-01"]
    if re.match(r"\d{4}-\d\d$", text):
        text += "-01"
    match = re.match(r"(\d{4}-\d\d-\d\d)(.*)$", text)
    if not match:
        return []
    try:
        day = date.fromisoformat(match[1])
        days = [day + timedelta(1), day - timedelta(1), day - timedelta(366), day + timedelta(31)]
    except (ValueError, OverflowError):
        return []
    return [text, *(str(d) + match[2] for d in days)] + ([f"{day} 12:30:00"] if match[2] else [])


GENERIC: dict[str, list[Value]] = {
    "integer": [0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 10, -1, 100],  # 1 leaves the other factor of a product as it is
    "real": [0, 1, 2, 0.5, 2.5, 10, 10.25, 100, -1.5, 50],
    "text": ["a", "b", "A", "ab", "c", "", "Zed", "b a", " a"],
    "date": [
        "2020-01-01",
        "2020-06-15",
        "2019-12-31",
        "2021-03-01",
        "2022-11-30",
        "2020-02-29",
        "1999-12-31",
        "2031-07-04",
    ],
    "boolean": [0, 1],
    "any": [0, 1, 2, 2.5, "a", "b", "A", ""],
}


class Pool:
    """Where the values of columns come from that share `root` and kind."""

    def __init__(self, root: str, kind: str, samples: list[Value], hints: Hints) -> None:
        self.key = f"{root}/{kind}"
        self.kind = kind
        near = hints.near.get(root, [])
        self.focus = [value for constant in near for value in around(constant, kind)]
        self.exact = [value for constant in near for value in around(constant, kind)[:1]]
        self.close = [value for constant in near for value in around(constant, kind)[:3]]
        self.far = [value * factor for value in self.exact if isinstance(value, int | float) for factor in (2, 3, 10)]
        loose = [value for constant in hints.loose for value in around(constant, kind)[:3]]
        self.generic = [*GENERIC[kind], *dict.fromkeys(samples), *loose]
        if kind == "text":
            self.generic += [text.swapcase() for text in samples[:3] if isinstance(text, str)]

    def some(self, width: int, seed: str) -> list[Value]:
        """`width` of the values that are no neighbour of a constant, the same ones for the same seed."""
        return random.Random(f"{seed}/{self.key}").sample(self.generic, min(width, len(self.generic)))

    def draw(self, rng: random.Random, focus: float, others: list[Value], skew: float = 1.0) -> Value:
        """A value: with probability `focus` by one of the queries' constants, else one of `others`, the first of
        them the more often the larger `skew` is."""
        if self.focus and rng.random() < focus:
            chance = rng.random()
            if self.far and chance > 0.85:  # a group's sum, mean and least then lie on different sides of the constant
                return rng.choice(self.far)
            return rng.choice(self.exact if chance < 0.3 else self.close if chance < 0.6 else self.focus)
        return others[int(len(others) * rng.random() ** skew)]

    def fresh(self, rng: random.Random) -> Value:
        """A value that is hardly taken yet, for unique columns."""
        number = rng.randrange(1, 10_000)
        if self.kind == "text":
            return f"{self.generic[number % len(self.generic)]!s}{number}"
        if self.kind == "date":
            return str(date(2015, 1, 1) + timedelta(number % 4000))
        return number


def _whole(value: Value) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
