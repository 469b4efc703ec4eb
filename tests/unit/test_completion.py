"""Thoughts keep to their budget to the token, and what was forced is known, whatever the policy writes."""

from __future__ import annotations

import itertools
import random

import pytest

from rlvr.rollout.budget import Allowance
from rlvr.rollout.completion import ThoughtMarks, complete, scan
from rlvr.types import Completion, WeightSpan
from tests.fakes import ScriptedSampler, StreamSampler, make_completion

EOS, START, END, WORD, SO = range(5)
PROMPT = (WORD, START)
MARKS = ThoughtMarks(start=START, end=END, closing=(END, SO))


async def run(
    stream: list[int],
    *,
    max_tokens: int = 100,
    thinking: int | None = None,
    answer: int = 0,
    thought_open: bool = True,
    marks: ThoughtMarks | None = MARKS,
) -> tuple[Completion, StreamSampler]:
    sampler = StreamSampler([*stream, *[WORD] * 200], eos=EOS)
    completion = await complete(
        PROMPT,
        allowance=Allowance(max_tokens=max_tokens, thinking_tokens=thinking, answer_tokens=answer),
        marks=marks,
        thought_open=thought_open,
        sampler=sampler,
        group="g",
        temperature=0.7,
        seed=lambda call: 1000 + call,
    )
    return completion, sampler


def one_by_one(
    stream: list[int], *, max_tokens: int, thinking: int | None, answer: int, thought_open: bool
) -> tuple[list[int], list[int], str]:
    """The rule, told token by token: ids, loss mask, finish reason."""
    ids: list[int] = []
    mask: list[int] = []
    thought = 0
    wishes = iter(stream)
    limited = thinking is not None or answer > 0
    while len(ids) < max_tokens:
        spent = thinking is not None and thought >= thinking
        crowded = answer > 0 and max_tokens - len(ids) - len(MARKS.closing) - answer < 1
        if limited and thought_open and (spent or crowded):
            forced = MARKS.closing[: max_tokens - len(ids)]
            ids += forced
            mask += [0] * len(forced)
            thought_open = False
            continue
        token = next(wishes)
        ids.append(token)
        mask.append(1)
        if token == EOS:
            return ids, mask, "stop"
        if thought_open and token != END:
            thought += 1
        else:
            thought_open = token == START
    return ids, mask, "length"


async def test_every_short_stream_is_completed_by_the_rule() -> None:
    rng = random.Random(0)
    forced = 0
    for stream in itertools.product((EOS, START, END, WORD), repeat=6):
        for _ in range(3):
            limits = {
                "max_tokens": rng.randint(1, 9),
                "thinking": rng.choice([None, 0, 1, 2, 4]),
                "answer": rng.choice([0, 0, 1, 3]),
                "thought_open": rng.random() < 0.7,
            }
            ids, mask, reason = one_by_one([*stream, *[WORD] * 20], **limits)  # type: ignore[arg-type]
            completion, sampler = await run(list(stream), **limits)  # type: ignore[arg-type]
            assert completion.token_ids == tuple(ids), (stream, limits)
            assert completion.loss_mask == tuple(mask), (stream, limits)
            assert completion.finish_reason == reason
            assert all(call.params.max_tokens >= 1 for call in sampler.calls)
            forced += 0 in mask
    assert forced > 1000


@pytest.mark.parametrize("budget", [0, 1, 5])
async def test_a_thought_gets_its_budget_to_the_token_and_the_closing_carries_no_loss(budget: int) -> None:
    completion, _ = await run([WORD] * 20 + [EOS], thinking=budget, max_tokens=30)
    assert completion.token_ids[: budget + 2] == (WORD,) * budget + MARKS.closing
    assert completion.loss_mask[: budget + 3] == (1,) * budget + (0, 0, 1)
    assert completion.num_thinking_tokens == budget


async def test_a_thought_that_closes_by_itself_is_left_alone() -> None:
    completion, sampler = await run([WORD, END, WORD, EOS], thinking=8)
    assert (completion.token_ids, set(completion.loss_mask)) == ((WORD, END, WORD, EOS), {1})
    assert len(sampler.calls) == 1, "no second call where one was enough"


async def test_without_any_limit_one_plain_call_is_made() -> None:
    for marks in (MARKS, None):
        completion, sampler = await run([WORD] * 5 + [END, START, WORD, EOS], marks=marks)
        assert len(sampler.calls) == 1
        assert sampler.calls[0].params.stop_token_ids == ()
        assert completion.finish_reason == "stop"
    assert (await run([WORD] * 9, thinking=2, marks=None))[0].loss_mask == (1,) * 100


async def test_a_second_thought_has_what_the_first_left() -> None:
    completion, _ = await run([WORD, END, WORD, START, WORD, WORD, EOS], thinking=2, max_tokens=10)
    assert completion.token_ids[:8] == (WORD, END, WORD, START, WORD, END, SO, WORD)
    assert completion.num_thinking_tokens == 2


async def test_the_answer_keeps_its_tokens_also_where_thinking_is_unlimited() -> None:
    completion, _ = await run([WORD] * 50, max_tokens=20, answer=5)
    assert completion.token_ids == (WORD,) * 13 + MARKS.closing + (WORD,) * 5
    late, _ = await run([WORD] * 50, max_tokens=4, answer=5)
    assert late.token_ids == (*MARKS.closing, WORD, WORD), "too late for all of them: the answer takes what there is"


async def test_each_call_continues_all_that_stands_and_draws_with_a_seed_of_its_own() -> None:
    completion, sampler = await run([WORD] * 3 + [START, EOS], thinking=3)
    assert [call.prompt_ids for call in sampler.calls] == [
        PROMPT,
        (*PROMPT, WORD, WORD, WORD, *MARKS.closing),
        (*PROMPT, WORD, WORD, WORD, *MARKS.closing, START, *MARKS.closing),
    ]
    assert [call.params.seed for call in sampler.calls] == [1000, 1001, 1002]
    assert {call.params.temperature for call in sampler.calls} == {0.7}
    assert {call.group for call in sampler.calls} == {"g"}
    assert completion.finish_reason == "stop"


async def test_versions_cover_what_was_sampled_and_drafts_add_up() -> None:
    completion, _ = await run([WORD] * 3 + [EOS], thinking=2)
    assert completion.weight_spans == (WeightSpan(1, 0, 2), WeightSpan(2, 4, 6))
    assert (completion.num_draft_tokens, completion.num_accepted_tokens) == (6, 4)


async def test_spans_of_one_version_that_touch_are_one() -> None:
    parts = [make_completion((WORD, END), finish_reason="length"), make_completion((WORD, EOS), versions=(0, 1))]
    completion = await complete(
        PROMPT,
        allowance=Allowance(max_tokens=9, thinking_tokens=2),
        marks=MARKS,
        thought_open=True,
        sampler=ScriptedSampler(*parts),
        group="g",
        temperature=1.0,
        seed=lambda call: call,
    )
    assert completion.weight_spans == (WeightSpan(0, 0, 3), WeightSpan(1, 3, 4))


async def test_an_aborted_call_ends_the_completion() -> None:
    completion = await complete(
        PROMPT,
        allowance=Allowance(max_tokens=9, thinking_tokens=5),
        marks=MARKS,
        thought_open=True,
        sampler=ScriptedSampler(make_completion((WORD,), finish_reason="abort")),
        group="g",
        temperature=1.0,
        seed=lambda call: call,
    )
    assert (completion.finish_reason, completion.token_ids) == ("abort", (WORD,))


async def test_an_engine_that_stops_short_of_what_it_was_asked_is_not_asked_again() -> None:
    sampler = ScriptedSampler(make_completion((WORD,), finish_reason="length"))
    completion = await complete(
        PROMPT,
        allowance=Allowance(max_tokens=9, thinking_tokens=5),
        marks=MARKS,
        thought_open=True,
        sampler=sampler,
        group="g",
        temperature=1.0,
        seed=lambda call: call,
    )
    assert (completion.finish_reason, len(sampler.calls)) == ("length", 1)


@pytest.mark.parametrize(
    ("tokens", "opened", "expected"),
    [
        ((WORD, END, WORD), True, (1, False)),
        ((WORD, START), True, (2, True)),
        ((END, START, WORD), False, (1, True)),
        ((), True, (0, True)),
        ((START, START, END, END), False, (1, False)),
    ],
)
def test_marks_are_not_counted_as_thought(tokens: tuple[int, ...], opened: bool, expected: tuple[int, bool]) -> None:
    assert scan(tokens, MARKS, thought_open=opened) == expected
