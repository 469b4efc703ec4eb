r"""The math verifier: finds the answer in what the model wrote, and compares it with the reference.

**What counts as the answer** (`extract` is the one place to change it), in this order:

1. Only the last assistant message counts, after its last `</think>` (nothing of a thought that never ends).
2. If it has a `\boxed{...}` or `\fbox{...}` whose braces close, the last one is the answer (of boxes in a box, the
   outer). Boxes before it that are joined to it by no more than signs, the number of an item, "and", "or" or `x =`
   belong to it: together they are a list. A message in which no box closes has no answer.
3. Without any box: what follows the last "answer is", "answer:" or "####", up to the end of the sentence; "the largest
   n is" or "therefore" may stand before it, and nothing may stand behind it.
4. Without that: the whole message, if it is mathematics or a short choice in words and nothing else.

**What is equal** says `verifiers.equality`; what can be read, `verifiers.latex`. Nothing of the model's text is ever
evaluated as code. Text that is too long, too deep or too large to compute is refused before the work; a comparison that
would take long goes to a worker process (`verifiers.worker`) that is killed after `WORKER_SECONDS`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter

from rlvr.types import Message, Outcome, Task, Verdict, judged, last_answer
from verifiers import worker
from verifiers.equality import equal
from verifiers.latex import parse_tree
from verifiers.numeric import Meter, TooCostly
from verifiers.tokens import ParseError
from verifiers.tree import Decimal, Node, Tree, show

MAX_CONTENT = 100_000  # characters of an answer that are looked at, from its end
MAX_STATED = 300  # characters of an answer outside a box
WORKER_SECONDS = 1.0

_FILES = (
    *("math", "tokens", "units", "tree", "arithmetic", "atoms", "latex"),
    *("numeric", "intervals", "equality", "math_worker", "worker"),
)
_VERSION = hashlib.sha256(b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in _FILES)).hexdigest()[
    :12
]
_POOL = worker.WorkerPool("verifiers.math_worker")
Reading = tuple[str, bool, Tree]  # text, whether its commas may group thousands, tree

_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN = r"[\s$,;&()\[\]\\*_/|\u2022-]*"
_JOINED = re.compile(
    _BETWEEN + r"(?:(?:\\text\s*\{)?\s*(?:and|or)\s*\}?)?" + _BETWEEN + r"(?:\d{1,2}[.)]" + _BETWEEN + r")?"
    r"(?:[A-Za-z](?:_\d)?\s*=\s*)?\s*"
)
_STATED = re.compile(r"answer\s*(?:\*\*)?\s*(?:is\b|[:=])|final answer\b|####", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])|\n|<\|")
_INLINE = re.compile(r"(?<!\\)\$([^$]{1,300})\$|\\\(([^$]{1,300}?)\\\)")
_ASSERTED = re.compile(
    r"(?!.*\b(?:not|no|never|neither|either|nor|or|if|unless|but|than)\b)[^\d]*? is\s+", re.IGNORECASE
)
_ADVERBS = re.compile(
    r"(?:\b(?:therefore|thus|hence|so|then|simply|just|exactly|clearly|indeed|now|equal to|given by|that|we have|"
    r"we get|we obtain|we find)\b|[\s,:*_])*",
    re.IGNORECASE,
)
_CHOICES_ONLY = re.compile(r"(?:\b(?:[A-J]|and|or|not|text)\b|[^A-Za-z0-9])*")
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-J])\s*(?:\)|(?=\})|\.\s|:\s)[}\s.:)~\\]*(.*)", re.DOTALL
)
_GROUPED = re.compile(r"\d,\d{3}")
_COMMA_DECIMAL = re.compile(r"\s*\$?([+-]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d+))\$?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer as it stands in the message: texts to try in turn. `box` says whether it stood in a box."""

    texts: tuple[str, ...]
    box: bool


class MathVerifier:
    """Correct when the answer equals the reference. Invalid only when the reference does not parse, or a worker
    process cannot be had (never because of what the model wrote)."""

    id = "math"
    version = _VERSION

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        checks = {"boxed": False, "parses": False, "equal": False}
        verdict = partial(judged, self, checks=checks, started=perf_counter())

        try:
            reference = str(task.reference["answer"])
            expected = _readings_of_reference(reference)
        except (KeyError, ParseError) as error:
            return verdict("invalid", f"the reference of task {task.id} is no expression: {error!r}")
        found = extract(last_answer(transcript))
        if found is None:
            return verdict("incorrect", "no complete \\boxed{...} and no plain answer")
        checks["boxed"] = found.box
        given: tuple[Reading, ...] = ()
        problem = ""
        for text in found.texts:
            try:
                given = readings(_chosen(text, expected))
                break
            except ParseError as error:
                problem = problem or str(error)
        if not given:
            return verdict("incorrect", f"the {'box holds' if found.box else 'text is'} no expression: {problem[:100]}")
        checks["parses"] = True
        where = f"the box holds {_brief(given[0][0])}" if found.box else f"the answer given is {_brief(given[0][0])}"
        try:
            if not _any_equal(expected, given):
                return verdict("incorrect", f"{where}, not {_brief(reference)}")
        except worker.WorkerTimeoutError:
            return verdict("incorrect", f"{where}, which takes longer than {WORKER_SECONDS:g} s to compare")
        except worker.WorkerLostError as error:
            return verdict("invalid", f"no worker process to compare in: {error}")
        except Exception as error:  # a fault of this file's: the answer brought it out, unless the reference does too
            logging.getLogger(__name__).exception("the math verifier failed on %r and %r", reference, given[0][0])
            outcome: Outcome = "incorrect" if _equals_itself(expected) else "invalid"
            return verdict(outcome, f"{where}; comparing it failed: {type(error).__name__}")
        checks["equal"] = True
        return verdict("correct", where)

    def explain(self, task: Task, transcript: Sequence[Message]) -> list[str]:
        """What is taken for the answer, and how it and the reference are read: lines for a person."""
        found = extract(last_answer(transcript))
        if found is None:
            return ["extracted: nothing"]
        lines = [f"extracted {'from a box' if found.box else 'outside a box'}: {text[:300]}" for text in found.texts]
        texts = [("the reference", _answer_of(str(task.reference.get("answer"))))]
        for name, text in texts + [("the answer", text) for text in found.texts]:
            try:
                lines += [f"{name} is read as: {show(tree)[:300]}" for _, _, tree in readings(text)]
            except ParseError as error:
                lines.append(f"{name} is not read: {error}")
        return lines


def parse(text: str) -> Tree:
    """The tree of `text`; an exact number is a `Fraction`. Raises `ParseError`, and nothing else, on any text."""
    return parse_tree(text)


def extract(content: str) -> Found | None:
    """The answer in a message, by the rule above; `None` where there is none."""
    content = content.rpartition("</think>")[2].partition("<think>")[0][-MAX_CONTENT:]
    if "boxed" in content or "\\fbox" in content:
        box = last_boxed(content)
        return None if box is None else Found((box,), True)
    stated = [match.end() for match in _STATED.finditer(content)]
    if stated:
        rest = content[stated[-1] :].lstrip(" \t\n*:=_").removeprefix("is ")[:MAX_STATED]
        sentence = _plain(_SENTENCE_END.split(rest, maxsplit=1)[0])
        asserted = _ASSERTED.match(sentence)
        adverbs = _ADVERBS.match(sentence)
        texts = [sentence, *(_plain(sentence[lead.end() :]) for lead in (asserted, adverbs) if lead and lead.end())]
        return Found(tuple(text for text in texts if text.strip()), False)
    whole = _plain(content)
    return Found((whole,), False) if 0 < len(whole) <= MAX_STATED and "\n\n" not in whole else None


def last_boxed(content: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces close, and in the boxes joined to it, as a list.

    Braces are paired once over the whole text, so the cost is linear however many boxes are left open.
    """
    content = content[-MAX_CONTENT:]
    opening = {match.end() - 1: match.start() for match in _BOX.finditer(content)}
    if not opening:
        return None
    stack: list[int] = []
    boxes: list[tuple[int, int]] = []  # where the brace opens and closes
    for match in _BRACES.finditer(content):
        if match.group() == "{":
            stack.append(match.start())
        elif match.group() == "}" and stack:
            start = stack.pop()
            if start in opening:
                boxes.append((start, match.start()))
    if not boxes:
        return None
    boxes.sort()
    boxes = [box for box, before in zip(boxes, _furthest(boxes), strict=True) if box[1] > before]  # the outer ones
    start, stop = boxes.pop()
    parts = [content[start + 1 : stop]]
    while boxes and len(parts) < 20:
        before = opening[start]
        start, stop = boxes.pop()
        if before - stop > 60 or not _JOINED.fullmatch(content[stop + 1 : before]):
            break
        part = content[start + 1 : stop]
        if part not in parts:
            parts.insert(0, part)
    return parts[0] if len(parts) == 1 else " , ".join(parts)


def _furthest(boxes: list[tuple[int, int]]) -> list[int]:
    """For each box, where the furthest of those that open before it closes."""
    return list(accumulate((stop for _, stop in boxes[:-1]), max, initial=-1))


def readings(text: str) -> tuple[Reading, ...]:
    """The ways to read `text`: "(1,234)" is a number in brackets or a pair. Raises `ParseError`."""
    result: tuple[Reading, ...] = ((text, True, parse_tree(text)),)
    if _GROUPED.search(text):
        try:
            other = parse_tree(text, thousands=False)
        except ParseError:
            return result
        if other != result[0][2]:
            result += ((text, False, other),)
    return result


def _answer_of(reference: str) -> str:
    """A reference may be a whole solution, with its answer in a box."""
    return (last_boxed(reference) if "box" in reference else None) or reference


@lru_cache(maxsize=256)  # a group's episodes share a reference
def _readings_of_reference(text: str) -> tuple[Reading, ...]:
    return readings(_answer_of(text))


def _any_equal(expected: tuple[Reading, ...], given: tuple[Reading, ...]) -> bool:
    if isinstance(expected[0][2], Decimal) and (comma := _COMMA_DECIMAL.fullmatch(given[0][0])):
        given = (*given, *readings(comma[1].replace(",", ".")))
    meter = Meter()
    for reference in expected:
        for answer in given:
            try:
                if equal(reference[2], answer[2], meter):
                    return True
            except TooCostly:
                if _compare_in_worker(reference, answer):
                    return True
    return False


def _equals_itself(expected: tuple[Reading, ...]) -> bool:
    try:
        return _any_equal(expected, expected)
    except Exception:
        return False


def _compare_in_worker(reference: Reading, answer: Reading) -> bool:
    request = {"reference": reference[:2], "answer": answer[:2]}
    try:
        return bool(_POOL.call(request, WORKER_SECONDS))
    except worker.WorkerLostError:
        # Ours or the model's? If a fresh worker answers a harmless question, the input killed the first one.
        _POOL.call({"reference": ("1", True), "answer": ("1", True)}, WORKER_SECONDS * 10)
        return False


def _chosen(text: str, expected: tuple[Reading, ...]) -> str:
    r"""`\textbf{(C) } 42` is C where the reference is a letter, and 42 where it is not."""
    choice = _CHOICE.fullmatch(text.strip().strip("$"))
    if choice is None or _CHOICE.search(choice[2]) or (choice[2].strip(" }$") and _CHOICES_ONLY.fullmatch(choice[2])):
        return text
    tree = expected[0][2]
    is_letter = isinstance(tree, Node) and tree.op == "sym" and len(tree.args[0]) == 1
    return choice[1] if is_letter or not choice[2].strip(" }$") else choice[2]


def _plain(text: str) -> str:
    """Without Markdown's emphasis and the delimiters of mathematics around it."""
    text = text.strip().strip("*_` \t\n")
    if text.endswith("."):
        text = text[:-1].strip("*_` \t\n")
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            return text[len(left) : -len(right)].strip()
    return text


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
