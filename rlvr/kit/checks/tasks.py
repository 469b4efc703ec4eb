"""Checks of the tasks themselves: nothing is played."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from rlvr.kit.checks import elsewhere
from rlvr.kit.checks.check import Complaints, NotApplicable, brief, check
from rlvr.kit.subject import Subject
from rlvr.types import Split, Task, from_json, to_json_line

# A gold answer of so many characters does not stand in a prompt by chance.
_LONG = 24
# One rule that finds the answer in so large a share of the prompts is a leak.
_COPYABLE = 0.8
_MIN_ANSWERS = 3


@check(remedy="yield Task(id=f'{name}/{split}/{key}', environment=name, prompt=..., reference={plain JSON})")
async def well_formed(subject: Subject) -> Complaints:
    """every task has its environment's name, a prompt, and a reference that JSON carries unchanged"""
    complaints = []
    for split, tasks in subject.read.items():
        for task in tasks:
            if (wrong := _malformed(subject.environment.name, split, task)) is not None:
                complaints.append(f"task {brief(task.id, 60)!r}: {wrong}")
    return complaints


def _malformed(name: str, split: Split, task: Task) -> str | None:
    if task.environment != name:
        return f"environment = {task.environment!r}, not {name!r}"
    if not task.id.startswith(f"{name}/{split}/"):
        return f"its id does not begin with {name}/{split}/"
    if not any(message.role == "user" and message.content.strip() for message in task.prompt):
        return "its prompt has no user message"
    try:
        same = from_json(Task, to_json_line(task)) == task
    except Exception as error:
        return f"it is not plain data: {brief(error)}"
    return None if same else "it comes back changed from JSON (tuples become lists, keys become text)"


@check(remedy="give every task a key of its own: its line in a file, its number in a stream")
async def unique_ids(subject: Subject) -> Complaints:
    """no two tasks share an id"""
    counts = Counter(task.id for tasks in subject.read.values() for task in tasks)
    return [f"{task_id!r} stands for {count} tasks" for task_id, count in counts.items() if count > 1]


@check(remedy="draw from random.Random(seed), never from the global generator, hash(), time or the order of a set")
async def stable(subject: Subject) -> Complaints:
    """the same tasks come in the same order, on every call and in every process"""
    complaints = []
    for split, tasks in subject.read.items():
        again = tuple(islice(subject.environment.tasks(split), len(tasks)))
        complaints += _differing(f"{split}, second call", tasks, again)
    report = await elsewhere.ask(subject, golds=())
    for split, tasks in subject.read.items():
        complaints += _differing(f"{split}, another process", tasks, report.tasks[split])
    return complaints


def _differing(where: str, first: Sequence[Task], second: Sequence[Task]) -> Complaints:
    if len(first) != len(second):
        return [f"{where}: {len(second)} tasks, not {len(first)}"]
    for old, new in zip(first, second, strict=True):
        if old != new:
            names = [field.name for field in dataclasses.fields(Task)]
            changed = ", ".join(name for name in names if getattr(old, name) != getattr(new, name))
            return [f"{where}: task {old.id!r} came back with another {changed}"]
    return []


@check(remedy="decide the split by a hash of the problem's text, or by ranges of seeds and a check of the texts")
async def disjoint_splits(subject: Subject) -> Complaints:
    """no held-out task is also a training task"""

    def problem(task: Task) -> object:
        # With tools a hidden state may differ under one and the same prompt.
        hidden = repr(task.reference) if subject.has_own_step else ""
        return " ".join(" ".join(message.content for message in task.prompt).split()), hidden

    train = {problem(task): task.id for task in subject.read["train"]}
    both = [(train[problem(task)], task.id) for task in subject.read["held_out"] if problem(task) in train]
    return [f"{held_out!r} asks what {in_train!r} asks" for in_train, held_out in both]


@check(remedy="keep the reference out of the prompt; if the task is to find it there, vary where it stands")
async def hidden_reference(subject: Subject) -> Complaints:
    """the prompt does not give the answer away

    An answer may stand in a prompt by chance, or as one of several choices. It is given away when it is long, when the
    whole reference stands there, or when one copying rule (the k-th word; what follows a certain word) finds it in
    most of the prompts. That rule is not for tasks with tools: what a call needs may well stand in the prompt.
    """
    prompts = [" ".join("\n".join(message.content for message in task.prompt).split()) for task in subject.tasks]
    complaints = []
    for task, prompt in zip(subject.tasks, prompts, strict=True):
        dumps = {to_json_line(task.reference), repr(task.reference)} if task.reference else set()
        if any(" ".join(dump.split()) in prompt for dump in dumps):
            complaints.append(f"{task.id!r}: the whole reference stands in the prompt")
    try:
        answers = _answers([[message.content for message in subject.gold(task)] for task in subject.tasks])
    except Exception as error:
        raise NotApplicable(f"no gold answers to look for ({brief(error)})") from None
    pairs = [(task.id, prompt, answer) for task, prompt, answer in zip(subject.tasks, prompts, answers, strict=True)]
    complaints += [
        f"{task_id!r}: {brief(answer, 60)!r}, the gold answer, stands in the prompt"
        for task_id, prompt, answer in pairs
        if len(answer) >= _LONG and answer in prompt
    ]
    if not complaints and len(set(answers)) >= _MIN_ANSWERS and not any(task.tools for task in subject.tasks):
        complaints += _copying_rules([(prompt.split(), answer) for _, prompt, answer in pairs])
    return complaints


def _answers(golds: list[list[str]]) -> list[str]:
    """What tells the golds apart: without the beginning and the end that all of them share ("\\boxed{", "}")."""
    texts = [" ".join("\n".join(gold).split()) for gold in golds]
    if len(set(texts)) < 2:
        return texts
    start = _common_start(texts)
    end = _common_start([text[start:][::-1] for text in texts])
    return [text[start : len(text) - end].strip() for text in texts]


def _common_start(texts: Sequence[str]) -> int:
    """How many characters all begin with, no word cut in two."""
    first, last = min(texts), max(texts)
    same = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return len(re.sub(r"\w+$", "", first[:same]))


def _copying_rules(pairs: Sequence[tuple[list[str], str]]) -> Complaints:
    found: Counter[str] = Counter()
    for words, answer in pairs:
        wanted = answer.split()
        found.update({rule for rule, start in _rules(words) if _matches(words[start : start + len(wanted)], wanted)})
    rule, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    if count < _COPYABLE * len(pairs):
        return []
    return [f"{rule} of the prompt is the answer in {count} of {len(pairs)} tasks"]


def _rules(words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Copying rules that lead into a prompt, and where each leads."""
    for start, word in enumerate(words):
        yield f"word {start + 1}", start
        yield f"word {len(words) - start} from the end", start
        if word not in words[:start]:
            yield f"what follows the first {word!r}", start + 1


def _bare(word: str) -> str:
    return word.strip(".,:;!?\"'`()[]{}")


def _matches(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return bool(wanted) and [_bare(word) for word in words] == [_bare(word) for word in wanted]
