"""What a verdict of the code verifier costs; with `--fuzz`, that no answer makes it raise, hang or call it invalid.

    python scripts/bench/code_verifier.py [--sandbox bubblewrap] [--threads 4] [--seconds 5]
    python scripts/bench/code_verifier.py --fuzz --strings 1000000 --mutations 100000

Fuzz: random strings, most of which cannot be code, and mutations of right answers, which run. Exits 1 on an exception,
an invalid verdict, or one that took longer than the limits allow.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlvr.types import Message, Task, Verdict
from sandbox.base import Limits
from verifiers.code import CodeVerifier

CALLS = {
    "entry_point": "runs",
    "tests": "def check(candidate):\n    assert candidate([1, 1, 2]) == [(1, 2), (2, 1)]\n"
    "    assert candidate([]) == []\n    assert candidate([3] * 40) == [(3, 40)]",
}
IO = {"io": [{"input": "1 1 2\n", "output": "1 2\n2 1\n"}, {"input": "3 3\n", "output": "3 2\n"}]}
RIGHT_CALLS = (
    "def runs(items):\n    out = []\n    for item in items:\n        if out and out[-1][0] == item:\n"
    "            out[-1] = (item, out[-1][1] + 1)\n        else:\n            out.append((item, 1))\n    return out",
    "from itertools import groupby\ndef runs(items):\n"
    "    return [(key, len(list(group))) for key, group in groupby(items)]",
)
RIGHT_IO = (
    "from itertools import groupby\nfor key, group in groupby(input().split()):\n    print(key, len(list(group)))",
    "import sys\nwords = sys.stdin.read().split()\nwhile words:\n    n = 1\n"
    "    while n < len(words) and words[n] == words[0]:\n        n += 1\n    print(words[0], n)\n    words = words[n:]",
)
SIGNS = "abcdefilnoprstu0123456789 \n\t()[]{}:=+-*/<>.,'\"#_%\\\0é∞"
LIMITS = Limits(wall_seconds=2.0, memory_bytes=256 << 20)
SLOW_SECONDS = 30.0  # both boxes' limits with grace, a canary, and a busy machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandbox", choices=["auto", "docker", "bubblewrap"], default="auto")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--fuzz", action="store_true")
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    verifier = CodeVerifier(options.sandbox, LIMITS)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.threads} threads")
    if options.fuzz:
        sys.exit(fuzz(verifier, options))
    for name, reference, answer in (("function tests", CALLS, RIGHT_CALLS[0]), ("stdin and stdout", IO, RIGHT_IO[0])):
        speed(name, lambda reference=reference, answer=answer: judge(verifier, reference, answer), options)  # type: ignore[misc]


def judge(verifier: CodeVerifier, reference: dict[str, Any], answer: str) -> Verdict:
    task = Task(id="bench/train/0", environment="bench", prompt=(), reference=reference)
    return verifier.verify(task, [Message(role="assistant", content=answer)])


def speed(name: str, once: Callable[[], Verdict], options: argparse.Namespace) -> None:
    for _ in range(10):
        assert once().outcome == "correct"
    alone = [once().seconds for _ in range(100)]

    def worker(_: int) -> int:
        done = 0
        while time.monotonic() < until:
            done += once().outcome == "correct"
        return done

    start = time.monotonic()
    until = start + options.seconds
    with ThreadPoolExecutor(options.threads) as threads:
        total = sum(threads.map(worker, range(options.threads)))
    rate = total / (time.monotonic() - start)
    print(f"{name:20} median {1000 * statistics.median(alone):6.1f} ms alone, {rate:6.1f} verdicts/s in all threads")


def fuzz(verifier: CodeVerifier, options: argparse.Namespace) -> int:
    outcomes, slowest, failed, start = Counter[str](), (0.0, ""), 0, time.monotonic()

    def one(case: tuple[str, dict[str, Any], str]) -> tuple[str, float, str]:
        kind, reference, answer = case
        began = time.monotonic()
        try:
            verdict = judge(verifier, reference, answer)
            word = verdict.outcome if verdict.outcome != "invalid" else f"invalid ({verdict.reason[:200]})"
        except Exception as error:
            word = f"exception {error!r:.200}"
        return f"{kind}: {word}", time.monotonic() - began, answer

    with ThreadPoolExecutor(options.threads) as threads:
        for chunk in chunked(cases(options)):
            for word, seconds, answer in threads.map(one, chunk):
                outcomes[word] += 1
                slowest = max(slowest, (seconds, answer))
                if "invalid" in word or "exception" in word:
                    failed += 1
                    print(f"{word}: {answer!r}", file=sys.stderr)
            done = sum(outcomes.values())
            if done % 100_000 < 1000:
                print(
                    f"{done} in {time.monotonic() - start:.0f} s, slowest {slowest[0]:.2f} s, {dict(outcomes)}",
                    flush=True,
                )
    print(f"{dict(outcomes)} in {time.monotonic() - start:.0f} s, slowest {slowest[0]:.2f} s: {slowest[1][:200]!r}")
    return 1 if failed or slowest[0] > SLOW_SECONDS else 0


def cases(options: argparse.Namespace) -> Iterable[tuple[str, dict[str, Any], str]]:
    rng = random.Random(options.seed)
    for number in range(options.strings):
        text = rng.randbytes(rng.randint(0, 80)).decode("utf-8", rng.choice(("replace", "surrogateescape", "ignore")))
        # One in a thousand in a code block, and so taken for code.
        yield "random", CALLS, f"```python\n{text}\n```" if number % 1000 == 0 else text
    for _ in range(options.mutations):
        reference, answers = rng.choice(((CALLS, RIGHT_CALLS), (IO, RIGHT_IO)))
        yield "mutated", reference, f"```python\n{mutated(rng.choice(answers), rng)}\n```"


def chunked(cases: Iterable[Any]) -> Iterable[list[Any]]:
    chunk: list[Any] = []
    for case in cases:
        chunk.append(case)
        if len(chunk) == 1000:
            yield chunk
            chunk = []
    yield chunk


def mutated(answer: str, rng: random.Random) -> str:
    text = list(answer)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(text)), rng.randrange(4)
        if kind == 0:
            text.insert(at, rng.choice(SIGNS))
        elif kind == 1 and len(text) > 1:
            del text[at]
        elif kind == 2:
            text[at] = rng.choice(SIGNS)
        else:
            text[at:at] = text[at : at + rng.randint(1, 12)] * rng.randint(1, 3)
    return "".join(text)


if __name__ == "__main__":
    main()
