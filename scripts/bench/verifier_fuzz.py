"""A million random strings and 100,000 mutations of valid answers through the math verifier: no exception, no hang.

    python scripts/bench/verifier_fuzz.py [--strings 1000000] [--mutations 100000] [--seed 0]

Prints progress, the slowest input and what came out; exits 1 on an exception or on anything above two seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from rlvr.types import Message, Task
from verifiers.math import MathVerifier

TABLE = Path(__file__).parents[2] / "tests" / "data" / "math_cases.jsonl"
LIMIT_SECONDS = 2.0
SIGNS = "0123456789xyein+-*/^_(){}[]|,.:;=<>!%$&'\\ "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    cases = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    verifier, outcomes, slowest, failed = MathVerifier(), Counter[str](), (0.0, ""), 0
    start = time.perf_counter()
    for number in range(options.strings + options.mutations):
        case = rng.choice(cases)
        if number < options.strings:
            answer = rng.randbytes(rng.randint(0, 60)).decode("utf-8", rng.choice(("replace", "surrogateescape")))
        else:
            answer = _mutated(case["answer"], rng.choice(cases)["answer"], rng)
        content = f"\\boxed{{{answer}}}" if number % 2 else answer
        task = Task(id="fuzz/train/0", environment="fuzz", prompt=(), reference={"answer": case["reference"]})
        before = time.perf_counter()
        try:
            verdict = verifier.verify(task, [Message(role="assistant", content=content)])
            outcomes[verdict.outcome] += 1
            failed += "comparing it failed" in verdict.reason
        except Exception as error:
            failed += 1
            print(f"{type(error).__name__}: {error}: {case['reference']!r}, {content!r}", file=sys.stderr)
        slowest = max(slowest, (time.perf_counter() - before, content))
        if number % 100_000 == 99_999:
            print(f"{number + 1} in {time.perf_counter() - start:.0f} s, slowest {slowest[0]:.3f} s, {dict(outcomes)}")
    print(f"{dict(outcomes)}, {failed} exceptions, slowest {slowest[0]:.3f} s: {slowest[1][:100]!r}")
    sys.exit(1 if failed or slowest[0] > LIMIT_SECONDS or outcomes["invalid"] else 0)


def _mutated(answer: str, other: str, rng: random.Random) -> str:
    text = list(answer)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            text.insert(at, rng.choice(SIGNS))
        elif kind == 1 and at < len(text):
            del text[at]
        elif kind == 2 and at < len(text):
            text[at] = rng.choice(SIGNS)
        elif kind == 3:
            text[at:at] = text[at : at + rng.randint(1, 8)] * rng.randint(1, 5)
        else:
            cut = rng.randrange(len(other) + 1)
            text[at:at] = other[cut : cut + rng.randint(1, 10)]
    return "".join(text)


if __name__ == "__main__":
    main()
