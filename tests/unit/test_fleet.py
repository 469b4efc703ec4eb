"""An update that breaks engines costs those engines, once; what they were sampling is played again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlvr.errors import EngineLost, UpdateFailed, WeightSyncError
from rlvr.fleet import Fleet
from rlvr.inference.engine import UpdateReport
from rlvr.rollout.worker import Order
from rlvr.weights import Checksums
from tests.fakes import make_task

PUBLISHED = Checksums(policy=7, draft=8)
PROBE = (5, 6, 7)
SCORES = [0.0, -1.0, -2.0]
ORDER = Order(
    series="train-000",
    environment=0,
    ticket=3,
    task=make_task(3),
    group_size=2,
    temperature=1.0,
    birth_version=0,
    seed=0,
)


class FakeEngine:
    """Fails the first `num_failures` updates; samples nothing while it is half written."""

    def __init__(self, index: int, log: list[str], *, num_failures: int = 0) -> None:
        self.name = f"engine {index}"
        self.log = log
        self.num_failures = num_failures
        self.whole = True
        self.weights: Any = None

    def to_publish(self, weights: Any) -> None:
        self.weights = weights

    async def update(self) -> UpdateReport:
        self.log.append(f"{self.name} takes {self.weights}")
        await asyncio.sleep(0)
        self.whole = False
        if self.num_failures:
            self.num_failures -= 1
            raise WeightSyncError("torn")
        self.whole = True
        return UpdateReport(
            version=2, checksums=PUBLISHED, paused_seconds=0, total_seconds=0, phases={}, loading={}
        )  # fmt: skip

    async def restart(self) -> None:
        self.log.append(f"{self.name} restarts")

    async def fall_asleep(self) -> None:
        self.log.append(f"{self.name} sleeps")

    async def wake_up(self) -> None:
        self.log.append(f"{self.name} wakes up")

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        assert self.whole
        return SCORES[1:]


class FakeLearner:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.num_offers = 0

    def weights(self, version: int) -> tuple[str, Checksums]:
        self.num_offers += 1
        self.log.append("learner offers")
        return f"{version}, offer {self.num_offers}", PUBLISHED

    async def checksums(self, reference: Checksums) -> Checksums:
        return reference

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        return SCORES

    async def value(self, reference: list[float]) -> list[float]:
        return reference

    async def abandon(self) -> None:
        self.log.append("learner leaves")

    async def connect(self, engines: Sequence[FakeEngine]) -> None:
        self.log.append("all meet")


class FakeWorker:
    def __init__(self, log: list[str], play: Callable[[], Any] = lambda: "group") -> None:
        self.log = log
        self.num_playing = 0
        self.orders: list[Order] = []
        self._play = play

    async def play(self, order: Order) -> Any:
        self.orders.append(order)
        await asyncio.sleep(0)
        return self._play()

    async def replace(self, index: int, engine: FakeEngine) -> None:
        assert engine.whole, "no worker may sample on it yet"
        self.log.append(f"worker calls another engine {index}")


def make_fleet(engines: Sequence[FakeEngine], worker: FakeWorker, log: list[str], **options: bool) -> Fleet:
    parts: Any = (engines, [worker], FakeLearner(log))
    return Fleet(*parts, probe_ids=PROBE, probe_tolerance=1e-3, **options)


async def test_an_update_that_succeeds_restarts_nothing() -> None:
    log: list[str] = []
    fleet = make_fleet([FakeEngine(0, log), FakeEngine(1, log)], FakeWorker(log), log)
    report = await fleet.publish(2)
    assert report.num_restarted == 0
    assert log == ["learner offers", "engine 0 takes 2, offer 1", "engine 1 takes 2, offer 1"]


async def test_engines_that_failed_are_replaced_and_all_take_the_version_whole_again() -> None:
    log: list[str] = []
    engines = [FakeEngine(0, log), FakeEngine(1, log, num_failures=1)]
    report = await make_fleet(engines, FakeWorker(log), log).publish(2)
    assert report.num_restarted == 1
    assert log[3:] == [
        "learner leaves",
        "engine 1 restarts",
        "all meet",
        "learner offers",
        "engine 0 takes 2, offer 2",
        "engine 1 takes 2, offer 2",
        "worker calls another engine 1",
    ]


async def test_a_version_that_fails_again_ends_the_run_and_no_worker_meets_the_half_of_it() -> None:
    log: list[str] = []
    engines = [FakeEngine(0, log, num_failures=1), FakeEngine(1, log, num_failures=2)]
    with pytest.raises(UpdateFailed) as caught:
        await make_fleet(engines, FakeWorker(log), log).publish(2)
    assert caught.value.engines == {"engine 1"}
    assert log.count("engine 1 restarts") == 1
    assert not any("another engine" in line for line in log)


async def test_every_version_may_be_saved_once() -> None:
    log: list[str] = []
    engine = FakeEngine(0, log)
    fleet = make_fleet([engine], FakeWorker(log), log)
    for version in (2, 3):
        engine.num_failures = 1
        assert (await fleet.publish(version)).num_restarted == 1


def losing(times: int) -> Callable[[], str]:
    """What a worker says whose engine is lost so many times."""
    losses = iter(range(times))

    def play() -> str:
        if next(losses, None) is not None:
            raise EngineLost("engine 0", "SIGKILL")
        return "group"

    return play


async def test_a_group_on_an_engine_that_an_update_replaces_is_played_again_from_its_ticket() -> None:
    log: list[str] = []
    worker = FakeWorker(log, losing(1))
    fleet = make_fleet([FakeEngine(0, log, num_failures=1)], worker, log)
    publishing = asyncio.create_task(fleet.publish(2))
    await asyncio.sleep(0)
    group: Any = await fleet.play(ORDER)
    assert group == "group"
    assert publishing.done()
    assert worker.orders == [ORDER, ORDER]


async def test_a_loss_that_is_heard_of_after_the_engine_was_replaced_is_made_good_as_well() -> None:
    log: list[str] = []
    heard = asyncio.Event()

    class Late(FakeWorker):
        async def play(self, order: Order) -> Any:
            if not heard.is_set():
                await heard.wait()
                raise EngineLost("engine 0", "SIGKILL")
            return "group"

    fleet = make_fleet([FakeEngine(0, log, num_failures=1)], Late(log), log)
    playing = asyncio.create_task(fleet.play(ORDER))
    await asyncio.sleep(0)
    await fleet.publish(2)
    heard.set()
    group: Any = await playing
    assert group == "group"


@pytest.mark.parametrize("publishes", [False, True], ids=["no update under way", "an update that succeeds"])
async def test_an_engine_that_no_update_replaces_ends_the_run(publishes: bool) -> None:
    log: list[str] = []
    fleet = make_fleet([FakeEngine(0, log)], FakeWorker(log, losing(1)), log)
    publishing = asyncio.create_task(fleet.publish(2)) if publishes else None
    await asyncio.sleep(0)
    with pytest.raises(EngineLost):
        await fleet.play(ORDER)
    if publishing:
        await publishing


@pytest.mark.parametrize("sleep", [False, True])
async def test_engines_that_sleep_take_the_version_first_and_wake_up_whatever_the_step_does(sleep: bool) -> None:
    log: list[str] = []
    fleet = make_fleet([FakeEngine(0, log), FakeEngine(1, log)], FakeWorker(log), log, sleep=sleep)
    publishing = asyncio.create_task(fleet.publish(2))
    await asyncio.sleep(0)

    async def step() -> None:
        async with fleet.asleep():
            assert publishing.done() == sleep
            log.append("step")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await step()
    await publishing
    slept = ["engine 0 sleeps", "engine 1 sleeps", "step", "engine 0 wakes up", "engine 1 wakes up"]
    assert log[-5:] == slept if sleep else not set(slept) - {"step"} & set(log)
