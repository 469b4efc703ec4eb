"""Input made to hang, to blow up or to crash the verifier: always a verdict, in time, and nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import pytest

from rlvr.types import Message, Task, Verdict
from tests.clock import processor_seconds
from verifiers import math as math_verifier
from verifiers import worker
from verifiers.math import MathVerifier, parse
from verifiers.tokens import ParseError, split_words

LIMIT_SECONDS = 2.0


def judge(reference: str, content: str) -> Verdict:
    task = Task(id="m/train/0", environment="m", prompt=(), reference={"answer": reference})
    return MathVerifier().verify(task, [Message(role="assistant", content=content)])


PIECES = (
    *split_words("- + x^ \\frac \\frac1 \\sqrt 1, 1; 1= 1< \\pm1 \\cup _1 ' \\text{ \\left( \\begin{pmatrix} &"),
    *split_words("\\\\ x! % \\% \\$ 1: \\in 2^{ a_{ \\overline{ 0.\\overline{ e^{ \\boxed{ \\mathbb{"),
    *("9 ", "or ", "and "),
)


def bombs() -> Iterator[str]:
    """Boxes' contents, each its own kind of trouble."""
    for big in ("9", "99", "10", "2", "-9", "(1/9)", "\\pi", "e", "x", "i"):
        yield f"{big}^{{{big}^{{{big}^{{{big}^{{{big}}}}}}}}}"
        yield f"{big}**{big}**{big}**{big}"
        yield f"{big}^{{10^{{10}}}}"
        yield f"{big}^{{999999999999}}"
        yield f"\\sqrt[99]{{{big}^{{99999}}}}"
    for n in ("9", "99999", "10^{9}", "1/2", "x", "\\pi", "-5"):
        yield f"{n}!!!!!!"
        yield f"(({n}!)!)!"
        yield f"\\binom{{{n}^9}}{{{n}^5}}"
    for name in ("sin", "cos", "tan", "exp", "ln", "log", "arcsin", "cosh", "cot"):
        yield f"\\{name}(10^{{5000}}x)"
        yield "\\" + f"{name}(\\" * 20 + "pi" + ")" * 20
        yield f"\\{name}" * 200 + "x"
        yield f"{name}({name}({name}({name}(9^{{99}}))))"
    for pair in ("()", "[]", "{}", "||"):
        for times in (31, 300, 700, 50_000):
            yield pair[0] * times + "1" + pair[1] * times
            yield pair[0] * times
    for piece in PIECES:
        for times in (40, 600, 20_000):
            yield piece * times
    yield "x!+10^{2000}"
    yield "x!+\\tanh 300"
    yield "(x!+y!)!\\cdot 10^{2000}+\\cos(10^{-300})"
    yield "(x+1)" * 300
    yield "(x+y+z)^{9999}(a+b)^{9999}"
    yield "+".join(f"\\sqrt{{x+{n}}}" for n in range(100))
    yield "+".join(f"\\sin({n}x^{n})" for n in range(60))
    yield ",".join(f"\\sqrt{{{n}}}+\\pi" for n in range(59))
    yield ",".join(f"{n}" for n in range(400))
    yield "9" * 1400
    yield "9" * 700 + "/" + "7" * 700
    yield "0." + "3" * 1400
    yield "1" + "e9999"
    yield "1e99999999999"
    yield "*".join("9^{999}" for _ in range(50))
    yield "+".join(f"1/{n}" for n in range(10**9, 10**9 + 100))
    yield "\\sqrt{" * 25 + "2" + "}" * 25
    yield "2^{0." * 25 + "5" + "}" * 25
    yield "\\begin{pmatrix}" + "&".join("\\sin x" for _ in range(100)) + "\\end{pmatrix}"
    yield "|" + "x|" * 400
    yield "".join(chr(n) for n in range(32, 1200))
    yield "\ud800\x00\u202e\u0661\u0662"
    yield "__import__('os').system('sleep 60')"
    yield "(lambda: [0] * 10**12)()"
    yield "\\input{/etc/passwd} \\def\\x{\\x\\x}\\x"


REFERENCES = ("42", "\\frac{\\sin x+\\sqrt{x}}{2}", "\\sqrt{2}+\\pi", "1, 2, \\sqrt 3", "(0, \\infty)", "x^2+y^2=1")
HOSTILE = list(bombs())


def test_there_are_enough() -> None:
    assert len(set(HOSTILE)) >= 200


@pytest.mark.parametrize("reference", REFERENCES)
def test_none_takes_long_and_none_is_right(reference: str) -> None:
    for bomb in HOSTILE:
        for content in (f"\\boxed{{{bomb}}}", bomb):
            start = processor_seconds(math_verifier._POOL)
            verdict = judge(reference, content)
            assert processor_seconds(math_verifier._POOL) - start < LIMIT_SECONDS, (bomb[:80], verdict.reason)
            assert verdict.outcome == "incorrect", (bomb[:80], verdict.reason)
            assert len(verdict.reason) < 300


def test_a_hostile_reference_is_no_crash_either() -> None:
    for bomb in HOSTILE:
        start = processor_seconds(math_verifier._POOL)
        judge(bomb, "\\boxed{42}")
        assert processor_seconds(math_verifier._POOL) - start < LIMIT_SECONDS, bomb[:80]


def test_refusing_a_power_tower_takes_microseconds() -> None:
    start = time.process_time()
    for _ in range(100):
        with pytest.raises(ParseError):
            parse("10^{10^{10}}")
    assert (time.process_time() - start) / 100 < 0.002


def test_megabytes_are_refused_at_once() -> None:
    for content in (
        "\\boxed{" + "9" * 5_000_000 + "}",
        "{" * 5_000_000,
        "answer is " * 500_000,
        "\\boxed{1}" * 500_000,
    ):
        start = time.process_time()
        judge("42", content)
        assert time.process_time() - start < LIMIT_SECONDS


def test_what_is_too_costly_goes_to_a_worker_and_is_killed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "+".join(f"\\sin({n}x^{n}+\\sqrt{{x+{n}}})" for n in range(40))
    monkeypatch.setattr(math_verifier, "WORKER_SECONDS", 0.0)
    monkeypatch.setattr("verifiers.numeric.Meter.__init__.__defaults__", (1,))
    math_verifier._POOL.close()  # of workers that other tests have left
    before = _children()
    verdict = judge(slow, f"\\boxed{{{slow} + 0x}}")
    assert verdict.outcome == "incorrect"
    assert "longer than" in verdict.reason
    assert _children() == before


def test_a_worker_gives_the_verdict_that_this_process_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.numeric.Meter.__init__.__defaults__", (1,))
    monkeypatch.setattr(math_verifier, "WORKER_SECONDS", 20.0)
    assert judge("\\sin 2x", "\\boxed{2\\sin x\\cos x}").outcome == "correct"
    assert judge("\\sin 2x", "\\boxed{2\\sin x\\cos y}").outcome == "incorrect"
    math_verifier._POOL.close()


def test_workers_are_reused_replaced_and_never_leaked() -> None:
    before = _children()
    pool = worker.WorkerPool("verifiers.math_worker")
    same = {"reference": ("\\sqrt{2}", True), "answer": ("\\frac{2}{\\sqrt 2}", True)}
    assert pool.call(same, 20) is True
    assert len(_children() - before) == 1
    assert pool.call(same, 20) is True
    assert len(_children() - before) == 1
    with pytest.raises(worker.WorkerLostError):
        pool.call({"nonsense": 1}, 20)
    assert _children() == before
    with pytest.raises(worker.WorkerTimeoutError):
        pool.call(same, 0.0)
    assert _children() == before
    assert pool.call(same, 20) is True
    pool.close()
    assert _children() == before


def test_a_worker_that_the_input_kills_is_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    class Dies(worker.WorkerPool):
        def call(self, request: dict[str, object], seconds: float) -> object:
            calls.append(request)
            if len(calls) == 1:
                raise worker.WorkerLostError("killed")
            return True

    monkeypatch.setattr("verifiers.numeric.Meter.__init__.__defaults__", (1,))
    monkeypatch.setattr(math_verifier, "_POOL", Dies("verifiers.math_worker"))
    assert judge("\\sin 2x", "\\boxed{2\\sin x\\cos y}").outcome == "incorrect"
    assert len(calls) == 2


def test_no_worker_at_all_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.numeric.Meter.__init__.__defaults__", (1,))
    monkeypatch.setattr(math_verifier, "_POOL", worker.WorkerPool("verifiers.no_such_module"))
    assert judge("\\sin 2x", "\\boxed{2\\sin x\\cos y}").outcome == "invalid"


def test_it_works_off_the_main_thread() -> None:
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(judge("\\sqrt{8}", "\\boxed{2\\sqrt 2}").outcome))
    thread.start()
    thread.join()
    assert outcomes == ["correct"]


def test_memory_is_flat() -> None:
    def round_() -> int:
        for bomb in HOSTILE[::3]:
            judge("\\sqrt{2}+\\pi", f"\\boxed{{{bomb}}}")
        gc.collect()
        return _resident()

    round_()
    first = round_()
    for _ in range(3):
        last = round_()
    assert last - first < 20_000_000


ALPHABET = (
    *sorted(
        split_words("\\frac \\sqrt \\text{ \\pm \\cup \\infty \\pi \\sin ^ _ { } ( ) [ ] | , = < \\le x y e i 1 2.5")
    ),
    *sorted(split_words("9 ! % / * + - \\in \\{ \\} : \\begin{pmatrix} \\end{pmatrix} & \\\\ cm \\log_ f( ^\\circ")),
    *(" and ", " "),
)


def test_fuzz_in_small() -> None:
    """scripts/bench/verifier_fuzz.py does the same a million times."""
    rng = random.Random(7)
    for _ in range(1500):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(1, 14)))
        other = "".join(rng.choices(ALPHABET, k=rng.randint(1, 14)))
        start = processor_seconds(math_verifier._POOL)
        judge(text, f"\\boxed{{{other}}}")
        assert judge("42", rng.randbytes(rng.randint(0, 60)).decode("utf-8", "replace")).outcome != "invalid"
        assert processor_seconds(math_verifier._POOL) - start < 2 * LIMIT_SECONDS, (text, other)


def test_every_short_text_is_read_or_refused() -> None:
    for text in islice(product(ALPHABET, repeat=2), 0, None, 2):
        try:
            parse("".join(text))
        except ParseError:
            continue


def _children() -> set[int]:
    """Processes that this one started and that are still there, zombies too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
