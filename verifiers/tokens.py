r"""Text -> tokens of mathematics, the same ones for LaTeX, plain text and Unicode signs.

A token is a short string: a number ("12", "0.5", "2e3"), a letter or a name ("x", "alpha", "sin"), a sign ("+", "<=",
"union"), a command that the parser knows ("\frac"), a word of `\text{...}` or a unit ('"cm'), or "~~..." for what is
compared as written only (sums, integrals, dots). Anything else is a `ParseError`.
"""

from __future__ import annotations

import re

from verifiers import units

MAX_LENGTH = 1500  # characters of one answer
MAX_TOKENS = 700


class ParseError(ValueError):
    """The text is no expression of the grammar, or passes a bound. Says which."""


def split_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00b7": "*", "\u22c5": "*", "\u00d7": "*", "\u2217": "*", "\u00f7": "/",
        "\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u2248": "\\approx ", "\u221e": "\\infty ", "\u03c0": "\\pi ",
        "\u221a": "\\sqrt ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset ", "\u00b0": "^\\circ ",
        "\u00b2": "^2", "\u00b3": "^3", "\u00b1": "\\pm ", "\u2208": "\\in ", "\u211d": "\\mathbb{R}",
        "\u03b8": "\\theta ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u2019": "'", "\u00a0": " ", "\u2044": "/",
        "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}", "\u2032": "'", "\u27e8": "<<",
        "\u27e9": ">>", "\uff0c": ",", "\u3001": ",",
    }
)  # fmt: skip
_COMMANDS = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "frac": "\\frac", "sqrt": "\\sqrt", "binom": "\\binom",
    "dbinom": "\\binom", "tbinom": "\\binom", "times": "*", "cdot": "*", "ast": "*", "div": "/", "pm": "\\pm",
    "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">",
    "ne": "!=", "neq": "!=", "approx": "~", "in": "in", "cup": "union", "cap": "inter", "setminus": "minus",
    "backslash": "minus", "emptyset": "emptyset", "varnothing": "emptyset", "infty": "oo", "pi": "pi", "lvert": "|",
    "rvert": "|", "vert": "|", "mid": "|", "langle": "<<", "rangle": ">>", "lbrace": "\\{", "rbrace": "\\}",
    "lbrack": "[", "rbrack": "]", "lfloor": "\\lfloor", "rfloor": "\\rfloor", "lceil": "\\lceil", "rceil": "\\rceil",
    "overline": "overline", "colon": ":", "prime": "'", "percent": "%", "land": "and", "lor": "or", "vee": "or",
    "wedge": "and", "sec": "sec", "infinity": "oo", "circ": "circ", "degree": "circ", "euro": "\u20ac",
    "pounds": "\u00a3", "lparen": "(", "rparen": ")",
}  # fmt: skip
_DROPPED = split_words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle scriptstyle "
    "limits quad qquad thinspace , ; ! : mathop operatorname hspace ensuremath nolimits space"
) | {" ", "\n", "\t"}
_OPAQUE = split_words(
    "sum int prod lim dots ldots cdots dotsc dotsb vdots iint oint partial nabla forall exists equiv pmod bmod mod to "
    "rightarrow Rightarrow implies iff subset subseteq perp parallel angle triangle sim cong mp vec hat bar"
)
_TEXT = split_words(
    "text textbf textit textrm mathrm mathbf mathit mbox textnormal mathsf rm bf textsf "
    "operatorname boldsymbol bm mathcal mathbb texttt boxed fbox hbox"
)
_NAMES = re.compile(
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sqrt|infty|infinity|alpha|beta|gamma|theta|lambda|sigma|omega|sin|cos|"
    "tan|cot|sec|csc|log|exp|gcd|lcm|min|max|phi|ln|lg|pi|mu|inf|.",
    re.DOTALL,
)
_PLAIN_NAMES = {"sqrt": "\\sqrt", "infty": "oo", "infinity": "oo", "inf": "oo", "asin": "arcsin"}
_CONNECTORS = {"and", "or"}
_FILLERS = split_words("so is it to of the not but if no yes as at be by on we he in an a do go me my us up am")

_NUMBER = (
    r"\d{1,3}(?:(?:%s)\d{3})+(?!\d|,\d)(?:\.\d+)?"
    r"|\d+(?:\.\d+)?[eE][+-]?\d+(?![\d.])|\d+\.?\d*|\.\d+(?:[eE][+-]?\d+)?"
)
_REST = (
    r"|(?P<env>\\(?:begin|end)\s*\{\w+\*?\}(?:\s*\{[lcr|\s]*\})?)"
    r"|(?P<command>\\(?:[A-Za-z]+|.))"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|==|<<|>>|[-+*/^_(){}\[\]=<>|,;:!'&%~$\u20ac\u00a3\u00b5])"
    r"|(?P<bad>.)"
)
_THOUSANDS = r",|\{,\}|,\\!|\\,|,\s?\\!| |\\!,|\\ "
_SCANNERS = {
    True: re.compile(r"\s*(?:(?P<number>" + _NUMBER % _THOUSANDS + ")" + _REST + ")", re.ASCII | re.DOTALL),
    False: re.compile(r"\s*(?:(?P<number>" + _NUMBER % r"\{,\}|\\," + ")" + _REST + ")", re.ASCII | re.DOTALL),
}
_SEPARATORS = str.maketrans("", "", ",{}\\! ")
_WRAPPER = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mathrm|mathbf|mbox|hbox|boldsymbol|bm|operatorname)\s*\{")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' \-,]*[A-Za-z.]?")
_DOTTED = re.compile(r"\b([ap])\.\s?(m)\.?(?![A-Za-z])", re.IGNORECASE)  # a.m., p.m.
_SHORT = re.compile(r"[b-df-hj-np-tv-z]{1,3}", re.IGNORECASE)
_ARTICLES = ("the ", "a ", "an ", "option ", "choice ", "answer ")


def words_of(text: str) -> str | None:
    """`text` as an answer in words, normalised ("Evelyn", "\\text{no solution}"); `None` where it is mathematics."""
    if not any(character.isalpha() for character in text[:40]):
        return None
    plain = _WRAPPER.sub("{", text) if "\\" in text else text
    plain = plain.replace("{", "").replace("}", "").replace("$", "").replace("\\ ", " ").replace("~", " ").strip()
    if not _WORDS.fullmatch(plain):
        return None
    words = plain.rstrip(".").replace("-", " ").replace(",", " ").lower().split()
    if all(len(word) == 1 or word in _CONNECTORS or _SHORT.fullmatch(word) for word in words) and len(words) <= 5:
        return None  # "x", "xy", "x and y": letters
    if all(len(found := _NAMES.findall(word)) == 1 or len(found[0]) > 1 for word in words):
        return None  # "pi", "sin x", "infinity"
    joined = " ".join(words)
    for article in _ARTICLES:
        joined = joined.removeprefix(article)
    return joined


def tokens(text: str, *, thousands: bool = True) -> list[str]:
    """The tokens of `text`, without layout. Raises `ParseError`."""
    found: list[str] = []
    _scan(_DOTTED.sub(r"\1\2", text.translate(_UNICODE)).strip(), found, _SCANNERS[thousands], 0)
    while found and found[-1] in (".", ",", ";", "\\\\"):
        found.pop()
    return found


def _scan(text: str, found: list[str], scanner: re.Pattern[str], depth: int) -> None:
    if depth > 5:
        raise ParseError("text in text in text")
    position, end = 0, len(text)
    while position < end:
        match = scanner.match(text, position)
        if match is None:
            return  # only white space is left
        position, kind = match.end(), match.lastgroup
        token = match.group(kind or 0)
        if kind == "number":
            found.append(token.translate(_SEPARATORS).lower() if not token.isdigit() else token)
        elif kind == "sign":
            if token not in ("$", "~"):
                found.append({"**": "^", "==": "="}.get(token, token))
                if found[-4:] == ["^", "{", "circ", "}"]:
                    found[-4:] = ["deg"]
        elif kind == "word":
            _word(token, found, text[position : position + 1])
        elif kind == "env":
            name = re.search(r"\{(\w+)", token)
            found += ["\\begin" if token.startswith("\\begin") else "\\end", name.group(1) if name else ""]
        elif kind == "command":
            position = _command(token[1:], text, position, found, scanner, depth)
        elif token != "." or text[position:].strip(" .$}\n"):
            raise ParseError(f"{token!r} is not understood")
        if len(found) > MAX_TOKENS:
            raise ParseError(f"more than {MAX_TOKENS} signs")


def _command(
    name: str, text: str, position: int, found: list[str], scanner: re.Pattern[str], depth: int
) -> int:  # where to read on
    if name in _TEXT:
        while text[position : position + 1] == " ":
            position += 1
        if text[position : position + 1] != "{":
            return position
        stop = closing_brace(text, position)
        if stop is None:
            raise ParseError("a brace that does not close")
        inner = text[position + 1 : stop]
        if name == "mathbb":
            found.append({"R": "reals"}.get(inner.strip(), "~~" + inner))
        elif name in ("boxed", "fbox"):
            _scan(inner, found, scanner, depth + 1)
        else:
            _text(inner, found, scanner, depth)
        return stop + 1
    if name in _COMMANDS:
        found.append(_COMMANDS[name])
        if name in ("circ", "degree"):
            _degrees(found)
    elif name in _OPAQUE:
        found.append("~~" + name)
    elif name in "{}$%\\":
        found.append({"%": "%", "$": "\\$"}.get(name, "\\" + name))
    elif name in ("(", ")", "[", "]"):
        pass  # delimiters of mathematics
    elif name not in _DROPPED:
        if not name.isalpha() or len(name) > 12:
            raise ParseError(f"'\\{name[:10]}' is not understood")
        found.append(name)  # a function or a Greek letter, or the parser refuses it
    return position


def _degrees(found: list[str]) -> None:
    """`^\\circ` becomes the unit "deg"; `^{\\circ}` does when its brace closes."""
    if found[-2:-1] == ["^"]:
        found[-2:] = ["deg"]


def _text(inner: str, found: list[str], scanner: re.Pattern[str], depth: int) -> None:
    """What stands in `\\text{...}`: words are units or connectors, single letters stay letters, the rest is read on."""
    parts = re.findall(r"[A-Za-z]+(?:-[a-z]+)?|[^A-Za-z]+", inner)
    for part in parts:
        if not part[0].isalpha():
            _scan(part.strip(), found, scanner, depth + 1)
        elif part.lower() in _CONNECTORS:
            found.append(part.lower())
        elif part.lower() in ("pi", "percent", "pct"):
            found.append("pi" if part.lower() == "pi" else "%")
        elif len(part) > 1 and units.lookup(part) is None and _NAMES.fullmatch(part):
            _word(part, found, "")
        elif len(part) == 1 and not (
            found and (found[-1][-1].isdigit() or found[-1] in "})" or '"' in (found[-1][0], "".join(found[-2:-1])[:1]))
        ):
            found.append(part)
        else:
            found.append('"' + part)


def _word(word: str, found: list[str], following: str) -> None:
    """A run of plain letters: a connector, a unit after something, names and letters multiplied, or an error."""
    low = word.lower()
    if low in _CONNECTORS:
        found.append(low)
    elif low in ("percent", "percentage", "pct"):
        found.append("%")
    elif len(word) == 1 or word in ("oo",):
        found.append(word)
    elif low in ("per", "square", "sq", "cubic") or (units.lookup(word) is not None and low not in ("pi", "min")):
        found.append('"' + word)
    elif low in _FILLERS:
        raise ParseError(f"the word {word!r}")
    elif low in ("u", "union") and found:
        found.append("union")
    else:
        names = _NAMES.findall(word)
        if sum(len(name) == 1 for name in names) > 4:
            raise ParseError(f"the word {word[:20]!r}")
        found.extend(_PLAIN_NAMES.get(name, name) for name in names)


def closing_brace(text: str, opening: int) -> int | None:
    """Where the brace at `opening` closes; `None` where it does not."""
    depth, position = 0, opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None
