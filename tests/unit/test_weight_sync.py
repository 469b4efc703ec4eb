"""A version counts as published only when every engine holds its bytes and computes with them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import pytest

from rlvr.errors import ComponentDied, DeadlineExceeded, UpdateFailed, WeightSyncError
from rlvr.inference.engine import UpdateReport
from rlvr.weight_sync import Probe, SyncReport, check, publish
from rlvr.weights import Checksums

PUBLISHED = Checksums(policy=0xABCDEF, draft=0x123456)
PROBE = Probe(token_ids=(5, 6, 7), expected=(-1.0, -2.0), tolerance=1e-3)


class FakeEngine:
    """Reports `checksums` and answers the probe with `logprobs`; counts who is in `update` at the same time."""

    updating = 0
    most_updating = 0

    def __init__(
        self,
        name: str = "engine 0",
        *,
        checksums: Checksums = PUBLISHED,
        logprobs: Sequence[float] = PROBE.expected,
        seconds: tuple[float, float] = (0.1, 0.2),
        depths: Mapping[int, int] | None = None,
        error: Exception | None = None,
    ) -> None:
        self.name = name
        self._checksums, self._logprobs, self._seconds, self._error = checksums, logprobs, seconds, error
        self._depths = dict(depths or {})
        self.asked: list[tuple[int, ...]] = []
        self.updated = False

    async def update(self) -> UpdateReport:
        FakeEngine.updating += 1
        FakeEngine.most_updating = max(FakeEngine.most_updating, FakeEngine.updating)
        await asyncio.sleep(0)
        FakeEngine.updating -= 1
        if self._error:
            raise self._error
        self.updated = True
        return UpdateReport(
            version=4,
            checksums=self._checksums,
            paused_seconds=self._seconds[0],
            total_seconds=self._seconds[1],
            phases={},
            loading={},
            draft_depths=self._depths,
        )

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        assert self.updated, "the probe must meet the new weights"
        self.asked.append(tuple(token_ids))
        return list(self._logprobs)


async def run(*engines: FakeEngine) -> SyncReport:
    probe: asyncio.Future[Probe] = asyncio.get_running_loop().create_future()
    probe.set_result(PROBE)
    sent: asyncio.Future[Checksums] = asyncio.get_running_loop().create_future()
    sent.set_result(PUBLISHED)
    return await publish(4, sent, engines, probe)


async def test_a_sync_reports_the_worst_over_all_engines() -> None:
    engines = [
        FakeEngine(logprobs=(-1.0005, -2.0002), seconds=(0.3, 0.4)),
        FakeEngine("engine 1", logprobs=(-1.0, -2.0), seconds=(0.1, 0.9)),
    ]
    report = await run(*engines)
    assert report.paused_seconds == 0.3
    assert report.total_seconds == 0.9
    assert report.probe_error == pytest.approx(0.0005)
    assert [engine.asked for engine in engines] == [[PROBE.token_ids], [PROBE.token_ids]]


async def test_a_syncs_metrics_are_its_times_how_it_went_and_the_draft_depths_of_engines_that_measure() -> None:
    report = await run(FakeEngine(depths={1: 3, 64: 1}), FakeEngine("engine 1", depths={1: 3, 64: 0}))
    assert report.metrics == {
        "sync/paused_seconds": 0.1,
        "sync/total_seconds": 0.2,
        "sync/probe_error": 0.0,
        "sync/restarted_engines": 0,
        "sync/in_place": 0.0,
        "draft/depth/1": 3.0,
        "draft/depth/64": 0.5,
    }
    assert not any("draft" in name for name in (await run(FakeEngine())).metrics)


async def test_all_engines_are_updated_at_once() -> None:
    FakeEngine.most_updating = 0
    await run(*(FakeEngine(f"engine {index}") for index in range(3)))
    assert FakeEngine.most_updating == 3


@pytest.mark.parametrize("part", ["policy", "draft"])
async def test_other_bytes_in_any_engine_are_an_error_that_names_the_engine_the_part_and_both_checksums(
    part: str,
) -> None:
    wrong = PUBLISHED._replace(**{part: 0xBAD})
    with pytest.raises(WeightSyncError) as caught:
        await run(FakeEngine("engine 0"), FakeEngine("engine 1", checksums=wrong))
    message = str(caught.value)
    assert message.startswith(f"engine 1 loaded other {part} weights than version 4")
    assert "checksum 00000bad" in message
    assert f"published {getattr(PUBLISHED, part):08x}" in message


@pytest.mark.parametrize(
    ("answer", "figure"),
    [
        ((-1.0, -2.01), "1.00e-02"),
        ((-0.99, -2.0), "1.00e-02"),
        ((-1.0, math.nan), "nan"),
        ((math.nan, -2.0), "nan"),
        ((-math.inf, -2.0), "inf"),
    ],
)
async def test_an_engine_that_computes_something_else_is_an_error_with_engine_and_figures(
    answer: tuple[float, ...], figure: str
) -> None:
    with pytest.raises(WeightSyncError) as caught:
        await run(FakeEngine("engine 0"), FakeEngine("engine 1", logprobs=answer))
    message = str(caught.value)
    assert message.startswith("engine 1 disagrees with the learner on version 4")
    assert f"off by {figure}, allowed are 1e-03 (inference.probe_tolerance)" in message


async def test_an_engine_that_cannot_update_ends_the_sync_with_its_own_error() -> None:
    with pytest.raises(WeightSyncError, match="not taken"):
        await run(FakeEngine("engine 0", error=WeightSyncError("version 4 was not taken")), FakeEngine("engine 1"))


class StuckEngine(FakeEngine):
    """Waits in the transfer for ever."""

    async def update(self) -> UpdateReport:
        await asyncio.Event().wait()
        raise AssertionError


async def test_engines_that_wait_for_one_that_failed_count_as_failed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.weight_sync.GRACE_SECONDS", 0.05)
    died = ComponentDied("engine 1", "SIGKILL")
    with pytest.raises(UpdateFailed) as caught:
        await asyncio.wait_for(
            run(FakeEngine("engine 0"), FakeEngine("engine 1", error=died), StuckEngine("engine 2")), 5
        )
    assert caught.value.engines == {"engine 1", "engine 2"}
    assert "engine 1: ComponentDied: engine 1 died:\nSIGKILL" in str(caught.value)
    assert "engine 2: no answer 0 s after another had failed" in str(caught.value)


async def failing(error: Exception) -> Checksums:
    await asyncio.sleep(0)
    raise error


async def probed() -> Probe:
    return PROBE


async def test_a_learner_that_waited_for_a_failed_engine_is_not_the_cause() -> None:
    late = DeadlineExceeded("learner rank 0 to send its weights", 5)
    with pytest.raises(UpdateFailed) as caught:
        await publish(4, failing(late), [FakeEngine("engine 0", error=late), FakeEngine("engine 1")], probed())
    assert caught.value.engines == {"engine 0"}


async def test_a_learner_that_died_is_the_cause_whatever_became_of_the_engines() -> None:
    died = ComponentDied("learner rank 0", "SIGKILL")
    engine = FakeEngine("engine 0", error=WeightSyncError("the other side is gone"))
    with pytest.raises(ComponentDied, match="learner rank 0 died"):
        await publish(4, failing(died), [engine], probed())


async def test_a_learner_that_cannot_send_ends_the_sync_with_its_own_error() -> None:
    with pytest.raises(WeightSyncError, match="could not send"):
        await publish(4, failing(WeightSyncError("could not send")), [FakeEngine()], probed())


async def test_an_engine_that_dies_before_it_answers_the_probe_did_not_come_through() -> None:
    class Dying(FakeEngine):
        async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
            raise ComponentDied(self.name, "SIGKILL")

    with pytest.raises(UpdateFailed) as caught:
        await run(FakeEngine("engine 0"), Dying("engine 1"))
    assert caught.value.engines == {"engine 1"}


async def test_an_answer_of_another_length_is_never_taken_for_agreement() -> None:
    with pytest.raises(ValueError, match="longer than"):
        await run(FakeEngine(logprobs=(-1.0,)))


async def test_a_check_alone_accepts_what_is_exactly_at_the_tolerance() -> None:
    engine = FakeEngine(logprobs=(-1.5, -2.0))
    engine.updated = True
    probe = Probe(token_ids=(1, 2, 3), expected=(-1.0, -2.0), tolerance=0.5)
    assert await check(4, [engine], probe) == 0.5
