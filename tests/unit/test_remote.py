"""An environment behind a URL plays as it does in process, and what goes wrong on the way is invalid, with the URL."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any

import httpx
import pytest
import uvicorn

from rlvr.errors import ConfigError, PluginError, RemoteError
from rlvr.interfaces import Environment
from rlvr.kit.scripted import ScriptedSampler, renderer, say
from rlvr.plugins import load_environment, make_environment
from rlvr.remote.client import PAGE, Connection
from rlvr.remote.server import make_app, serve
from rlvr.rollout.play import play
from rlvr.types import Budget, Episode, Message, Reply, Task, to_json_line
from tests.broken_environments import Sum
from tests.fakes import make_task

QUICK = {"timeout_seconds": 0.5, "retries": 1}


class CountingSum(Sum):
    """Counts the steps it took, in all episodes."""

    steps = 0

    def step(self, message: Message) -> Reply:
        type(self).steps += 1
        if message.content == "break":
            raise ZeroDivisionError("on purpose")
        return super().step(message)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A `CountingSum`, served on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # who asks before the server runs waits for it
    server = uvicorn.Server(uvicorn.Config(make_app(CountingSum(CountingSum.Settings())), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


Answer = Callable[["Faulty"], None]


class Faulty(BaseHTTPRequestHandler):
    """A server that answers as its test says; `/` is always right."""

    answer: Answer
    num_requests = 0

    def do_GET(self) -> None:
        if self.path == "/":
            self.reply(200, b'{"name": "faulty"}')
        else:
            self.do_POST()

    def do_POST(self) -> None:
        type(self).num_requests += 1
        self.rfile.read(int(self.headers.get("content-length") or 0))
        type(self).answer(self)

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Callable[[Answer], tuple[str, type[Faulty]]]]:
    servers = []

    def start(answer: Answer) -> tuple[str, type[Faulty]]:
        handler = type("Handler", (Faulty,), {"answer": staticmethod(answer)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def slow(handler: Faulty) -> None:
    time.sleep(2)
    handler.reply(200, b"{}")


def dead_in_the_middle(handler: Faulty) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"messages": [')
    handler.close_connection = True


def hung_up(handler: Faulty) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


async def episode_of(environment: Environment, task: Task, *said: str) -> Episode:
    return await play(
        task,
        episode_id="1",
        environment=environment,
        sampler=ScriptedSampler(say(*said)),
        renderer=renderer(),
        max_model_len=100_000,
        temperature=1.0,
        seed=0,
    )


def test_the_served_environment_goes_by_its_own_name_and_has_the_same_tasks(url: str) -> None:
    environment = make_environment(url, {})
    assert (environment.name, environment.summary) == ("sum", "sums of two numbers")
    assert list(environment.tasks("held_out")) == list(Sum(Sum.Settings()).tasks("held_out"))
    assert len(list(islice(environment.tasks("train"), PAGE + 1))) == PAGE + 1
    environment.close()


async def test_verdicts_and_replies_over_http_are_those_in_process(url: str) -> None:
    here, there = Sum(Sum.Settings()), make_environment(url, {})
    budget = Budget(turns=3, seconds=30)
    for task in islice(here.tasks("train"), 10):
        bounded = Task(**{name: getattr(task, name) for name in Task.__slots__} | {"budget": budget})
        assert tuple(there.gold(task)) == tuple(here.gold(task))
        for said in ([message.content for message in here.gold(task)], [], ["answer: 1"], ["hm", "\x00\U0001f600"]):
            ours, theirs = [await episode_of(environment, bounded, *said) for environment in (here, there)]
            assert [turn.reply for turn in ours.turns] == [turn.reply for turn in theirs.turns]
            assert (ours.verdict, ours.stop) == (theirs.verdict, theirs.stop)
    there.close()


async def test_episodes_side_by_side_do_not_mix(url: str) -> None:
    shared = make_environment(url, {})
    tasks = list(islice(Sum(Sum.Settings()).tasks("train"), 12))
    import copy

    budget = Budget(turns=3, seconds=30)
    bounded = [Task(**{name: getattr(task, name) for name in Task.__slots__} | {"budget": budget}) for task in tasks]
    episodes = await asyncio.gather(
        *(episode_of(copy.copy(shared), task, *(m.content for m in shared.gold(task))) for task in bounded)
    )
    assert {episode.verdict.outcome for episode in episodes} == {"correct"}
    shared.close()


async def test_an_exception_of_the_remote_step_is_invalid_and_names_url_and_reason(url: str) -> None:
    environment = make_environment(url, {})
    before = CountingSum.steps
    episode = await episode_of(environment, next(iter(environment.tasks("train"))), "break")
    assert episode.verdict.outcome == "invalid"
    assert f"step: RemoteError('{url}/step: answered 500" in episode.verdict.reason
    assert "ZeroDivisionError" in episode.verdict.reason
    assert CountingSum.steps == before + 1, "a fault of the environment's own is not asked for twice"
    environment.close()


def test_a_request_that_comes_twice_is_one_step(url: str) -> None:
    task = next(iter(Sum(Sum.Settings()).tasks("train")))
    before = CountingSum.steps
    with httpx.Client(base_url=url) as client:
        for _ in range(2):
            begun = client.post("/reset", json={"episode": "twice", "task": json.loads(to_json_line(task))})
            assert begun.status_code == 200
        step = {"episode": "twice", "turn": 0, "message": {"role": "assistant", "content": "hm"}}
        first, second = client.post("/step", json=step), client.post("/step", json=step)
        assert first.json() == second.json()
        assert first.json()["messages"][0]["content"] == "Your answer, 1?"
        assert CountingSum.steps == before + 1
        assert client.post("/step", json=step | {"turn": 2}).status_code == 409
        assert client.post("/step", json=step | {"episode": "unheard of"}).status_code == 404
        other = json.loads(to_json_line(make_task(7)))
        assert client.post("/reset", json={"episode": "twice", "task": other}).status_code == 409


def test_the_schema_is_served(url: str) -> None:
    schema = httpx.get(f"{url}/openapi.json").json()
    assert set(schema["paths"]) == {"/", "/tasks/{split}", "/reset", "/step", "/verify", "/gold"}
    assert {"Task", "Message", "Reply", "Verdict"} <= set(schema["components"]["schemas"])
    assert httpx.post(f"{url}/step", json={"episode": 7}).status_code == 422


@pytest.mark.parametrize(
    ("answer", "reason", "num_requests"),
    [
        (slow, "no answer within 0.5 s, at each of 2 tries", 2),
        (dead_in_the_middle, "RemoteProtocolError: .*, at each of 2 tries", 2),
        (hung_up, "(RemoteProtocolError|ReadError): .*, at each of 2 tries", 2),
        (lambda handler: handler.reply(200, b"<html>hello"), "answered no Messages: the body: Invalid JSON", 1),
        (lambda handler: handler.reply(200, b'{"messages": 7}'), "answered no Messages: messages: ", 1),
        (lambda handler: handler.reply(418, b"teapot"), "answered 418: teapot", 1),
        (lambda handler: handler.reply(302, b""), "answered 302", 1),
        (lambda handler: handler.reply(503, b"busy"), "answered 503, at each of 2 tries", 2),
    ],
)
async def test_a_fault_on_the_way_is_an_invalid_episode_that_names_the_url(
    faulty: Any, answer: Answer, reason: str, num_requests: int
) -> None:
    import re

    url, handler = faulty(answer)
    environment = make_environment(url, QUICK)
    episode = await episode_of(environment, make_task(), "hm")
    assert episode.verdict.outcome == "invalid"
    assert re.search(rf"reset: RemoteError\(.{url}/reset: {reason}", episode.verdict.reason), episode.verdict.reason
    assert handler.num_requests == num_requests
    verdict = environment.verifier().verify(make_task(), make_task().prompt)
    assert verdict.outcome == "invalid"
    assert verdict.reason.startswith(f"RemoteError: {url}/verify: ")
    with pytest.raises(RemoteError, match=f"{url}/tasks/train"):
        list(environment.tasks("train"))
    with pytest.raises(ConfigError, match=f"no gold answer: {url}/gold"):
        environment.gold(make_task())
    environment.close()


def test_a_server_that_comes_back_is_asked_again(faulty: Any) -> None:
    def busy_at_first(handler: Faulty) -> None:
        handler.reply(503 if type(handler).num_requests < 3 else 200, b'{"messages": []}')

    url, handler = faulty(busy_at_first)
    environment = make_environment(url, {"retries": 2})
    assert environment.reset(make_task()) == ()
    assert handler.num_requests == 3
    environment.close()


def test_a_verdict_that_contradicts_itself_is_refused(faulty: Any) -> None:
    body = {"outcome": "incorrect", "reward": 1.0, "reason": "", "verifier": "v", "version": "1"}
    url, _ = faulty(lambda handler: handler.reply(200, json.dumps(body).encode()))
    environment = make_environment(url, QUICK)
    verdict = environment.verifier().verify(make_task(), make_task().prompt)
    assert verdict.outcome == "invalid"
    assert "carries reward -1.0, not 1.0" in verdict.reason
    environment.close()


def test_a_url_without_an_environment_is_a_plugin_error(faulty: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PluginError, match=f"no environment is served at http://127.0.0.1:{port}: .*rlvr env serve"):
        load_environment(f"http://127.0.0.1:{port}")


def test_another_protocol_is_refused(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = faulty(slow)
    monkeypatch.setattr(handler, "do_GET", lambda self: self.reply(200, b'{"name": "x", "protocol": 2}'))
    with pytest.raises(PluginError, match="speaks protocol 2, and this rlvr 1"):
        load_environment(url)


def test_a_port_that_is_taken_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--port \d+: Address already in use; choose another, or --port 0"):
        serve("math_solver", {}, host="127.0.0.1", port=int(url.rpartition(":")[2]))


def test_unknown_settings_of_the_client_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="known settings: timeout_seconds, retries"):
        make_environment(url, {"levels": [1]})


def test_a_connection_leaves_no_socket_behind(url: str) -> None:
    import psutil

    port = int(url.rpartition(":")[2])

    def ends() -> int:
        """Ours: the server's, in this process too, are closed when its thread gets to it."""
        return sum(bool(socket.raddr) and socket.raddr.port == port for socket in psutil.Process().net_connections())

    connection = Connection(url, timeout_seconds=5, retries=0)
    connection.get("/", dict)
    assert ends() == 1
    connection.close()
    assert ends() == 0
