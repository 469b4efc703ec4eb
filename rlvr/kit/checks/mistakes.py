"""Assistant messages that must earn -1: the environment's own where it offers them, otherwise made from the golds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from rlvr.kit.subject import Subject
from rlvr.types import Message, Task

Kind = Literal["wrong", "hedge", "altered"]
Messages = tuple[Message, ...]


class OffersMistakes(Protocol):
    """What an environment may add: for each kind that it yields, the kit makes none of its own."""

    def mistakes(self, task: Task) -> Iterable[tuple[Kind, Sequence[Message]]]:
        """Assistant messages that must earn -1, each with the kind of mistake."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """`change` says how it was made; `certain` is false where a change may by chance change nothing."""

    task: Task
    change: str
    messages: Messages
    certain: bool


def mistakes(subject: Subject, kind: Kind) -> list[Mistake]:
    """All of one kind, for every task that is played."""
    offered = _offered(subject, kind)
    if offered:
        return offered
    golds = {task.id: subject.gold(task) for task in subject.tasks}
    return [
        Mistake(task=task, change=change, messages=messages, certain=False)
        for task in subject.tasks
        for change, messages in _MAKERS[kind](golds[task.id], _others(golds, task))
    ]


def _offered(subject: Subject, kind: Kind) -> list[Mistake]:
    if not callable(getattr(subject.environment, "mistakes", None)):
        return []
    own = cast(OffersMistakes, subject.environment)
    return [
        Mistake(task=task, change="the environment's own", messages=tuple(messages), certain=True)
        for task in subject.tasks
        for offered_kind, messages in own.mistakes(task)
        if offered_kind == kind
    ]


def _others(golds: dict[str, Messages], task: Task) -> list[Messages]:
    """Two golds of other tasks that say something else."""
    mine = _texts(golds[task.id])
    names = list(golds)
    start = names.index(task.id)
    rotated = [golds[name] for name in names[start + 1 :] + names[:start]]
    distinct: dict[tuple[str, ...], Messages] = {}
    for gold in rotated:
        if _texts(gold) != mine:
            distinct.setdefault(_texts(gold), gold)
    return list(distinct.values())[:2]


def _texts(messages: Messages) -> tuple[str, ...]:
    return tuple(" ".join(message.content.split()) for message in messages)


def _wrong(_gold: Messages, others: list[Messages]) -> Iterator[tuple[str, Messages]]:
    for other in others:
        yield "another task's gold", other


def _hedge(gold: Messages, others: list[Messages]) -> Iterator[tuple[str, Messages]]:
    """The right answer between two others: neither the first nor the last of what is said."""
    if len(others) < 2:
        return
    for name, joint in (("lines", "\n\n"), ("alternatives", " or ")):
        spoken = []
        for turn, message in enumerate(gold):
            before, after = (other[min(turn, len(other) - 1)].content for other in others)
            spoken.append(dataclasses.replace(message, content=joint.join([before, message.content, after])))
        yield f"right answer among others, as {name}", tuple(spoken)


def _altered(gold: Messages, others: list[Messages]) -> Iterator[tuple[str, Messages]]:
    """A change in the last message that other golds do not say as well ("Goodbye." carries no answer)."""
    common = {text for other in others for text in _texts(other)}
    telling = [index for index, text in enumerate(_texts(gold)) if text and text not in common]
    if not telling:
        return
    last = telling[-1]
    content = gold[last].content
    for change, alter in _CHANGES.items():
        new = alter(content)
        if new is not None and new.strip() and new != content:
            yield change, (*gold[:last], dataclasses.replace(gold[last], content=new), *gold[last + 1 :])


def _other_digit(text: str) -> str | None:
    match = re.search(r"\d(?=\D*$)", text)
    return None if match is None else f"{text[: match.start()]}{(int(match[0]) + 1) % 10}{text[match.end() :]}"


def _more_digits(text: str) -> str | None:
    match = re.search(r"\d(?=\D*$)", text)
    return None if match is None else f"{text[: match.end()]}1{text[match.end() :]}"


def _other_sign(text: str) -> str | None:
    match = re.search(r"(?<![\w.])(-?)(\d[\d.]*)(?=[^\d]*$)", text)
    if match is None or float(match[2].strip(".") or 0) == 0:
        return None
    return f"{text[: match.start()]}{'' if match[1] else '-'}{match[2]}{text[match.end() :]}"


def _other_letter(text: str) -> str | None:
    """Only where no digit carries the answer."""
    match = re.search(r"[a-z](?=[^a-z]*$)", text)
    if match is None or re.search(r"\d", text):
        return None
    return f"{text[: match.start()]}{'b' if match[0] == 'a' else 'a'}{text[match.end() :]}"


def _no_last_line(text: str) -> str | None:
    """Without the last line that says something (a closing fence says nothing)."""
    lines = text.split("\n")
    spoken = [index for index, line in enumerate(lines) if re.search(r"\w", line)]
    return None if len(spoken) < 2 else "\n".join(lines[: spoken[-1]] + lines[spoken[-1] + 1 :])


_CHANGES: dict[str, Callable[[str], str | None]] = {
    "its last digit another": _other_digit,
    "a digit more": _more_digits,
    "the other sign": _other_sign,
    "its last letter another": _other_letter,
    "without its last line": _no_last_line,
}
_MAKERS: dict[Kind, Callable[[Messages, list[Messages]], Iterator[tuple[str, Messages]]]] = {
    "wrong": _wrong,
    "hedge": _hedge,
    "altered": _altered,
}
