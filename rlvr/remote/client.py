"""An environment behind a URL, as one of ours: `name = "http://host:port"` in a config."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import httpx
from pydantic import Field, NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError

from rlvr.errors import ConfigError, PluginError, RemoteError
from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.remote import protocol
from rlvr.types import Message, Reply, Split, Task, Verdict

PAGE = 100  # tasks asked for at once
_FIRST_PAUSE_SECONDS = 0.2
# The way to the server is at fault, not the request: worth asking again.
_TRANSIENT = (502, 503, 504)


class HttpSettings(EnvironmentSettings):
    """How patient the client is. The remote environment's own settings are its server's."""

    timeout_seconds: PositiveFloat = Field(60.0, description="for one answer")
    retries: NonNegativeInt = Field(3, description="after a lost connection, a timeout, or 502, 503, 504")


class Connection:
    """Requests to one server. Safe from any thread. Raises `RemoteError`, whose text begins with the URL asked."""

    def __init__(self, url: str, *, timeout_seconds: float, retries: int) -> None:
        self.url = url.rstrip("/")
        self._retries = retries
        self._timeout_seconds = timeout_seconds
        # Episodes wait for their answers side by side: the worker bounds them, not the pool.
        self._client = httpx.Client(timeout=timeout_seconds, limits=httpx.Limits(max_connections=None))

    def get(self, path: str, kind: Any, **query: Any) -> Any:
        return self._ask(kind, "GET", path, params=query)

    def post(self, path: str, body: Any, kind: Any) -> Any:
        headers = {"content-type": "application/json"}
        return self._ask(kind, "POST", path, content=body.model_dump_json(), headers=headers)

    def close(self) -> None:
        self._client.close()

    def _ask(self, kind: Any, method: str, path: str, **request: Any) -> Any:
        address = self.url + path
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                response = self._client.request(method, address, **request)
            except httpx.TimeoutException:
                problem = f"no answer within {self._timeout_seconds:g} s"
                continue
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code not in _TRANSIENT:
                return _read(address, response, kind)
            problem = f"answered {response.status_code}"
        tries = f", at each of {self._retries + 1} tries" if self._retries else ""
        raise RemoteError(f"{address}: {problem}{tries}")


def _read(address: str, response: httpx.Response, kind: Any) -> Any:
    if response.status_code != 200:
        raise RemoteError(f"{address}: answered {response.status_code}: {response.text[:300]}")
    try:
        return TypeAdapter(kind).validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise RemoteError(f"{address}: answered no {kind.__name__}: {where}: {first['msg']}") from error


class HttpVerifier:
    """Asks the server. Invalid, naming the URL, when it does not answer as it should."""

    id = "http"
    version = str(protocol.PROTOCOL)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        body = protocol.Judgement(task=task, transcript=tuple(transcript))
        try:
            verdict: Verdict = self._connection.post("/verify", body, Verdict)
        except RemoteError as error:
            return Verdict(
                outcome="invalid", reward=None, reason=f"RemoteError: {error}", verifier=self.id, version=self.version
            )
        return verdict


class HttpEnvironment(Environment):
    """Everything is asked of the server; only `remote_environment` makes subclasses, which know its URL and name."""

    Settings = HttpSettings
    settings: HttpSettings
    url: ClassVar[str]

    def __init__(self, settings: HttpSettings) -> None:
        super().__init__(settings)
        self._connection = Connection(self.url, timeout_seconds=settings.timeout_seconds, retries=settings.retries)
        self._episode = ""
        self._turn = 0

    def tasks(self, split: Split) -> Iterator[Task]:
        start = 0
        while True:
            page: protocol.Tasks = self._connection.get(f"/tasks/{split}", protocol.Tasks, start=start, count=PAGE)
            yield from page.tasks
            start += len(page.tasks)
            if page.end or not page.tasks:
                return

    def reset(self, task: Task) -> Sequence[Message]:
        self._episode, self._turn = uuid.uuid4().hex, 0
        begun: protocol.Messages = self._connection.post(
            "/reset", protocol.Reset(episode=self._episode, task=task), protocol.Messages
        )
        return begun.messages

    def step(self, message: Message) -> Reply:
        body = protocol.Step(episode=self._episode, turn=self._turn, message=message)
        reply: Reply = self._connection.post("/step", body, Reply)
        self._turn += 1
        return reply

    def verifier(self) -> HttpVerifier:
        return HttpVerifier(self._connection)

    def gold(self, task: Task) -> Sequence[Message]:
        try:
            told: protocol.Messages = self._connection.post("/gold", protocol.Gold(task=task), protocol.Messages)
        except RemoteError as error:
            raise ConfigError(f"no gold answer: {error}") from error
        return told.messages

    def close(self) -> None:
        self._connection.close()


def remote_environment(url: str) -> type[HttpEnvironment]:
    """The class of what is served at `url`. Raises `PluginError` where nothing of the kind is."""
    connection = Connection(url, timeout_seconds=60.0, retries=0)
    try:
        info: protocol.Info = connection.get("/", protocol.Info)
    except RemoteError as error:
        raise PluginError(f"no environment is served at {url}: {error}; start one with `rlvr env serve`") from error
    finally:
        connection.close()
    if info.protocol != protocol.PROTOCOL:
        raise PluginError(f"{url} speaks protocol {info.protocol}, and this rlvr {protocol.PROTOCOL}; update the older")
    members = {"name": info.name, "summary": info.summary, "url": connection.url}
    return type("RemoteEnvironment", (HttpEnvironment,), members)
