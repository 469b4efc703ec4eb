"""One environment over HTTP (`rlvr env serve`): the endpoints of `rlvr.remote.protocol`, its schema at /openapi.json.

There is no authentication: whoever reaches the port plays. Leave it on this machine, or behind your network's guards.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import itertools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query

from rlvr import __version__
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment
from rlvr.plugins import make_environment
from rlvr.remote import protocol
from rlvr.types import Message, Reply, Split, Task, Verdict

IDLE_SECONDS = 3_600.0
MAX_EPISODES = 100_000
# Calls of the environment at once: they mostly wait, for a sandbox or a database.
NUM_THREADS = 64


@dataclass(slots=True)
class _Episode:
    """One that is being played. The lock keeps a request that came twice waiting for the first of it."""

    environment: Environment
    task: Task
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    messages: tuple[Message, ...] | None = None
    last_step: protocol.Step | None = None
    last_reply: Reply = field(default_factory=Reply)
    used: float = field(default_factory=time.monotonic)


class _Stream:
    """A split by number: what was read of it is kept, since tasks are asked for in pages."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._read: list[Task] = []
        self._lock = threading.Lock()

    def page(self, start: int, count: int) -> protocol.Tasks:
        with self._lock:
            # One more than asked for tells whether this is the end.
            self._read += itertools.islice(self._tasks, max(0, start + count + 1 - len(self._read)))
            return protocol.Tasks(tasks=tuple(self._read[start : start + count]), end=len(self._read) <= start + count)


class EpisodeTable:
    """The episodes being played, the one used last at the end; idle ones are forgotten."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._episodes: OrderedDict[str, _Episode] = OrderedDict()

    def begin(self, episode: str, environment: Environment, task: Task) -> _Episode:
        """The episode of that name, which may have begun already."""
        self._forget()
        known = self._episodes.setdefault(episode, _Episode(environment=environment, task=task))
        if known.task != task:
            raise HTTPException(409, f"episode {episode!r} is one of task {known.task.id!r}")
        return self.find(episode)

    def find(self, episode: str) -> _Episode:
        if episode not in self._episodes:
            raise HTTPException(404, f"there is no episode {episode!r}; it was idle for too long, or never reset here")
        self._episodes.move_to_end(episode)
        found = self._episodes[episode]
        found.used = time.monotonic()
        return found

    def _forget(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        while self._episodes:
            name, first = next(iter(self._episodes.items()))
            if first.used > oldest and len(self._episodes) < MAX_EPISODES:
                return
            del self._episodes[name]


def make_app(environment: Environment, *, idle_seconds: float = IDLE_SECONDS) -> FastAPI:
    """The endpoints around an environment that is set up. `environment` itself plays no episode."""

    @contextlib.asynccontextmanager
    async def with_threads(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NUM_THREADS, "environment"))
        yield

    title = f"rlvr environment {environment.name}"
    app = FastAPI(title=title, version=__version__, description=protocol.__doc__ or "", lifespan=with_threads)
    episodes = EpisodeTable(idle_seconds=idle_seconds)
    streams: dict[Split, _Stream] = {}

    @app.get("/")
    async def info() -> protocol.Info:
        return protocol.Info(name=environment.name, summary=environment.summary)

    @app.get("/tasks/{split}")
    async def tasks(
        split: Split, start: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1)] = 100
    ) -> protocol.Tasks:
        def page() -> protocol.Tasks:
            stream = streams.setdefault(split, _Stream(iter(environment.tasks(split))))
            return stream.page(start, min(count, protocol.MAX_PAGE))

        page_: protocol.Tasks = await _call("tasks", page)
        return page_

    @app.post("/reset")
    async def reset(body: protocol.Reset) -> protocol.Messages:
        episode = episodes.begin(body.episode, copy.copy(environment), body.task)
        async with episode.lock:
            if episode.messages is None:
                episode.messages = tuple(await _call("reset", episode.environment.reset, body.task))
            return protocol.Messages(messages=episode.messages)

    @app.post("/step")
    async def step(body: protocol.Step) -> Reply:
        episode = episodes.find(body.episode)
        async with episode.lock:
            if body == episode.last_step:
                return episode.last_reply
            turn = 0 if episode.last_step is None else episode.last_step.turn + 1
            if body.turn != turn:
                raise HTTPException(409, f"turn {body.turn} of episode {body.episode!r}, whose next turn is {turn}")
            episode.last_reply = await _call("step", episode.environment.step, body.message)
            episode.last_step = body
            return episode.last_reply

    @app.post("/verify")
    async def verify(body: protocol.Judgement) -> Verdict:
        verdict: Verdict = await _call(
            "verify", lambda: copy.copy(environment).verifier().verify(body.task, body.transcript)
        )
        return verdict

    @app.post("/gold")
    async def gold(body: protocol.Gold) -> protocol.Messages:
        def told() -> Sequence[Message]:
            try:
                return environment.gold(body.task)
            except ConfigError as error:
                raise HTTPException(404, str(error)) from error

        return protocol.Messages(messages=tuple(await _call("gold", told)))

    return app


async def _call(boundary: str, function: Callable[..., Any], *args: Any) -> Any:
    """The environment's code in a thread, as a rollout worker runs it; what it raises is 500 with the boundary."""
    try:
        result = await asyncio.to_thread(function, *args)
        return await result if inspect.isawaitable(result) else result
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(500, f"{boundary}: {error!r}") from error


def serve(name: str, settings: dict[str, Any], *, host: str, port: int) -> None:
    """Serve until interrupted. Raises `ConfigError` where the port is taken."""
    import uvicorn

    environment = make_environment(name, settings)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; choose another, or --port 0") from error
    environment.setup()
    try:
        listener.listen()  # before the address is told: whoever asks at once waits, and is not refused
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"{environment.name} is served at {address} (schema: {address}/docs); Ctrl-C ends it", flush=True)
        uvicorn.Server(uvicorn.Config(make_app(environment), log_level="warning")).run(sockets=[listener])
    finally:
        environment.close()
        listener.close()
