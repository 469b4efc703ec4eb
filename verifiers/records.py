"""What `rlvr verify` reads: files of lines, and the record on each line.

An *episode* is a line of a run's episode log (`rlvr.types.Episode`). A *plain record* is any program's JSON object:

    "verifier"     math, code, sql or tool_calls; or "environment", an installed environment's name
    "completion"   the model's text, or its messages; or "messages", the whole conversation in OpenAI's form (with a
                   completion as well, they are its prompt)
    "reference"    what the verifier judges by; for math also the bare answer
    "prompt"       optional: a text, or messages;   "id", "metadata"   optional, passed through

Files may be gzip or zstd, told by their first bytes; "-" is standard input.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlvr.errors import ConfigError
from rlvr.types import OVER_BUDGET_STOPS, Episode, Message, Role, Task, Verdict, episode_from_json
from verifiers.registry import VERIFIERS, tool_call_text

MAX_LINE = 64 << 20  # bytes
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class RecordError(ValueError):
    """A line that cannot be scored: "field: what is wrong with it". `line` is its number where only this tells it."""

    def __init__(self, text: str, line: int = 0) -> None:
        self.line = line
        super().__init__(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line, ready to be judged: by the verifier `verifier`, or by that of the environment `environment`.

    `online` is the verdict that the run recorded, for an episode. `final` is a verdict that stands as it is: the
    episode broke off on our side before there was anything to judge.
    """

    id: str | int | None
    verifier: str | None
    environment: str | None
    task: Task
    transcript: tuple[Message, ...]
    metadata: Any = None
    online: Verdict | None = None
    final: Verdict | None = None


# ---- files


def input_files(names: Sequence[str]) -> list[str]:
    """The files behind the arguments: folders (of episodes, or of a whole run) become their files, by name.

    Raises `ConfigError` where there is nothing.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == "-" or path.is_file():
            found.append(name)
            continue
        if not path.exists():
            raise ConfigError(f"{name}: there is no such file or folder")
        folder = path / "episodes" if (path / "episodes").is_dir() else path
        inside = sorted(str(file) for file in folder.iterdir() if file.name.endswith(SUFFIXES))
        if not inside:
            raise ConfigError(f"{folder}: no file in it ends in {', '.join(SUFFIXES)}")
        found += inside
    return found


class Lines:
    """The lines of a file that hold something, with their numbers. `size` is in bytes, 0 for standard input."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Closed by whoever reads to the end of it.
        self._raw: IO[bytes] = sys.stdin.buffer if name == "-" else Path(name).open("rb", buffering=1 << 20)  # noqa: SIM115
        self._read_all = False
        self.size = 0 if name == "-" else Path(name).stat().st_size

    @property
    def position(self) -> int:
        """Bytes read so far, as they lie in the file; 0 for standard input."""
        return self.size if self._read_all else self._raw.tell() if self.size else 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Raises `RecordError` where a compressed file is damaged; the lines before it came through."""
        head = self._raw.peek(4)[:4] if isinstance(self._raw, io.BufferedReader) else b""
        number = 0
        try:
            with _unpacked(self._raw, head) as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    whole = line
                    while len(line) == MAX_LINE and not line.endswith(b"\n"):
                        whole, line = b"\0", file.readline(MAX_LINE)
                    if whole.strip():
                        yield number, whole
        except (OSError, EOFError, ValueError, zlib.error, _zstd_errors()) as error:
            raise RecordError(f"line: cannot be read: {error}", number + 1) from error
        finally:
            self._read_all = True
            self._raw.close()


def _unpacked(raw: IO[bytes], head: bytes) -> IO[bytes]:
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18)
    if head == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
        return io.BufferedReader(reader, 1 << 18)
    return raw


def _zstd_errors() -> type[Exception]:
    module = sys.modules.get("zstandard")
    return module.ZstdError if module is not None else EOFError


# ---- lines


def parse(line: bytes, *, gold: bool = False) -> Record:
    """The record on a line. With `gold` it needs no completion. Raises `RecordError`, and nothing else."""
    if line == b"\0":
        raise RecordError(f"line: longer than {MAX_LINE} bytes")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"line: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise RecordError("line: no JSON object")
    return _episode(line) if "task" in data and "turns" in data else _plain(data, gold=gold)


def _episode(line: bytes) -> Record:
    try:
        episode = episode_from_json(line)
    except ValueError as error:
        errors = error.errors() if hasattr(error, "errors") else [{"loc": ("line",), "msg": str(error)}]
        field = ".".join(map(str, errors[0]["loc"]))
        raise RecordError(f"{field}: {errors[0]['msg']}") from None
    broke_off = episode.verdict.outcome == "invalid" and episode.stop in ("error", "time_budget")
    over_budget = episode.task.budget.over_budget == "incorrect" and episode.stop in OVER_BUDGET_STOPS
    return Record(
        id=episode.id,
        verifier=None,
        environment=episode.task.environment,
        task=episode.task,
        transcript=transcript_of(episode),
        online=episode.verdict,
        final=episode.verdict if broke_off or over_budget else None,
    )


def transcript_of(episode: Episode) -> tuple[Message, ...]:
    """The messages that the verifier saw online: as `rlvr.rollout.play` collects them, a final reply left out."""
    messages = list(episode.task.prompt)
    for turn in episode.turns:
        messages += [turn.message] if turn.reply.done else [turn.message, *turn.reply.messages]
    return tuple(messages)


def _plain(data: dict[str, Any], *, gold: bool) -> Record:
    verifier, environment = data.get("verifier"), data.get("environment")
    if verifier is None and environment is None:
        raise RecordError("verifier: missing")
    for field, value in (("verifier", verifier), ("environment", environment)):
        if not (value is None or isinstance(value, str)):
            raise RecordError(f"{field}: not a text")
    if verifier is not None and verifier not in VERIFIERS:
        raise RecordError(f"verifier: {verifier!r} is unknown; known are {', '.join(sorted(VERIFIERS))}")
    if "reference" not in data:
        raise RecordError("reference: missing")
    reference = data["reference"]
    if not isinstance(reference, dict):
        if verifier not in (None, "math") or not isinstance(reference, (str, int, float)):
            raise RecordError("reference: not a JSON object")
        reference = {"answer": reference if isinstance(reference, str) else json.dumps(reference)}
    transcript, num_prompt = _transcript(data)
    if not gold and not any(message.role == "assistant" for message in transcript[num_prompt:]):
        field = "messages" if "messages" in data and "completion" not in data else "completion"
        raise RecordError(f"{field}: {'no message of the assistant' if field in data else 'missing'}")
    record_id = data.get("id")
    if not (record_id is None or isinstance(record_id, (str, int))):
        raise RecordError("id: neither a text nor a whole number")
    task = Task(
        id=str(record_id) if record_id is not None else "record",
        environment=environment or "",
        prompt=tuple(transcript[:num_prompt]),
        reference=reference,
    )
    return Record(
        id=record_id,
        verifier=verifier,
        environment=None if verifier is not None else environment,
        task=task,
        transcript=tuple(transcript),
        metadata=data.get("metadata"),
    )


def _transcript(data: dict[str, Any]) -> tuple[list[Message], int]:
    """All messages, and how many of them are the prompt: up to the completion; else to the assistant's first answer."""
    if "messages" in data:
        transcript = _messages(data["messages"], "messages")
    else:
        transcript = _messages(data.get("prompt") or [], "prompt", role="user")
    if "completion" in data:
        num_prompt = len(transcript)
        return transcript + _messages(data["completion"], "completion", role="assistant"), num_prompt
    if "messages" not in data:
        return transcript, len(transcript)
    return transcript, next((i for i, each in enumerate(transcript) if each.role == "assistant"), len(transcript))


def _messages(value: Any, field: str, role: str = "user") -> list[Message]:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise RecordError(f"{field}: neither a text nor a list of messages")
    messages = []
    for number, item in enumerate(value):
        place = f"{field}.{number}"
        if not isinstance(item, dict):
            raise RecordError(f"{place}: not a message, {{role, content}}")
        speaker = ROLES.get(str(item.get("role")))
        if speaker is None:
            raise RecordError(f"{place}.role: {item.get('role')!r} is no role")
        content = _content(item.get("content"), place)
        thinking = item.get("reasoning_content") or item.get("thinking") or ""
        if not isinstance(thinking, str):
            raise RecordError(f"{place}.thinking: not a text")
        if speaker == "assistant":
            if not thinking:
                thinking, content = split_thought(content)
            calls = item.get("tool_calls") or []
            if not isinstance(calls, list):
                raise RecordError(f"{place}.tool_calls: not a list")
            content = "\n".join(part for part in [content, *map(tool_call_text, calls)] if part)
        messages.append(Message(role=speaker, content=content, thinking=thinking))
    return messages


def _content(content: Any, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # OpenAI's parts
        texts = [part.get("text", "") if isinstance(part, dict) else part for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise RecordError(f"{place}.content: not a text")
    return content


def split_thought(text: str) -> tuple[str, str]:
    """What a model wrote, as (thought, answer): the rule of `rlvr.rollout.renderer`, which judges it online."""
    before, closed, after = text.partition("</think>")
    if closed:
        return before.partition("<think>")[2] if "<think>" in before else before, after
    content, opened, thought = text.partition("<think>")
    return (thought, content) if opened else ("", text)
