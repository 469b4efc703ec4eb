"""Checks of what earns +1 and what earns -1, by playing real episodes with a script for a policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rlvr.kit.checks.check import Complaints, NotApplicable, brief, check
from rlvr.kit.checks.mistakes import Kind, mistakes
from rlvr.kit.scripted import Script, say
from rlvr.kit.subject import Subject
from rlvr.types import Episode, Message, Task

# A made-up mistake may hit the truth by chance: by so large a share of one kind of change.
_CHANCE: dict[Kind, float] = {"wrong": 0.25, "hedge": 0.25, "altered": 0.5}
_NUM_HOSTILE_TASKS = 3


@check(
    remedy="play it by hand (rlvr env play) and read the reason; the reference, `gold` or the verifier is at fault",
    needs=["in_time", "any_thread"],
)
async def gold(subject: Subject) -> Complaints:
    """the gold answer of every task earns +1"""
    episodes = await subject.play_golds(subject.tasks)
    return [_told(episode) for episode in episodes if episode.verdict.outcome != "correct"]


@check(remedy="a verifier asks for the answer first; what is not there is incorrect", needs=["in_time", "any_thread"])
async def silence(subject: Subject) -> Complaints:
    """an empty message, turn after turn, earns -1"""
    return await _earns_minus_one(subject, ((task, say()) for task in subject.tasks))


@check(
    remedy="the state before the first turn must not be an accepted one, nor the lack of an answer a right one",
    needs=["in_time", "any_thread"],
)
async def doing_nothing(subject: Subject) -> Complaints:
    """polite words without an answer earn -1, and so does an episode that ends before the model speaks"""
    complaints = await _earns_minus_one(subject, ((task, say(then="Okay.")) for task in subject.tasks))
    for task in subject.tasks[:_NUM_HOSTILE_TASKS]:
        verdict = subject.single_use().verifier().verify(task, task.prompt)
        if verdict.outcome != "incorrect":
            complaints.append(f"{task.id!r} without an assistant message: {verdict.outcome}, {brief(verdict.reason)}")
    return complaints


@check(
    remedy="compare with the reference, not with the form; offer `mistakes(task)` where another task's gold is right",
    needs=["in_time", "any_thread"],
)
async def wrong_answer(subject: Subject) -> Complaints:
    """another task's gold earns -1"""
    return await _mistakes_earn_minus_one(subject, "wrong")


@check(remedy="judge the answer, not words that also stand in the prompt", needs=["in_time", "any_thread"])
async def echo(subject: Subject) -> Complaints:
    """the prompt said back earns -1"""

    def attempts() -> Iterable[tuple[Task, Script]]:
        for task in subject.tasks:
            whole = "\n\n".join(message.content for message in task.prompt)
            yield task, say(then=task.prompt[-1].content)
            if whole != task.prompt[-1].content:
                yield task, say(then=whole)

    return await _earns_minus_one(subject, attempts())


@check(
    remedy="of several answers none counts, or the last; offer `mistakes(task)` where wrong ones do nothing",
    needs=["in_time", "any_thread"],
)
async def hedge(subject: Subject) -> Complaints:
    """the right answer between wrong ones earns -1"""
    return await _mistakes_earn_minus_one(subject, "hedge")


@check(
    remedy="compare the whole answer exactly; offer `mistakes(task)` where a changed digit or line changes nothing",
    needs=["in_time", "any_thread"],
)
async def altered_gold(subject: Subject) -> Complaints:
    """the gold with one thing changed earns -1"""
    return await _mistakes_earn_minus_one(subject, "altered")


@check(
    remedy="what a model may write never raises: catch what parsing it raises, and answer or judge it incorrect",
    needs=["in_time", "any_thread"],
)
async def hostile_text(subject: Subject) -> Complaints:
    """no text that a model may write makes an episode invalid or earns +1"""
    tasks = subject.tasks[:_NUM_HOSTILE_TASKS]
    return await _earns_minus_one(subject, ((task, say(then=text)) for task in tasks for text in HOSTILE))


HOSTILE = (
    "\x00",
    "\ufffd",
    "\u202e\u200b\ufeff",
    "\\boxed{",
    "\\boxed{\\boxed{\\boxed{}}}",
    "```python\nwhile",
    "```sql\nSELECT",
    "<tool_call>",
    "<tool_call>\n{}\n</tool_call>",
    '<tool_call>\n{"name": 7, "arguments": "x"}\n</tool_call>',
    '<tool_call>\n{"name": "__class__", "arguments": {"self": null}}\n</tool_call>',
    "<answer></answer>",
    "{" * 2_000,
    "(" * 2_000 + ")" * 2_000,
    "[[[[" * 500,
    "9" * 5_000,
    "1e999999",
    "nan",
    "\n" * 5_000,
    "%s %d {0} {x!r} $HOME $(id)",
    "'; DROP TABLE users; --",
    "a" * 20_000,
)


async def _mistakes_earn_minus_one(subject: Subject, kind: Kind) -> Complaints:
    made = mistakes(subject, kind)
    if not made:
        raise NotApplicable("all golds are alike, so none can be made; offer `mistakes(task)`")
    episodes = await subject.play_all((mistake.task, say(*mistake.messages)) for mistake in made)
    by_change: dict[str, list[Episode]] = defaultdict(list)
    certain = {mistake.change: mistake.certain for mistake in made}
    for mistake, episode in zip(made, episodes, strict=True):
        by_change[mistake.change].append(episode)
    complaints = []
    for change, played in by_change.items():
        invalid = [episode for episode in played if episode.verdict.outcome == "invalid"]
        correct = [episode for episode in played if episode.verdict.outcome == "correct"]
        complaints += [f"{change}: {_told(episode)}" for episode in invalid]
        if len(correct) > (0 if certain[change] else _CHANCE[kind] * len(played)):
            complaints.append(f"{change}: {len(correct)} of {len(played)} earned +1, such as {_told(correct[0])}")
    return complaints


async def _earns_minus_one(subject: Subject, attempts: Iterable[tuple[Task, Script]]) -> Complaints:
    episodes = await subject.play_all(attempts)
    return [_told(episode) for episode in episodes if episode.verdict.outcome != "incorrect"]


def _told(episode: Episode) -> str:
    said = _last_words([turn.message for turn in episode.turns])
    return f"{episode.task.id!r}, {brief(said, 50)!r}: {episode.verdict.outcome}, {brief(episode.verdict.reason)}"


def _last_words(messages: Sequence[Message]) -> str:
    return next((message.content for message in reversed(messages) if message.content), "")
