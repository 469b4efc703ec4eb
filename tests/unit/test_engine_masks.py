"""A token that a thinking budget forced is found exactly, though vLLM does not mark it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from rlvr.inference.engine import forced_positions

START, END, WORD = 1, 2, 3
ALPHABET = (START, END, WORD)


def play(prompt: Sequence[int], wishes: Sequence[int], budget: int) -> tuple[list[int], set[int]] | None:
    """What an engine makes of a policy's wishes, token by token, and where it forced any.

    An open thought closes by force once it holds `budget` tokens. `None` where the rule leaves the case open: the
    prompt's thought is longer than the budget already.
    """
    thought: int | None = None  # tokens in the open thought
    for token in prompt:
        thought = 0 if token == START else None if token == END or thought is None else thought + 1
    if thought is not None and thought > budget:
        return None
    completion: list[int] = []
    forced: set[int] = set()
    for position, wish in enumerate(wishes):
        if thought is not None and thought == budget:
            completion.append(END)
            forced.add(position)
            thought = None
            continue
        completion.append(wish)
        if thought is not None:
            if wish == END:
                thought = None
            else:
                thought += 1
        elif wish == START:
            thought = 0
    return completion, forced


def prompts() -> list[tuple[int, ...]]:
    return [prompt for length in range(4) for prompt in itertools.product(ALPHABET, repeat=length)]


@pytest.mark.parametrize("budget", [0, 1, 2, 3])
def test_every_short_completion_under_every_short_prompt(budget: int) -> None:
    seen = {"forced": 0, "free": 0}
    for prompt in prompts():
        for wishes in itertools.product(ALPHABET, repeat=5):
            played = play(prompt, wishes, budget)
            if played is None:
                continue
            completion, forced = played
            for length in range(len(completion) + 1):  # a completion may end anywhere
                expected = {position for position in forced if position < length}
                found = forced_positions(prompt, completion[:length], budget, think_start=START, think_end=END)
                assert found == expected, (prompt, wishes, completion[:length])
                seen["forced" if expected else "free"] += 1
    assert min(seen.values()) > 1000


def test_a_thought_that_closes_by_itself_one_token_early_is_not_forced() -> None:
    assert forced_positions((START,), (WORD, END, WORD), 2, think_start=START, think_end=END) == set()
    assert forced_positions((START,), (WORD, WORD, END), 2, think_start=START, think_end=END) == {2}


def test_a_budget_of_nothing_forces_the_first_token() -> None:
    assert forced_positions((START,), (END, WORD), 0, think_start=START, think_end=END) == {0}


def test_a_policy_without_a_mark_for_the_beginning_is_never_forced() -> None:
    assert forced_positions((WORD,), (WORD, END), 1, think_start=None, think_end=END) == set()


def test_a_thought_longer_than_its_budget_means_that_nothing_was_forced() -> None:
    # As when the engine could not force at all: a word stands where the end would.
    assert forced_positions((START,), (WORD, WORD, WORD, END), 2, think_start=START, think_end=END) == set()
