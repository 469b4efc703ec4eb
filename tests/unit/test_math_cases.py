"""The table of equality: a line of tests/data/math_cases.jsonl is a case, and a new line is a new test."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlvr.types import Message, Task, Verdict
from verifiers.math import MathVerifier, extract, last_boxed

DATA = Path(__file__).parents[1] / "data"
CASES = [json.loads(line) for line in (DATA / "math_cases.jsonl").read_text(encoding="utf-8").splitlines()]


def judge(reference: str, content: str) -> Verdict:
    task = Task(id="m/train/0", environment="m", prompt=(), reference={"answer": reference})
    return MathVerifier().verify(task, [Message(role="assistant", content=content)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['reference']} | {case['answer']}")
def test_a_case_of_the_table(case: dict[str, Any]) -> None:
    verdict = judge(case["reference"], f"So the result is $\\boxed{{{case['answer']}}}$.")
    assert verdict.outcome == ("correct" if case["expected"] else "incorrect"), verdict.reason


def test_the_table_is_large_distinct_and_sourced() -> None:
    assert sum(not case["source"].startswith("own: ") for case in CASES) >= 400
    assert max(Counter((case["reference"], case["answer"]) for case in CASES).values()) == 1
    assert all(case["source"] and isinstance(case["expected"], bool) for case in CASES)


def test_every_reference_equals_itself() -> None:
    for reference in {case["reference"] for case in CASES}:
        assert judge(reference, f"\\boxed{{{reference}}}").outcome == "correct", reference


def test_the_table_in_threads_gives_the_same_verdicts() -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda case: judge(case["reference"], f"\\boxed{{{case['answer']}}}").outcome, CASES))
    assert [outcome == "correct" for outcome in outcomes] == [case["expected"] for case in CASES]


@pytest.mark.parametrize(
    ("reference", "content", "outcome"),
    [
        # the last box counts, and the boxes joined to it
        ("42", "First \\boxed{41}. Then \\boxed{42}.", "correct"),
        ("41", "First \\boxed{41}. Then \\boxed{42}.", "incorrect"),
        ("42", "\\boxed{41} or \\boxed{42}", "incorrect"),
        ("41", "\\boxed{41} or \\boxed{42}", "incorrect"),
        ("41, 42", "\\boxed{41} and \\boxed{42}", "correct"),
        ("1, 2", "$x = \\boxed{1}$ or $x = \\boxed{2}$", "correct"),
        # lists of boxes, whatever stands between them
        ("42", "$\\boxed{41}$ / $\\boxed{42}$", "incorrect"),
        ("42", "$\\boxed{41}$ | $\\boxed{42}$", "incorrect"),
        ("42", "$\\boxed{41}$\n\n- $\\boxed{42}$", "incorrect"),
        ("42", "1. $\\boxed{41}$\n2. $\\boxed{42}$", "incorrect"),
        ("42", "**\\boxed{40}** **\\boxed{42}**", "incorrect"),
        # of a box in a box, the outer one
        ("42", "\\boxed{\\boxed{42}}", "correct"),
        ("42", "\\boxed{43 \\boxed{42}}", "incorrect"),
        ("42", "\\boxed{\\text{not }\\boxed{42}}", "incorrect"),
        ("42", "\\boxed{not \\fbox{42}}", "incorrect"),
        ("840", "therefore\\boxed{840}.,but let me explain.\n\n**Final Answer**\n\\boxed{840}", "correct"),
        ("42", "\\boxed{42}, \\boxed{42}", "correct"),
        ("42", "\\boxed{1}\\boxed{42}", "incorrect"),
        ("\\frac{1}{2}", "\\boxed{\\frac{1}{\\sqrt{4}}}", "correct"),
        ("5", "\\fbox{5}", "correct"),
        ("5", "\\boxed{5.}", "correct"),
        ("", "\\boxed{5}", "invalid"),
        ("5", "\\boxed{}", "incorrect"),
        ("5", "\\boxed{ \\text{} }", "incorrect"),
        ("5", "The answer is 5, see \\boxed{", "incorrect"),
        # only after the thought
        ("42", "<think>\\boxed{42}</think> I am done.", "incorrect"),
        ("42", "<think>\\boxed{41}</think> \\boxed{42}", "correct"),
        ("42", "<think>so the answer is 42", "incorrect"),
        ("42", "\\boxed{42}</think>", "incorrect"),
        # a stated answer
        ("42", "Adding up, the answer is 42.", "correct"),
        ("42", "The final answer is $42$. I hope it is correct.", "correct"),
        ("42", "Final Answer: The largest $n$ is 42.", "correct"),
        ("73", "Thus it is **73**.\n\n---\n\nFinal Answer: **73**", "correct"),
        ("40/9", "The answer is 4 4/9.", "correct"),
        ("4", "The answer is 4 4/9.", "incorrect"),
        ("18", "He has 18 left.\n#### 18", "correct"),
        ("18", "The answer is 17. No, the answer is 18.", "correct"),
        ("18", "The answer is 17 or 18.", "incorrect"),
        ("42", "The answer is therefore $42$.", "correct"),
        ("42", "The answer is not $42$.", "incorrect"),
        ("42", "The answer is certainly not \\(42\\).", "incorrect"),
        ("42", "The answer is at least $42$.", "incorrect"),
        ("42", "The answer is more than $42$", "incorrect"),
        ("42", "The answer is either $42$ or something else", "incorrect"),
        ("42", "The answer is $42$ plus one.", "incorrect"),
        ("42", "The answer is 41, though others say it is 42.", "incorrect"),
        ("42", "No answer is right but $42$", "incorrect"),
        ("42", "The answer is 42 (or 43).", "incorrect"),
        ("C", "The answer is (C).", "correct"),
        ("C", "Answer: C", "correct"),
        ("C", "Answer: B", "incorrect"),
        # plain answers, and no others
        ("42", "42", "correct"),
        ("42", " $42$ ", "correct"),
        ("42", "42.", "correct"),
        ("42", "I add 40 and 2 and get 42", "incorrect"),
        ("42", "41\n\n42", "incorrect"),
        ("42", "", "incorrect"),
    ],
)
def test_the_rule_of_extraction(reference: str, content: str, outcome: str) -> None:
    verdict = judge(reference, content)
    assert verdict.outcome == outcome, (verdict.reason, extract(content))


def test_a_thousand_and_a_pair_are_both_read() -> None:
    assert judge("1234", "\\boxed{(1,234)}").outcome == "correct"
    assert judge("(1, 234)", "\\boxed{(1,234)}").outcome == "correct"
    assert judge("(1, 235)", "\\boxed{(1,234)}").outcome == "incorrect"


@pytest.mark.parametrize("reference", ["about 3", "\\frac{1}{", "3 or so", "x +", "\\unknown{3}", "9^{9^{9}}", "1/0"])
def test_a_reference_that_cannot_be_read_is_invalid_and_named(reference: str) -> None:
    verdict = judge(reference, "\\boxed{3}")
    assert (verdict.outcome, verdict.reward) == ("invalid", None)
    assert "m/train/0" in verdict.reason


def test_pairing_of_braces_is_linear() -> None:
    start = time.process_time()
    assert last_boxed("\\boxed{" * 20_000) is None
    assert last_boxed("\\boxed{1}" * 10_000) == "1"
    assert time.process_time() - start < 1.0
