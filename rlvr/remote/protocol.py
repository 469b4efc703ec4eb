"""What an environment says over HTTP: JSON bodies, the values of `rlvr.types` as `to_json_line` writes them.

    GET  /                              Info
    GET  /tasks/{split}?start=0&count=N Tasks: numbers start to start + N of the split
    POST /reset   Reset                 Messages: what the model sees first
    POST /step    Step                  Reply
    POST /verify  Judgement             Verdict
    POST /gold    Gold                  Messages: a transcript that must earn +1; 404 where there is none

Requests may come twice, when an answer was lost. `reset` names an episode by an id that the client makes, and each
`step` carries its turn number from 0: a server answers a turn that it has played with the reply that it gave, plays the
next one, and refuses (409) any other. `verify` is given all it needs and depends on no episode. A fault of the server's
own is 500 with `{"detail": "..."}`; the episode is then invalid. A server may forget an episode that has been idle for
an hour, and then answers 404.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from rlvr.types import Message, Task

PROTOCOL = 1
MAX_PAGE = 1_000


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class Info(_Body):
    """Who answers. `protocol` is `PROTOCOL` of the server."""

    name: str
    summary: str = ""
    protocol: int = PROTOCOL


class Tasks(_Body):
    """A page of a split; `end` says that no task follows."""

    tasks: tuple[Task, ...]
    end: bool


class Reset(_Body):
    """Begin `episode` of `task`."""

    episode: str
    task: Task


class Step(_Body):
    """The model's message number `turn`, from 0."""

    episode: str
    turn: int
    message: Message


class Judgement(_Body):
    """Judge all messages of an episode, the prompt first."""

    task: Task
    transcript: tuple[Message, ...]


class Gold(_Body):
    """Ask for assistant messages that must earn +1."""

    task: Task


class Messages(_Body):
    """Messages in order."""

    messages: tuple[Message, ...]
