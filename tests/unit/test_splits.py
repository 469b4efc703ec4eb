from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import pytest

from rlvr import splits
from rlvr.errors import ConfigError
from rlvr.splits import HELD_OUT_EVERY, lines_of_file, mixed_levels, split_of, tasks_of
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
    exact = [split_of(text.replace(" ", "  "), exactly=True) for text in texts]
    assert exact != [split_of(text) for text in texts]
    assert [split_of(text, exactly=True) for text in texts] == [split_of(text) for text in texts], "it is even already"


def test_levels_are_mixed_as_often_as_they_are_listed_and_each_goes_on_where_it_was() -> None:
    def drawn(seed: int) -> list[str]:
        found = mixed_levels(
            (1, 1, 1, 3), lambda level: (Problem(f"{level} {n}") for n in range(9999)), seed=seed, split="train"
        )
        return [problem.text for problem in islice(found, 400)]

    texts = drawn(0)
    assert texts == drawn(0) != drawn(1)
    assert Counter(text[0] for text in texts)["1"] == pytest.approx(300, abs=30)
    for level in "13":
        own = [text for text in texts if text[0] == level]
        assert own == [f"{level} {n}" for n in range(len(own))]


def test_lines_keep_their_numbers_and_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("a\n\n  \n\u00e9\n")
    assert list(lines_of_file(file, source="s")) == [(1, "a"), (4, "\u00e9")]
    file.write_bytes(b"\xff")
    for path in (file, tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=rf"s: settings.path = '{path}' cannot be read"):
            list(lines_of_file(path, source="s"))
