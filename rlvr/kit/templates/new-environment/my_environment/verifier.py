"""What an answer earns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlvr.types import Message, Task, Verdict

_ANSWER = re.compile(r"^answer:(.*)$", re.MULTILINE | re.IGNORECASE)


class MyVerifier:
    """Correct when the last message gives one answer, and it is the reference.

    It judges the transcript alone, so that `rlvr verify` can judge a recorded episode again, and never raises on what a
    model wrote.
    """

    id = "my_environment"
    version = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        said = transcript[-1].content if transcript[-1].role == "assistant" else ""
        answers = {answer.strip() for answer in _ANSWER.findall(said)}
        if not answers:
            return self._verdict(False, "no line of the form 'answer: N'")
        if len(answers) > 1:
            return self._verdict(False, f"{len(answers)} answers; one counts")
        answer = answers.pop()
        expected = task.reference["answer"]
        return self._verdict(answer == expected, f"the answer is {answer[:40]!r}, expected was {expected!r}")

    def _verdict(self, correct: bool, reason: str) -> Verdict:
        return Verdict(
            outcome="correct" if correct else "incorrect",
            reward=1.0 if correct else -1.0,
            reason=reason,
            verifier=self.id,
            version=self.version,
        )
