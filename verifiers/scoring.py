"""From a line to its verdict line: what every worker of `rlvr verify` does, and nothing it has to share."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from rlvr.errors import RlvrError
from rlvr.interfaces import Environment, Verifier
from rlvr.plugins import make_environment
from rlvr.types import Message, Verdict
from verifiers.records import Record, RecordError, parse
from verifiers.registry import NoGold, UnknownVerifier, gold_answer, make_verifier
from verifiers.settings import settings_of

Mode = Literal["score", "gold"]


class Job(NamedTuple):
    """One line of an input file. `error` is set, and `data` empty, where the file broke off."""

    file: str
    line: int
    data: bytes
    mode: Mode = "score"
    error: str = ""


class Result(NamedTuple):
    """What became of a job. `text` is its line of the output; the rest is what a summary needs of it.

    `outcome` is "error" for a line that could not be read; `as_online` is `None` where there was no verdict to compare.
    """

    text: bytes
    key: str
    verifier: str
    outcome: str
    reason: str
    checks: str
    seconds: float
    as_online: bool | None


class Scorer:
    """Scores jobs one after the other. Verifiers and environments are made once each."""

    def __init__(self) -> None:
        self._verifiers: dict[str, Verifier] = {}
        # What to load, by the episode's environment and log; and what was made of it, once for all logs that agree.
        self._settings: dict[tuple[str, str], tuple[str, str]] = {}
        self._environments: dict[tuple[str, str], Environment] = {}

    def score(self, job: Job) -> Result:
        """Never raises on what a line holds."""
        try:
            if job.error:
                raise RecordError(job.error)
            record = parse(job.data, gold=job.mode == "gold")
            return to_result(job, record, self._verdict(record, job))
        except RecordError as error:
            return unreadable(job, str(error))

    def explain(self, job: Job) -> str:
        """One record's way to its verdict, for a person. Raises `RecordError`."""
        record = parse(job.data)
        verdict = self._verdict(record, job)
        answer = next((m for m in reversed(record.transcript) if m.role == "assistant"), None)
        lines = [f"{job.file}:{job.line}" + (f"  id {record.id}" if record.id is not None else "")]
        lines.append(f"judged by {verdict.verifier} {verdict.version}")
        if answer is not None:
            if answer.thinking:
                lines.append(f"thought, not judged: {len(answer.thinking)} characters")
            lines.append("answer, the last message of the assistant:")
            lines += [f"    {line}" for line in answer.content[-2_000:].splitlines()]
        lines.append(f"reference: {json.dumps(record.task.reference)[:500]}")
        if record.final is None and verdict.version:
            explain = getattr(self._judge(record, job.file), "explain", None)
            lines += [] if explain is None else explain(record.task, record.transcript)
        decided = next((name for name, passed in verdict.checks.items() if not passed), None)
        lines += [f"check {name}: {'passed' if passed else 'failed'}" for name, passed in verdict.checks.items()]
        lines.append(f"decided by: {decided or 'every check, and all passed'}")
        lines.append(f"{verdict.outcome}, reward {verdict.reward}: {verdict.reason}")
        if record.online is not None and not same(verdict, record.online):
            lines.append(f"the run recorded otherwise: {record.online.outcome}: {record.online.reason}")
        return "\n".join(lines)

    def _verdict(self, record: Record, job: Job) -> Verdict:
        try:
            judge = self._judge(record, job.file)
        except RecordError:
            raise
        except Exception as error:  # the environment's code: online it makes the episode invalid
            return invalid(record.environment or "", "", f"no verifier: {error!r}")
        transcript: Sequence[Message] = record.transcript
        if job.mode == "gold":
            try:
                transcript = [*record.task.prompt, *self._gold(record, job.file)]
            except (NoGold, RlvrError) as error:
                return invalid(judge.id, judge.version, str(error))
        elif record.final is not None:
            return record.final
        try:
            return judge.verify(record.task, transcript)
        except Exception as error:  # a verifier never raises: one that does has a fault, and that is ours
            return invalid(judge.id, judge.version, f"the verifier raised {error!r}")

    def _gold(self, record: Record, file: str) -> Sequence[Message]:
        if record.environment is not None:
            return self._environment(record, file).gold(record.task)
        answer = gold_answer(record.verifier or "", record.task.reference)
        return [Message(role="assistant", content=answer)]

    def _judge(self, record: Record, file: str) -> Verifier:
        if record.environment is not None:
            # As online: each episode has a shallow copy of the environment that was set up.
            return copy.copy(self._environment(record, file)).verifier()
        name = record.verifier or ""
        if name not in self._verifiers:
            try:
                self._verifiers[name] = make_verifier(name)
            except UnknownVerifier as error:
                raise RecordError(f"verifier: {error}") from None
        return self._verifiers[name]

    def _environment(self, record: Record, file: str) -> Environment:
        # Episodes take their run's settings; a plain record, the defaults.
        name, log = record.environment or "", file if record.online is not None else ""
        try:
            if (name, log) not in self._settings:
                found, settings = settings_of(name, log) if log not in ("", "-") else (name, {})
                self._settings[name, log] = (found, json.dumps(settings, sort_keys=True))
            key = self._settings[name, log]
            if key not in self._environments:
                environment = make_environment(key[0], json.loads(key[1]))
                environment.setup()
                self._environments[key] = environment
        except Exception as error:
            raise RecordError(f"environment: {error}") from error
        return self._environments[key]

    def close(self) -> None:
        """Let go of what the environments hold."""
        for environment in self._environments.values():
            environment.close()


def to_result(job: Job, record: Record, verdict: Verdict) -> Result:
    """The verdict line of a record, and its summary."""
    as_online = None if record.online is None or job.mode == "gold" else same(verdict, record.online)
    line: dict[str, Any] = {} if record.id is None else {"id": record.id}
    line |= {
        "file": job.file,
        "line": job.line,
        "verifier": verdict.verifier,
        "version": verdict.version,
        "outcome": verdict.outcome,
        "reward": verdict.reward,
        "reason": verdict.reason,
        "checks": verdict.checks,
        "seconds": round(verdict.seconds, 6),
    }
    if as_online is not None:
        line["as_online"] = as_online
    if record.metadata is not None:
        line["metadata"] = record.metadata
    return from_line(line)


def same(verdict: Verdict, other: Verdict) -> bool:
    """Whether two verdicts say the same; they may differ in version and time."""
    return (verdict.outcome, verdict.reward, verdict.reason, verdict.checks) == (
        other.outcome,
        other.reward,
        other.reason,
        other.checks,
    )


def from_line(line: dict[str, Any]) -> Result:
    """A line of the output, as a result; the inverse of `json.loads(result.text)`."""
    place = f"{line['file']}:{line['line']}"
    return Result(
        text=json.dumps(line).encode() + b"\n",
        key=f"id {line['id']}" if "id" in line else place,
        verifier=line.get("verifier", ""),
        outcome=line.get("outcome", "error"),
        reason=line.get("reason", line.get("error", "")),
        checks=json.dumps(line.get("checks")),
        seconds=line.get("seconds", 0.0),
        as_online=line.get("as_online"),
    )


def unreadable(job: Job, error: str) -> Result:
    """A line that could not be scored still has its line in the output: `error` instead of a verdict."""
    return from_line({"file": job.file, "line": job.line, "error": error})


def lost(job: Job, reason: str) -> Result:
    """The result of a job that took its worker with it: invalid, for a verifier must stop by itself."""
    try:
        record = parse(job.data, gold=job.mode == "gold")
    except RecordError as error:
        return unreadable(job, str(error))
    return to_result(job, record, invalid(record.verifier or record.environment or "", "", reason))


def invalid(verifier: str, version: str, reason: str) -> Verdict:
    """Could not be judged."""
    return Verdict(outcome="invalid", reward=None, reason=reason, verifier=verifier, version=version)
