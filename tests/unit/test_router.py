"""A group stays with one engine, which holds its prefix; a new group goes to the engine that is least busy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rlvr.inference import router as router_module
from rlvr.inference.router import Router
from rlvr.types import Completion, SamplingParams
from tests.fakes import make_completion

PARAMS = SamplingParams(max_tokens=4)


class FakeEngine:
    """Answers when it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []
        self.release = asyncio.Event()

    async def __call__(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        assert params is PARAMS
        self.prompts.append(tuple(prompt_ids))
        await self.release.wait()
        return make_completion(prompt_ids)


async def begin(router: Router, group: str, prompt: Sequence[int] = (1,)) -> asyncio.Task[Completion]:
    """A call that is under way."""
    call = asyncio.create_task(router.sample(prompt, PARAMS, group=group))
    await asyncio.sleep(0)
    return call


def counts(engines: Sequence[FakeEngine]) -> list[int]:
    return [len(engine.prompts) for engine in engines]


async def test_a_group_stays_with_its_engine_however_busy_that_is() -> None:
    engines = [FakeEngine(), FakeEngine()]
    router = Router(engines)
    calls = [await begin(router, "a") for _ in range(5)]
    assert counts(engines) == [5, 0]
    engines[0].release.set()
    await asyncio.gather(*calls)
    later = await begin(router, "a")
    assert counts(engines) == [6, 0], "also when it comes back for another turn"
    await later


async def test_a_new_group_goes_to_the_least_busy_engine() -> None:
    engines = [FakeEngine(), FakeEngine(), FakeEngine()]
    router = Router(engines)
    for group in ("a", "a", "b", "c", "c", "d"):
        await begin(router, group)
    # a, a on 0; b on 1; c, c on 2; d on 1, which runs fewest.
    assert counts(engines) == [2, 2, 2]


async def test_calls_that_ended_no_longer_count_as_busy_whether_they_succeeded_failed_or_were_given_up() -> None:
    engines = [FakeEngine(), FakeEngine()]

    class BrokenEngine(FakeEngine):
        async def __call__(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
            self.prompts.append(tuple(prompt_ids))
            raise RuntimeError("dead")

    engines[0] = BrokenEngine()
    router = Router(engines)
    with pytest.raises(RuntimeError, match="dead"):
        await router.sample((1,), PARAMS, group="a")
    with pytest.raises(RuntimeError, match="dead"):
        await router.sample((1,), PARAMS, group="b")
    busy = await begin(router, "c")
    assert counts(engines) == [3, 0]
    assert busy.exception() is not None

    engines = [FakeEngine(), FakeEngine()]
    router = Router(engines)
    given_up = await begin(router, "a")
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await begin(router, "b")
    assert counts(engines) == [2, 0]
    await begin(router, "c")
    assert counts(engines) == [2, 1]


async def test_prompt_and_completion_pass_through_unchanged() -> None:
    engine = FakeEngine()
    engine.release.set()
    completion = await Router([engine]).sample((4, 5, 6), PARAMS, group="a")
    assert engine.prompts == [(4, 5, 6)]
    assert completion.token_ids == (4, 5, 6)


async def test_only_so_many_groups_are_remembered_and_the_least_recent_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "_GROUPS_REMEMBERED", 2)
    engines = [FakeEngine(), FakeEngine()]
    router = Router(engines)
    for group in ("a", "b", "a", "a", "c"):  # on 0, 1, 0, 0, 1; then b, the least recent, is forgotten
        await begin(router, group)
    assert counts(engines) == [3, 2]
    await begin(router, "a")
    assert counts(engines) == [4, 2], "a is remembered: it stays where it is busier"
    for _ in range(3):
        await begin(router, "c")
    assert counts(engines) == [4, 5]
    await begin(router, "b")
    assert counts(engines) == [5, 5], "b is asked anew, and 0 is less busy now"
