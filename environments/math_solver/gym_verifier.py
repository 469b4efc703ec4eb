"""Judges an answer to a task of reasoning-gym by the family's own scorer: full score is +1, anything less -1.

The answer is what stands in the last `<answer>...</answer>` of the last assistant message, without white space around
it. The scorer runs in a worker process (`gym_worker`) that is killed when it is late, because some of them compute
what the model wrote.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from environments.math_solver.gym import MAKE_SECONDS, call_worker
from rlvr.types import Message, Outcome, Task, Verdict, judged
from verifiers.worker import WorkerLostError, WorkerTimeoutError

MAX_ANSWER = 20_000  # characters
SCORE_SECONDS = 5.0

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_FILES = ("gym.py", "gym_verifier.py", "gym_worker.py")
_VERSION = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _FILES)).hexdigest()[:12]


class GymVerifier:
    """Correct at full score. Invalid when the task cannot be made again here (another version of the package)."""

    id = "reasoning_gym"
    version = _VERSION

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        start = perf_counter()
        checks = {"answered": False, "full_score": False}

        def verdict(outcome: Outcome, reason: str) -> Verdict:
            return judged(self, outcome, reason, checks=checks, started=start)

        said = next((message.content for message in reversed(transcript) if message.role == "assistant"), "")
        answer = extract(said)
        if answer is None:
            return verdict("incorrect", "no <answer>...</answer> with anything in it")
        checks["answered"] = True
        if len(answer) > MAX_ANSWER:
            return verdict("incorrect", f"the answer has {len(answer)} characters, more than {MAX_ANSWER}")
        try:
            reply = _ask(task, answer)
        except WorkerTimeoutError:
            return verdict("incorrect", f"scoring the answer takes longer than {SCORE_SECONDS:g} s, or all memory")
        except WorkerLostError as error:
            return verdict("invalid", f"no worker process to score in: {error}")
        if "error" in reply:
            return verdict("invalid", f"task {task.id}: {reply['error']}")
        checks["full_score"] = reply["score"] >= 1.0
        return verdict("correct" if checks["full_score"] else "incorrect", reply["reason"])


def _ask(task: Task, answer: str) -> Any:
    """Raises `WorkerTimeoutError` where the answer is to blame, `WorkerLostError` where we are."""
    request = {"do": "score", "reference": task.reference, "answer": answer}
    try:
        return call_worker(request, SCORE_SECONDS)
    except (WorkerTimeoutError, WorkerLostError):
        # The answer's fault, or a task that takes long to make? A worker that has made it tells.
        try:
            call_worker(request | {"answer": None}, MAKE_SECONDS)
        except WorkerTimeoutError as error:
            raise WorkerLostError(f"making the task again: {error}") from error
    try:
        return call_worker(request, SCORE_SECONDS)
    except WorkerLostError as error:
        raise WorkerTimeoutError(f"killed the worker: {error}") from error


def extract(said: str) -> str | None:
    """The answer in a message; `None` where there is none."""
    visible = said.rpartition("</think>")[2]
    found = [match.strip() for match in _ANSWER.findall(visible)]
    return found[-1] or None if found else None
