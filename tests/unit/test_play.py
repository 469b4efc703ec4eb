"""Whatever the environment, the model and the clock do, an episode comes out, and it tells what happened where."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from rlvr.interfaces import EnvironmentSettings, Sampler
from rlvr.rollout.play import play
from rlvr.rollout.renderer import Renderer
from rlvr.types import (
    Budget,
    Completion,
    Episode,
    FinishReason,
    Message,
    Reply,
    Task,
    Verdict,
    episode_from_json,
    to_json_line,
)
from tests.fakes import (
    CharacterTokenizer,
    FakeEnvironment,
    FakeVerifier,
    ScriptedSampler,
    StreamSampler,
    make_completion,
    make_task,
)

TOKENIZER = CharacterTokenizer()
RENDERER = Renderer(TOKENIZER)
TOOL = Message(role="tool", content="7")


def says(text: str, *, finish_reason: FinishReason = "stop") -> Completion:
    """What an engine returns for a policy that writes `text`; it ends with its end token unless it was cut off."""
    ids = TOKENIZER.encode(text) + ([TOKENIZER.eos_token_id] if finish_reason == "stop" else [])
    return make_completion(ids, finish_reason=finish_reason)


def assistant(content: str, thinking: str = "") -> Message:
    return Message(role="assistant", content=content, thinking=thinking)


class Scripted(FakeEnvironment):
    """Steps through `replies`, then is done."""

    def __init__(self, *replies: Reply, verifier: FakeVerifier | None = None) -> None:
        super().__init__()
        self.settings = EnvironmentSettings()
        self.judge = verifier or FakeVerifier()
        self._replies = list(replies)
        self.stepped: list[Message] = []

    def step(self, message: Message) -> Reply | Awaitable[Reply]:
        self.stepped.append(message)
        return self._replies.pop(0) if self._replies else Reply(done=True)

    def verifier(self) -> FakeVerifier:
        return self.judge


async def run(
    environment: FakeEnvironment,
    sampler: Sampler,
    *,
    budget: Budget | None = None,
    max_model_len: int = 1000,
    episode_id: str = "e/train/0@0#0",
    seed: int | str = 0,
    temperature: float = 1.0,
    task: Task | None = None,
) -> Episode:
    task = task or make_task(budget=budget or Budget(turns=None))
    episode = await play(
        task,
        episode_id=episode_id,
        environment=environment,
        sampler=sampler,
        renderer=RENDERER,
        max_model_len=max_model_len,
        temperature=temperature,
        seed=seed,
    )
    # Whatever happened, the log line reads back equal.
    assert episode_from_json(to_json_line(episode)) == episode
    return episode


# --- a conversation


async def test_a_single_turn_is_sampled_once_and_judged_on_the_whole_transcript() -> None:
    environment, completion = Scripted(), says("hm</think>42")
    sampler = ScriptedSampler(completion)
    episode = await run(environment, sampler, temperature=0.7)
    assert (episode.stop, episode.verdict.outcome) == ("answered", "correct")
    assert len(episode.turns) == 1
    turn = episode.turns[0]
    assert turn.prompt_ids == RENDERER.start(episode.task.prompt) == sampler.calls[0].prompt_ids
    assert turn.completion == dataclasses.replace(completion, num_thinking_tokens=2)
    assert turn.message == assistant("42", "hm")
    assert environment.judge.seen == [(*episode.task.prompt, assistant("42", "hm"))]
    assert sampler.calls[0].params.temperature == 0.7
    assert sampler.calls[0].group == episode.task.id
    assert set(episode.timings) == {"sample", "environment", "verify", "total"}


async def test_the_next_call_continues_the_very_tokens_that_were_sampled() -> None:
    environment = Scripted(
        Reply(messages=(TOOL, TOOL), done=False), Reply(messages=(Message(role="user", content="ok?"),), done=False)
    )
    completions = [says("a</think>look"), says("b</think>more"), says("c</think>42")]
    sampler = ScriptedSampler(*completions)
    episode = await run(environment, sampler)
    assert len(episode.turns) == len(sampler.calls) == 3
    prefix: tuple[int, ...] = ()
    for turn, call in zip(episode.turns, sampler.calls, strict=True):
        assert call.prompt_ids == prefix + turn.prompt_ids
        prefix = call.prompt_ids + turn.completion.token_ids
    assert TOKENIZER.decode(episode.turns[1].prompt_ids) == (
        "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n<think>"
    )
    assert environment.stepped == [assistant("look", "a"), assistant("more", "b"), assistant("42", "c")]
    assert environment.judge.seen == [
        (
            *episode.task.prompt,
            assistant("look", "a"),
            TOOL,
            TOOL,
            assistant("more", "b"),
            Message(role="user", content="ok?"),
            assistant("42", "c"),
        )
    ]
    assert [turn.reply.done for turn in episode.turns] == [False, False, True]


async def test_what_reset_returns_is_what_the_model_sees_first() -> None:
    class Greeting(Scripted):
        def reset(self, task: Task) -> Sequence[Message]:
            return (Message(role="system", content="Hi."), *task.prompt)

    sampler = ScriptedSampler(says("</think>42"))
    environment = Greeting()
    await run(environment, sampler)
    assert TOKENIZER.decode(sampler.calls[0].prompt_ids).startswith("<|im_start|>system\nHi.<|im_end|>")
    assert environment.judge.seen[0][:2] == (Message(role="system", content="Hi."), *make_task().prompt)


async def test_environment_methods_may_be_coroutines() -> None:
    class Async(Scripted):
        async def reset(self, task: Task) -> Sequence[Message]:  # type: ignore[override]
            await asyncio.sleep(0)
            return (Message(role="user", content="async"),)

        async def step(self, message: Message) -> Reply:
            await asyncio.sleep(0)
            return super().step(message)  # type: ignore[return-value]

    sampler = ScriptedSampler(says("</think>a"), says("</think>b"))
    episode = await run(Async(Reply(messages=(TOOL,), done=False)), sampler)
    assert "async" in TOKENIZER.decode(sampler.calls[0].prompt_ids)
    assert [turn.reply.messages for turn in episode.turns] == [(TOOL,), ()]
    assert episode.verdict.outcome == "correct"


async def test_an_exception_in_a_coroutine_is_invalid_like_any_other() -> None:
    async def dies(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise TimeoutError("the sandbox did not answer")

    episode = await broken("step", dies, budget=Budget(seconds=None))
    assert episode.verdict.reason == "step: TimeoutError('the sandbox did not answer')"


async def test_draws_differ_by_seed_and_turn_and_not_by_the_episodes_name() -> None:
    async def seeds(**values: Any) -> list[int | None]:
        sampler = ScriptedSampler(says("</think>a"))
        await run(Scripted(Reply(done=False)), sampler, **values)
        return [call.params.seed for call in sampler.calls]

    first = await seeds()
    assert first == await seeds() == await seeds(episode_id="another")
    everything = [*first, *await seeds(seed=1), *await seeds(seed="0/e/train/0@0#1")]
    assert len(everything) == len(set(everything)) == 6
    assert all(seed is not None and 0 <= seed < 2**63 for seed in everything)


# --- budgets


async def test_a_completion_that_ran_out_of_tokens_is_judged_but_not_answered() -> None:
    environment = Scripted(verifier=FakeVerifier("incorrect"))
    sampler = ScriptedSampler(says("hm", finish_reason="length"))
    episode = await run(environment, sampler)
    assert (episode.stop, episode.verdict.outcome) == ("completion_budget", "incorrect")
    assert environment.stepped == []
    assert environment.judge.seen == [(*episode.task.prompt, assistant("", "hm"))]
    assert len(episode.turns) == 1


@pytest.mark.parametrize(
    ("budget", "stop", "num_turns"),
    [
        (Budget(turns=2), "turn_budget", 2),
        (Budget(turns=None, tool_calls=3), "tool_call_budget", 2),
        (Budget(turns=None, completion_tokens=11), "completion_budget", 3),
    ],
)
async def test_an_episode_ends_with_a_verdict_where_its_budget_does(budget: Budget, stop: str, num_turns: int) -> None:
    environment = Scripted(*[Reply(messages=(TOOL, TOOL), done=False)] * 9, verifier=FakeVerifier("incorrect"))
    sampler = ScriptedSampler(says("</think>ab"))  # 4 tokens with their end
    episode = await run(environment, sampler, budget=budget)
    assert (episode.stop, len(episode.turns)) == (stop, num_turns)
    assert episode.verdict.outcome == "incorrect", "the model spent it: judged, not invalid"
    assert len(environment.judge.seen) == 1


async def test_each_turn_gets_what_the_turns_before_it_left() -> None:
    environment = Scripted(*[Reply(messages=(TOOL,), done=False)] * 2)
    texts = ("hm</think>a", "h</think>bc", "longer</think>d")
    sampler = StreamSampler([token for text in texts for token in says(text).token_ids], eos=TOKENIZER.eos_token_id)
    episode = await run(environment, sampler, budget=Budget(turns=None, completion_tokens=50, thinking_tokens=4))
    assert [turn.completion.num_thinking_tokens for turn in episode.turns] == [2, 1, 1]
    assert [turn.message.thinking for turn in episode.turns] == ["hm", "h", "l"]
    assert sum(len(turn.completion.token_ids) for turn in episode.turns) <= 50


async def test_a_call_gets_no_more_than_the_context_has_room_for() -> None:
    sampler = ScriptedSampler(says("</think>a"))
    prompt = len(RENDERER.start(make_task().prompt))
    await run(Scripted(), sampler, max_model_len=prompt + 5)
    assert sampler.calls[0].params.max_tokens == 5
    assert sampler.calls[0].params.stop_token_ids == ()


async def test_a_prompt_that_fills_the_context_is_never_sampled() -> None:
    sampler = ScriptedSampler(says("</think>a"))
    episode = await run(Scripted(), sampler, max_model_len=len(RENDERER.start(make_task().prompt)))
    assert (episode.stop, episode.turns, sampler.calls) == ("completion_budget", (), [])


@pytest.mark.parametrize("stop", ["turn_budget", "tool_call_budget", "completion_budget"])
async def test_over_budget_is_incorrect_where_the_budget_says_so_and_nobody_is_asked(stop: str) -> None:
    limits = {
        "turn_budget": Budget(turns=1, over_budget="incorrect"),
        "tool_call_budget": Budget(turns=None, tool_calls=0, over_budget="incorrect"),
        "completion_budget": Budget(turns=None, completion_tokens=4, over_budget="incorrect"),
    }
    environment = Scripted(Reply(messages=(TOOL,), done=False))
    episode = await run(environment, ScriptedSampler(says("</think>ab")), budget=limits[stop])
    assert (episode.stop, episode.verdict.outcome, episode.verdict.reward) == (stop, "incorrect", -1.0)
    assert episode.verdict.reason == f"over budget: {stop}"
    assert environment.judge.seen == []


async def test_an_answer_within_a_strict_budget_is_judged() -> None:
    episode = await run(Scripted(), ScriptedSampler(says("</think>ab")), budget=Budget(over_budget="incorrect"))
    assert (episode.stop, episode.verdict.outcome) == ("answered", "correct")


async def test_the_model_sees_its_tools_and_its_budget_and_the_transcript_stays_the_environments() -> None:
    sampler, environment = ScriptedSampler(says("</think>a")), Scripted()
    task = dataclasses.replace(
        make_task(budget=Budget(note="Think briefly.")), tools=({"type": "function", "function": {"name": "look_up"}},)
    )
    episode = await run(environment, sampler, task=task)
    prompt = TOKENIZER.decode(sampler.calls[0].prompt_ids)
    assert '{"name": "look_up"}' in prompt
    assert "question 0\nThink briefly.<|im_end|>" in prompt
    assert environment.judge.seen == [(*task.prompt, assistant("a"))]
    assert episode.task == task


async def test_the_record_tells_what_reset_asked() -> None:
    class Greeting(Scripted):
        def reset(self, task: Task) -> Sequence[Message]:
            return (Message(role="system", content="Hi."), *task.prompt)

    environment = Greeting()
    episode = await run(environment, ScriptedSampler(says("</think>42")))
    assert (*episode.task.prompt, episode.turns[0].message) == environment.judge.seen[0]


# --- what goes wrong on our side is an invalid episode that names the boundary


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


def returning(value: Any) -> Callable[..., Any]:
    return lambda *_: value


async def broken(boundary: str, function: Callable[..., Any], **values: Any) -> Episode:
    """An episode whose environment does `function` at `boundary`."""
    environment = Scripted()
    if boundary == "verify":
        environment.judge.verify = function  # type: ignore[method-assign]
    elif boundary == "verifier":
        environment.verifier = function  # type: ignore[method-assign]
    else:
        setattr(environment, boundary, function)
    return await run(environment, ScriptedSampler(says("</think>a")), **values)


@pytest.mark.parametrize("boundary", ["reset", "step", "verifier", "verify"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the sandbox died"),
        # Not the episode's clock.
        TimeoutError("the sandbox did not answer"),
        # Neither can leave a thread by itself.
        StopIteration("the sandbox is empty"),
        SystemExit("the sandbox left"),
    ],
)
async def test_an_exception_makes_the_episode_invalid_and_names_where(boundary: str, error: BaseException) -> None:
    named = "verify" if boundary == "verifier" else boundary
    # Unlimited time: a call that never wakes would hang, and pytest's own limit would tell.
    episode = await broken(boundary, raising(error), budget=Budget(seconds=None))
    assert (episode.verdict.outcome, episode.verdict.reward) == ("invalid", None)
    assert episode.verdict.reason.startswith(f"{named}: ")
    assert str(error) in episode.verdict.reason
    assert episode.verdict.checks == {named: False}
    assert episode.stop == ("answered" if named == "verify" else "error")
    assert len(episode.turns) == (1 if named == "verify" else 0)


@pytest.mark.parametrize("refuses", ["assistant", "tool"])
async def test_messages_that_the_template_refuses_make_the_episode_invalid(refuses: str) -> None:
    class Picky(CharacterTokenizer):
        def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
            if any(message["role"] == refuses for message in conversation):
                raise ValueError(f"no {refuses} here")
            return super().apply_chat_template(conversation, **options)

    episode = await play(
        make_task(budget=Budget(turns=None)),
        episode_id="e",
        environment=Scripted(Reply(messages=(TOOL,), done=False)),
        sampler=ScriptedSampler(says("</think>a")),
        renderer=Renderer(Picky()),
        max_model_len=1000,
        temperature=1.0,
        seed=0,
    )
    assert episode.verdict.outcome == "invalid"
    assert episode.verdict.reason == f"render: ValueError('no {refuses} here')"


@pytest.mark.parametrize(("boundary", "expected"), [("reset", "Sequence"), ("step", "Reply"), ("verify", "Verdict")])
async def test_a_method_that_forgets_to_return_makes_the_episode_invalid(boundary: str, expected: str) -> None:
    episode = await broken(boundary, returning(None))
    assert episode.verdict.outcome == "invalid"
    assert f"returned None, not a {expected}" in episode.verdict.reason


async def test_an_exception_in_a_later_step_keeps_the_turns_before_it() -> None:
    class Dies(Scripted):
        def step(self, message: Message) -> Reply:
            if self.stepped:
                raise RuntimeError("died")
            self.stepped.append(message)
            return Reply(messages=(TOOL,), done=False)

    episode = await run(Dies(), ScriptedSampler(says("</think>a"), says("</think>b")))
    assert (episode.stop, episode.verdict.outcome, len(episode.turns)) == ("error", "invalid", 1)
    assert episode.turns[0].reply.messages == (TOOL,)


@pytest.mark.parametrize("boundary", ["reset", "step", "verify"])
async def test_environment_code_that_takes_too_long_is_invalid_and_not_waited_for(boundary: str) -> None:
    release = threading.Event()

    def sleeps(*_: Any) -> Any:
        release.wait(20)

    started = time.perf_counter()
    try:
        episode = await broken(boundary, sleeps, budget=Budget(seconds=0.2))
    finally:
        release.set()
    assert time.perf_counter() - started < 10
    assert episode.verdict.outcome == "invalid"
    assert episode.verdict.reason == f"{boundary}: took longer than the 0.2 s of the episode"


async def test_an_engine_that_takes_too_long_is_invalid_for_time_and_not_judged() -> None:
    async def forever() -> Completion:
        await asyncio.sleep(60)
        raise AssertionError

    environment = Scripted()
    episode = await run(environment, ScriptedSampler(forever), budget=Budget(seconds=0.1))
    assert (episode.stop, episode.verdict.outcome) == ("time_budget", "invalid")
    assert episode.verdict.reason.startswith("sample: ")
    assert environment.judge.seen == []


async def test_blocking_environment_code_leaves_the_event_loop_running() -> None:
    loop_thread = threading.get_ident()
    ran_in: dict[str, int] = {}
    meanwhile = asyncio.Event()
    seen = threading.Event()

    class Blocking(Scripted):
        def reset(self, task: Task) -> Sequence[Message]:
            ran_in["reset"] = threading.get_ident()
            # Only a running loop can set it.
            assert seen.wait(10)
            return task.prompt

        def step(self, message: Message) -> Reply:
            ran_in["step"] = threading.get_ident()
            return Reply()

        def verifier(self) -> FakeVerifier:
            ran_in["verifier"] = threading.get_ident()
            return super().verifier()

    async def ticks() -> None:
        await asyncio.sleep(0.01)
        seen.set()
        meanwhile.set()

    episode, _ = await asyncio.gather(run(Blocking(), ScriptedSampler(says("</think>a"))), ticks())
    assert episode.verdict.outcome == "correct"
    assert set(ran_in) == {"reset", "step", "verifier"}
    assert loop_thread not in ran_in.values()


# --- only a dead engine is an error


@pytest.mark.parametrize("error", [RuntimeError("engine 0 died"), TimeoutError("engine 0 does not answer")])
@pytest.mark.parametrize("seconds", [None, 60.0])
async def test_what_the_sampler_raises_goes_through(error: Exception, seconds: float | None) -> None:
    with pytest.raises(type(error), match="engine 0"):
        await run(Scripted(), ScriptedSampler(error), budget=Budget(seconds=seconds))


async def test_an_episode_that_is_cancelled_ends_at_once_and_cancels_its_call() -> None:
    cancelled = asyncio.Event()

    async def forever() -> Completion:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    playing = asyncio.create_task(run(Scripted(), ScriptedSampler(forever)))
    await asyncio.sleep(0.05)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert cancelled.is_set()


async def test_the_verdict_is_the_verifiers_own() -> None:
    verdict = Verdict(
        outcome="incorrect", reward=-1.0, reason="41", checks={"number": False}, verifier="v", version="9"
    )
    episode = await broken("verify", returning(verdict))
    assert episode.verdict is verdict
