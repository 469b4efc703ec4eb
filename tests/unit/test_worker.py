"""The supervisor of the verifiers' worker processes: whose work it was at, and what counts against its limit."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from verifiers import worker
from verifiers.worker import WorkerLostError, WorkerPool, WorkerTimeoutError


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool("tests.staged_worker")
    yield pool
    pool.close()


def test_a_worker_is_used_again_and_gone_once_it_was_late(pool: WorkerPool) -> None:
    first = pool.call({"first": ""}, 5)
    assert pool.call({"first": ""}, 5) == first
    with pytest.raises(WorkerTimeoutError):
        pool.call({"first": "spin 60"}, 0.1)
    assert not psutil.pid_exists(first)
    assert pool.call({"first": ""}, 5) != first


def test_each_stage_has_its_own_limit_and_the_error_names_the_stage(pool: WorkerPool) -> None:
    assert pool.call({"first": "spin 0.1", "second": "spin 0.3", "limit": 5}, 0.25)
    with pytest.raises(WorkerTimeoutError) as late:
        pool.call({"first": "", "second": "spin 60", "limit": 0.1}, 60)
    assert late.value.stage == 1
    with pytest.raises(WorkerTimeoutError) as late:
        pool.call({"first": "spin 60", "second": "", "limit": 60}, 0.1)
    assert late.value.stage == 0
    for request, stage in (({"first": "die"}, 0), ({"first": "", "second": "die", "limit": 60}, 1)):
        with pytest.raises(WorkerLostError) as lost:
            pool.call(request, 60)
        assert lost.value.stage == stage


def test_waiting_for_the_processor_does_not_count(pool: WorkerPool) -> None:
    assert pool.call({"first": "sleep 0.5"}, 0.1)


def test_a_worker_that_stands_still_is_lost_and_not_late(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STALLED", 0.3)
    with pytest.raises(WorkerLostError, match="stood still"):
        pool.call({"first": "stop"}, 0.1)
