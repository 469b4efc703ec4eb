"""Reading SQL without running it: tokens, the query in an answer, and the ORDER BY and LIMIT of a reference.

Nothing here decides what is safe; SQLite's authorizer does (`sql_run`). A tokenizer is enough to read the top level of
a query exactly: SQLite reserves ORDER, LIMIT, FROM and SELECT, and every subquery, window and aggregate stands in
brackets.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))"
    r"|(?P<blob>[xX]'[0-9A-Fa-f]*')"
    r"|(?P<string>'(?:[^']|'')*')"
    r"|(?P<quoted>\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\])"
    r"|(?P<number>0[xX][0-9A-Fa-f]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<symbol>\|\||->>|->|<=|>=|<>|!=|==|<<|>>|.)",
    re.DOTALL,
)
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_COMPOUND = {"UNION", "INTERSECT", "EXCEPT"}
RANK = "rlvr rank"  # the column that `Top.ranked` adds


class Token(NamedTuple):
    """`kind` is blob, string, quoted, number, word or symbol; `start` and `end` are places in the text."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def upper(self) -> str:
        """The word in capitals, to compare with keywords; empty for what is no word."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """The identifier this may be, lower-case and without its quotes; empty for what is none."""
        if self.kind == "quoted":
            quote = self.text[-1]
            return self.text[1:-1].replace(quote * 2, quote).lower()
        return self.text.lower() if self.kind == "word" else ""


def tokens(sql: str) -> list[Token]:
    """The tokens of `sql` without spaces and comments. Any text has some; the cost is linear."""
    return [
        Token(match.lastgroup or "", match.group(), match.start(), match.end())
        for match in _TOKEN.finditer(sql)
        if match.lastgroup != "space"
    ]


def extract(content: str) -> str | None:
    """The query in an answer, by this rule: of what follows the last `</think>`, the last fenced block marked `sql`
    (or `sqlite`), else the last fenced block, else the whole text where it begins as a query does.

    A fence that the answer never closes runs to its end. `None` where there is no query or the thought never ended.
    """
    answer = content.rpartition("</think>")[2]
    if "<think>" in answer:
        return None
    blocks = _FENCE.findall(answer)
    marked = [text for label, text in blocks if label.lower() in ("sql", "sqlite", "sqlite3")]
    text: str = marked[-1] if marked else blocks[-1][1] if blocks else answer
    if not blocks and not is_query(text):
        return None
    return text.strip() or None


def is_query(sql: str) -> bool:
    """Whether the first token opens a query. EXPLAIN, PRAGMA and every statement that writes do not."""
    first = next((match for match in _TOKEN.finditer(sql) if match.lastgroup != "space"), None)
    return first is not None and first.group().upper() in ("SELECT", "WITH", "VALUES")


class Top:
    """The top level of a reference: whether it orders or limits, and how to find its ties.

    `ranked(names)` is the query without its LIMIT and with one more column that numbers the groups of rows that its
    ORDER BY leaves equal, sorted by it; `None` where the text does not tell.
    """

    def __init__(self, sql: str) -> None:
        self.sql = sql
        all_tokens = tokens(sql)
        while all_tokens and all_tokens[-1].text == ";":
            self.sql = sql[: all_tokens.pop().start]
        depth = 0
        self._tokens: list[Token] = []
        outer: list[int] = []  # of each token: the depth of brackets around it
        for token in all_tokens:
            depth -= token.text == ")"
            self._tokens.append(token)
            outer.append(depth)
            depth += token.text == "("
        self._depths = outer
        self._select = self._find("SELECT")
        self._from = self._find("FROM", self._select)
        self._order = self._find("ORDER", self._select)
        self._limit = self._find("LIMIT", self._select)
        self.ordered = self._order is not None
        self.limited = self._limit is not None

    def _find(self, keyword: str, after: int | None = 0) -> int | None:
        """The first token of the top level at or after `after` that is `keyword`."""
        if after is None:
            return None
        for i in range(after, len(self._tokens)):
            if self._depths[i] == 0 and self._tokens[i].upper == keyword:
                if keyword == "FROM" and self._tokens[i - 1].upper == "DISTINCT":
                    continue  # a IS DISTINCT FROM b
                return i
        return None

    def _split(self, start: int, end: int) -> list[list[Token]]:
        """The tokens `start` to `end` at the commas of the top level."""
        parts: list[list[Token]] = [[]]
        for i in range(start, end):
            if self._depths[i] == 0 and self._tokens[i].text == ",":
                parts.append([])
            else:
                parts[-1].append(self._tokens[i])
        return [part for part in parts if part]

    @property
    def unlimited(self) -> str:
        """The query without its LIMIT and OFFSET."""
        return self.sql if self._limit is None else self.sql[: self._tokens[self._limit].start]

    @property
    def window(self) -> str | None:
        """A query for (limit, offset); `None` without a LIMIT."""
        if self._limit is None:
            return None
        offset = self._find("OFFSET", self._limit)
        parts = self._split(self._limit + 1, len(self._tokens) if offset is None else offset)
        texts = [self.sql[part[0].start : part[-1].end] for part in parts]
        if offset is not None:
            return f"SELECT ({texts[0]}), ({self.sql[self._tokens[offset].end :]})"
        return f"SELECT ({texts[-1]}), ({texts[0] if len(texts) > 1 else 0})"

    def ranked(self, names: list[str]) -> str | None:
        """See the class. `names` are the names of the result's columns."""
        if self._order is None or self._select is None or self._from is None:
            return None
        end = len(self._tokens) if self._limit is None else self._limit
        terms = self._split(self._order + 2, end)
        body_end = self._tokens[self._order].start
        compound = any(self._depths[i] == 0 and t.upper in _COMPOUND for i, t in enumerate(self._tokens))
        distinct = self._tokens[self._select + 1].upper == "DISTINCT"
        items = self._split(self._select + 1 + distinct, self._from)
        if compound or distinct:
            keys = [self._output_key(term, items, names) for term in terms]
            if None in keys:
                return None
            over = ", ".join(key for key in keys if key)
            body = self.sql[:body_end]
            return f'SELECT *, dense_rank() OVER (ORDER BY {over}) AS "{RANK}" FROM (\n{body}\n) AS q ORDER BY "{RANK}"'
        if len(items) != len(names) and any(len(term) and term[0].kind == "number" for term in terms):
            return None  # a star in the list: positions cannot be told
        over = ", ".join(self._inner_key(term, items) for term in terms)
        cut = self._tokens[self._from].start
        added = f', dense_rank() OVER (ORDER BY {over}) AS "{RANK}" '
        return self.sql[:cut] + added + self.sql[cut:body_end] + f' ORDER BY "{RANK}"'

    def _suffix(self, term: list[Token]) -> tuple[list[Token], str]:
        """A term's expression, and what follows it: COLLATE, ASC or DESC, NULLS FIRST or LAST."""
        cut = len(term)
        while cut > 1:
            if term[cut - 1].upper in ("ASC", "DESC"):
                cut -= 1
            elif cut > 2 and term[cut - 2].upper in ("NULLS", "COLLATE"):
                cut -= 2
            else:
                break
        return term[:cut], self.sql[term[cut].start : term[-1].end] if cut < len(term) else ""

    def _output_key(self, term: list[Token], items: list[list[Token]], names: list[str]) -> str | None:
        """The term as a column of the result, which is all that DISTINCT and compounds may order by here."""
        expression, suffix = self._suffix(term)
        lower = [name.lower() for name in names]
        index = None
        if len(expression) == 1 and expression[0].kind == "number" and expression[0].text.isdigit():
            index = int(expression[0].text) - 1
        elif expression[-1].name in lower and len(expression) in (1, 3):
            index = lower.index(expression[-1].name)
        else:
            wanted = [token.text.lower() for token in expression]
            matches = [i for i, item in enumerate(items) if [t.text.lower() for t in _unaliased(item)[0]] == wanted]
            index = matches[0] if matches else None
        if index is None or not 0 <= index < len(names) or lower.count(lower[index]) > 1:
            return None
        return '"' + names[index].replace('"', '""') + '" ' + suffix

    def _inner_key(self, term: list[Token], items: list[list[Token]]) -> str:
        """The term as an expression that may stand in the select list: positions and aliases are written out."""
        expression, suffix = self._suffix(term)
        if len(expression) == 1 and expression[0].kind == "number" and expression[0].text.isdigit():
            index = int(expression[0].text) - 1
            if 0 <= index < len(items):
                return f"({self._text(_unaliased(items[index])[0])}) {suffix}"
        aliases = {alias: self._text(body) for body, alias in map(_unaliased, items) if alias}
        pieces = []
        for i, token in enumerate(expression):
            around = (expression[i - 1].text if i else "", expression[i + 1].text if i + 1 < len(expression) else "")
            plain = token.name in aliases and around[0] != "." and around[1] not in (".", "(")
            pieces.append(f"({aliases[token.name]})" if plain else token.text)
        return " ".join(pieces) + " " + suffix

    def _text(self, part: list[Token]) -> str:
        return self.sql[part[0].start : part[-1].end]


def _unaliased(item: list[Token]) -> tuple[list[Token], str]:
    """A select item without its alias, and the alias in lower case (empty where it has none)."""
    if len(item) > 2 and item[-2].upper == "AS":
        return item[:-2], item[-1].name or item[-1].text.strip("'").lower()
    follows_value = len(item) > 1 and (item[-2].kind in ("word", "quoted", "number", "string") or item[-2].text == ")")
    if follows_value and item[-1].kind in ("word", "quoted") and item[-1].upper not in ("END", "NULL"):
        return item[:-1], item[-1].name
    return item, ""
