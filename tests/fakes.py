"""Values and fakes that the unit tests share: an episode of any outcome, a sampler with a script, a word tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.tasks import Ticket
from rlvr.types import (
    Budget,
    Completion,
    Episode,
    FinishReason,
    Message,
    Outcome,
    Reply,
    SamplingParams,
    Split,
    Stop,
    Task,
    Turn,
    Verdict,
    WeightSpan,
)

REWARDS: dict[Outcome, float | None] = {"correct": 1.0, "incorrect": -1.0, "invalid": None}


def make_task(number: int = 0, *, environment: str = "e", budget: Budget | None = None) -> Task:
    return Task(
        id=f"{environment}/train/{number}",
        environment=environment,
        prompt=(Message(role="user", content=f"question {number}"),),
        reference={"answer": str(number)},
        budget=budget or Budget(),
    )


def make_ticket(number: int) -> Ticket:
    return Ticket(number=number, task=make_task(number))


def make_verdict(outcome: Outcome = "correct", reason: str = "because") -> Verdict:
    return Verdict(outcome=outcome, reward=REWARDS[outcome], reason=reason, verifier="fake", version="1")


def make_completion(
    token_ids: Sequence[int] = (1, 2, 3),
    *,
    finish_reason: FinishReason = "stop",
    forced: Sequence[int] = (),
    versions: Sequence[int] = (0,),
    drafted: int = 0,
    accepted: int = 0,
) -> Completion:
    """`forced` are positions; `versions` share the tokens out evenly."""
    count = len(token_ids)
    ends = [count * (index + 1) // len(versions) for index in range(len(versions))]
    return Completion(
        token_ids=tuple(token_ids),
        logprobs=tuple(-0.5 for _ in token_ids),
        loss_mask=tuple(int(position not in forced) for position in range(count)),
        finish_reason=finish_reason,
        weight_spans=tuple(
            WeightSpan(version, start, end) for version, start, end in zip(versions, [0, *ends], ends, strict=False)
        ),
        num_draft_tokens=drafted,
        num_accepted_tokens=accepted,
    )


def make_episode(
    outcome: Outcome = "correct",
    *,
    number: int = 0,
    environment: str = "e",
    stop: Stop = "answered",
    completions: Sequence[Completion] | None = None,
    reason: str = "because",
) -> Episode:
    turns = tuple(
        Turn(prompt_ids=(7, 8), completion=completion, message=Message(role="assistant", content="hm"), reply=Reply())
        for completion in (completions if completions is not None else [make_completion()])
    )
    return Episode(
        id=f"{environment}/train/{number}@0#0",
        task=make_task(number, environment=environment),
        turns=turns,
        stop=stop,
        verdict=make_verdict(outcome, reason),
    )


class FakeEnvironment(Environment):
    """`num_tasks` tasks a split; `None` is endless."""

    name = "e"
    summary = "A fake."

    def __init__(self, name: str = "e", *, num_tasks: int | None = 5) -> None:
        super().__init__(EnvironmentSettings())
        self.name = name  # type: ignore[misc]  # an instance may go by a name of its own
        self.num_tasks = num_tasks
        self.calls = 0

    def tasks(self, split: Split) -> Iterator[Task]:
        self.calls += 1
        number = 0
        while self.num_tasks is None or number < self.num_tasks:
            yield Task(id=f"{self.name}/{split}/{number}", environment=self.name, prompt=(), reference={})
            number += 1

    def verifier(self) -> FakeVerifier:
        return FakeVerifier()


@dataclass
class FakeVerifier:
    """Says `outcome` and remembers what it saw."""

    outcome: Outcome = "correct"
    seen: list[tuple[Message, ...]] = field(default_factory=list)
    id: str = "fake"
    version: str = "1"

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        self.seen.append(tuple(transcript))
        return make_verdict(self.outcome)


@dataclass(frozen=True)
class Call:
    """One call that a sampler got."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    group: str


Answer = Completion | BaseException | Callable[[], Awaitable[Completion]]


class ScriptedSampler:
    """Gives the answers of a script in order, the last one for ever; an exception is raised, a function awaited."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.calls: list[Call] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        self.calls.append(Call(tuple(prompt_ids), params, group))
        await asyncio.sleep(0)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Completion) else await answer()


class StreamSampler:
    """A policy whose next tokens are those of a stream, whatever it is asked: each call takes as many as it may."""

    def __init__(self, stream: Sequence[int], *, eos: int) -> None:
        self._stream = list(stream)
        self._eos = eos
        self.calls: list[Call] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        self.calls.append(Call(tuple(prompt_ids), params, group))
        taken: list[int] = []
        while len(taken) < params.max_tokens:
            taken.append(self._stream.pop(0))
            if taken[-1] in (self._eos, *params.stop_token_ids):
                return make_completion(taken, versions=(len(self.calls),), drafted=3, accepted=2)
        return make_completion(taken, finish_reason="length", versions=(len(self.calls),), drafted=3, accepted=2)


class CharacterTokenizer:
    """A token a character; the marks of the template are one token each. Its template opens a thought."""

    eos_token = "<|im_end|>"
    marks = ("<|im_end|>", "<think>", "</think>", "<|im_start|>")
    eos_token_id = 0

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        text = ""
        for message in conversation:
            opening = "<think></think>" if message["role"] == "assistant" else ""
            text += f"<|im_start|>{message['role']}\n{opening}{message['content']}<|im_end|>\n"
        return text + ("<|im_start|>assistant\n<think>" if add_generation_prompt else "")

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids = []
        while text:
            mark = next((mark for mark in self.marks if text.startswith(mark)), None)
            ids.append(self.marks.index(mark) if mark else len(self.marks) + ord(text[0]))
            text = text[len(mark) if mark else 1 :]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        count = len(self.marks)
        return "".join(self.marks[token] if token < count else chr(token - count) for token in token_ids)
