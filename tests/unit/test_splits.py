from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import NamedTuple

import pytest

from rlvr import splits
from rlvr.errors import ConfigError
from rlvr.splits import HELD_OUT_EVERY, split_of, tasks_of
from rlvr.types import Split, Task
from tests.fakes import make_task


class Problem(NamedTuple):
    text: str


def tasks(split: Split, *, num_held_out: int = 2, texts: str = "aabbc") -> Iterator[Task]:
    problems = map(Problem, cycle(texts))
    return tasks_of(
        problems,
        lambda key, problem: make_task(key, environment=problem.text),
        split=split,
        num_train=6,
        num_held_out=num_held_out,
        source="test",
    )


def test_training_takes_problems_as_they_come() -> None:
    assert [task.id for task in tasks("train")] == [f"{t}/train/{key}" for key, t in enumerate("aabbca")]


def test_held_out_problems_are_distinct_and_as_many_as_asked_for() -> None:
    assert [task.id for task in tasks("held_out", num_held_out=3)] == ["a/train/0", "b/train/1", "c/train/2"]


def test_too_few_distinct_problems_are_an_error_that_names_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "PATIENCE", 20)
    with pytest.raises(ConfigError, match="test gave only 3 distinct held-out problems, and num_held_out = 4"):
        list(tasks("held_out", num_held_out=4))


def test_a_share_of_texts_is_held_out_whatever_their_white_space() -> None:
    texts = [f"What is {n} + 1?" for n in range(4000)]
    held_out = [text for text in texts if split_of(text) == "held_out"]
    assert len(held_out) == pytest.approx(len(texts) / HELD_OUT_EVERY, rel=0.15)
    assert all(split_of(text.replace(" ", " \n ")) == split_of(text) for text in islice(texts, 200))
