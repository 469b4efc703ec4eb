"""An answer that stands in a prompt by chance, or as a choice, is none that was given away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from rlvr.kit.checks.tasks import hidden_reference
from rlvr.kit.subject import Subject
from rlvr.kit.threads import FreshThreads
from rlvr.types import Message, Task
from tests.broken_environments import Sum

RNG = random.Random(0)
WORDS = ["river", "lake", "forest", "cloud", "thunder", "rain", "snow", "window", "door", "kitchen", "table", "lamp"]


def complaints(prompt_and_answer: Callable[[int], tuple[str, str]], *, gold: str = "answer: {}") -> list[str]:
    tasks = []
    for number in range(20):
        prompt, answer = prompt_and_answer(number)
        message = Message(role="user", content=prompt)
        tasks.append(Task(id=f"sum/train/{number}", environment="sum", prompt=(message,), reference={"answer": answer}))

    class Asked(Sum):
        def gold(self, task: Task) -> tuple[Message, ...]:
            return (Message(role="assistant", content=gold.format(task.reference["answer"])),)

    subject = Subject(
        name="sum",
        settings={},
        environment=Asked(Asked.Settings()),
        read={"train": tuple(tasks), "held_out": ()},
        tasks=tuple(tasks),
        seconds=1,
        threads=FreshThreads(),
    )
    return asyncio.run(hidden_reference.run(subject))  # type: ignore[arg-type]


def choice(_number: int) -> tuple[str, str]:
    words = RNG.sample(WORDS, 4)
    return f"Which of these comes first in a dictionary: {', '.join(words)}?", min(words)


def small_numbers(number: int) -> tuple[str, str]:
    return f"What is {number} minus {number % 5}?", str(number - number % 5)


def in_the_text(_number: int) -> tuple[str, str]:
    words = [RNG.choice(WORDS) for _ in range(30)]
    place = RNG.randrange(30)
    return f"{' '.join(words)}. What is word {place + 1} of it?", words[place]


@pytest.mark.parametrize("question", [choice, small_numbers, in_the_text])
def test_choices_chance_and_things_to_find_are_fine(question: Callable[[int], tuple[str, str]]) -> None:
    assert complaints(question) == []


@pytest.mark.parametrize(
    "prompt",
    [
        "{answer} is what you get from {a} and {b}?",
        "How much is {a} and {b}? {answer}",
        "How much is {a} and {b}? ({filler}; the key says {answer}; {filler})",
    ],
)
def test_one_rule_that_copies_the_answer_from_most_prompts_is_a_leak(prompt: str) -> None:
    def question(number: int) -> tuple[str, str]:
        a, b = 100 + 7 * number, RNG.randint(100, 999)
        filler = " ".join(RNG.choice(WORDS) for _ in range(RNG.randint(1, 9)))
        return prompt.format(a=a, b=b, answer=a + b, filler=filler), str(a + b)

    found = complaints(question)
    assert len(found) == 1
    assert "of the prompt is the answer in 20 of 20 tasks" in found[0]


def test_a_long_answer_in_the_prompt_is_a_leak_in_a_single_task() -> None:
    def question(number: int) -> tuple[str, str]:
        answer = " ".join(RNG.sample(WORDS, 6))
        return (f"Say this backwards: {answer}" if number == 7 else f"Task {number}"), answer

    assert len(complaints(question)) == 1


def test_the_whole_reference_in_the_prompt_is_a_leak() -> None:
    found = complaints(lambda number: (f'Task {number}: {{"answer":"{number * 31}"}}', str(number * 31)))
    assert "the whole reference stands in the prompt" in found[0]
    assert len(found) == 20
