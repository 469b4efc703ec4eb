"""What a check of the conformance kit is: a function over a `Subject` that returns its complaints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rlvr.kit.subject import Subject

Complaints = list[str]
Body = Callable[[Subject], Awaitable[Complaints]]


class NotApplicable(Exception):
    """The check does not concern this environment; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`proves` is what holds when `run` returns no complaint, `remedy` what to do when it does.

    A check is not run when one that it `needs` failed: its complaints would be that one's again.
    """

    name: str
    proves: str
    remedy: str
    needs: tuple[str, ...]
    run: Body


def check(*, remedy: str, needs: Sequence[str] = ()) -> Callable[[Body], Check]:
    """Makes a check of a function; its name and the first line of its docstring say what it proves."""

    def decorate(body: Body) -> Check:
        name: str = getattr(body, "__name__", "check")
        proves = (body.__doc__ or "").strip().partition("\n")[0]
        return Check(name=name, proves=proves, remedy=remedy, needs=tuple(needs), run=body)

    return decorate


def brief(text: object, limit: int = 120) -> str:
    """One line of `text`, cut to `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
