from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from environments.tool_use import ToolUse
from environments.tool_use.desk import BROKEN, TOOLS, World
from environments.tool_use.office import BYE, call, say
from environments.tool_use.policy import RULES
from environments.tool_use.scenarios import FAMILIES, Draw, generate, make_task
from environments.tool_use.session import Session
from rlvr.errors import ConfigError
from rlvr.rollout.worker import Order, RolloutWorker
from rlvr.splits import split_of
from rlvr.types import Completion, Message, SamplingParams, Task, Verdict, to_json_line
from tests.fakes import CharacterTokenizer, make_completion
from verifiers.scoring import Job, Scorer
from verifiers.tool_forms import read

FILE = "environments/tool_use/environment.py:ToolUse"
VERIFIER = ToolUse(ToolUse.Settings()).verifier()


def make(**settings: object) -> ToolUse:
    return ToolUse(ToolUse.Settings.model_validate(settings))


def judge(task: Task, said: Sequence[Message]) -> Verdict:
    return VERIFIER.verify(task, [*task.prompt, *said])


def draws(level: int, number: int = 240) -> list[tuple[Draw, Task]]:
    found = islice(generate(7, (level,), "train"), number)
    return [(draw, make_task(f"tool_use/train/{1000 * level + key}", draw)) for key, draw in enumerate(found)]


# ---- every generated task


@pytest.mark.parametrize("level", FAMILIES)
def test_every_gold_earns_its_point_and_every_slip_loses_it(level: int) -> None:
    families, broken = set(), set()
    for draw, task in draws(level):
        families.add(draw.family)
        for conversation in draw.scenario.golds:
            assert judge(task, conversation).outcome == "correct", (draw.family, conversation)
        for slip in draw.scenario.slips:
            verdict = judge(task, slip.says)
            assert verdict.outcome == "incorrect", (draw.family, slip)
            assert verdict.checks["rules"] is (slip.breaks == ""), (draw.family, slip, verdict.reason)
            if slip.breaks:
                broken.add(slip.breaks)
                assert verdict.reason == BROKEN[slip.breaks], (draw.family, slip)
    assert families == {family.__name__ for family in FAMILIES[level]}
    if level == 3:
        assert broken >= set(BROKEN) - {"confirmation"}


@pytest.mark.parametrize("level", FAMILIES)
def test_silence_echo_goodbye_and_calls_that_change_nothing_earn_nothing(level: int) -> None:
    for draw, task in draws(level, 120):
        echo = [Message(role="assistant", content=message.content) for message in task.prompt]
        reads = [call("find_user", name="a"), call("find_assets"), BYE]
        for said in ([], [say("")], echo, [BYE], [say("Done.")], reads):
            assert judge(task, said).outcome == "incorrect", draw.family
        all_at_once = say("".join(message.content for each in draw.scenario.slips for message in each.says))
        assert judge(task, [all_at_once]).outcome == "incorrect", draw.family


@pytest.mark.parametrize("level", FAMILIES)
def test_a_gold_with_one_step_left_out_or_one_argument_changed_loses_its_point(level: int) -> None:
    reads = {"find_user", "find_assets", "find_tickets", "get_rights", "search_articles"}
    for draw, task in draws(level, 120):
        gold = draw.scenario.golds[0]
        refused = any("security" in message.content for message in gold) and draw.family != "lost_device"
        for place, message in enumerate(gold):
            for made in read(message.content):
                # To refuse somebody takes no proof of who they are.
                if made.name in reads or (refused and made.name == "verify_identity"):
                    continue
                assert judge(task, [*gold[:place], *gold[place + 1 :]]).outcome == "incorrect", (draw.family, made)
                for key in set(made.arguments) - {"subject"}:
                    changed = call(made.name, **(made.arguments | {key: made.arguments[key] + "1"}))
                    said = [*gold[:place], changed, *gold[place + 1 :]]
                    assert judge(task, said).outcome == "incorrect", (draw.family, changed)


def test_every_mistake_offered_to_the_kit_loses_its_point() -> None:
    environment = make()
    for level in FAMILIES:
        for draw, task in draws(level, 60):
            kinds = set()
            for kind, said in environment.mistakes(task):
                kinds.add(kind)
                assert judge(task, said).outcome == "incorrect", (draw.family, kind, said)
            assert kinds == {"altered", "hedge"}


def test_extra_reads_and_notes_change_no_verdict() -> None:
    for draw, task in draws(3, 60):
        user = task.reference["caller"]["id"]
        extra = [
            call("find_user", name=""),
            call("find_tickets", user=user),
            call("get_rights", user=user),
            call("search_articles", word="vpn"),
            call("add_note", ticket=next(iter(task.reference["world"]["tickets"])), text="Looked at it."),
            call("find_user"),  # lacks an argument, and is answered by an error
            call("no_such_tool"),
        ]
        assert judge(task, [*extra, *draw.scenario.golds[0]]).outcome == "correct", draw.family


@pytest.mark.slow
def test_splits_never_meet_and_tasks_are_stable_and_distinct() -> None:
    for level in FAMILIES:
        environment = make(levels=[level], num_train=300, num_held_out=150)
        train, held_out = list(environment.tasks("train")), list(environment.tasks("held_out"))
        assert (len(train), len(held_out)) == (300, 150)
        assert len({task.id for task in train + held_out}) == 450
        assert not {task.prompt for task in train} & {task.prompt for task in held_out}
        assert len({task.prompt for task in held_out}) == 150
        assert list(make(levels=[level], num_train=300).tasks("train")) == train
        assert {task.level for task in train} == {str(level)}
    assert list(islice(make(seed=1).tasks("train"), 20)) != list(islice(make(seed=0).tasks("train"), 20))


def test_the_default_held_out_set_is_there_and_an_impossible_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(make().tasks("held_out"))) == 512
    monkeypatch.setattr("rlvr.splits.PATIENCE", 50)
    same = repeat(draws(1, 1)[0][0])
    monkeypatch.setattr("environments.tool_use.environment.scenarios.generate", lambda *arguments: same)
    with pytest.raises(ConfigError, match="only 1 distinct held-out problems"):
        list(make().tasks("held_out"))


def test_the_first_task_of_a_seed_is_the_same_in_every_version() -> None:
    task = next(iter(make().tasks("train")))
    assert task.id == "tool_use/train/0"
    assert task.prompt[1].content == "I am u78. The scanner in room 84 broke, 1 affected. A ticket, please."
    assert task.reference["states"] == [
        {
            "tickets": {
                "T-101": {
                    "user": "u78",
                    "subject": "scanner",
                    "priority": "normal",
                    "team": "desk",
                    "status": "open",
                    "article": "",
                }
            }
        }
    ]


def test_tools_and_policy_of_a_task_cover_what_its_gold_calls() -> None:
    used: set[str] = set()
    for level in FAMILIES:
        for draw, task in draws(level, 120):
            offered = {tool["function"]["name"] for tool in task.tools}
            called = {made.name for each in draw.scenario.golds for message in each for made in read(message.content)}
            assert called <= offered, draw.family
            assert set(draw.scenario.rules) <= set(RULES)
            used |= called
            if level == 1:
                assert sum(len(message.content) for message in task.prompt) < 320
                assert len(task.reference["gold"]) == 2
    assert used >= set(TOOLS) - {"add_note", "delete_asset", "find_tickets", "retire_asset"}


# ---- the rules, on a world written by hand

USER = {"name": "Ann Ames", "manager": "u2", "pin": "1111", "status": "locked", "password": "set"}
BOSS = {"name": "Bob Boss", "manager": "", "pin": "2222", "status": "active", "password": "set"}
TICKET = {"user": "u1", "subject": "x", "priority": "normal", "team": "desk", "status": "open", "article": ""}
WORLD: World = {
    "users": {"u1": USER, "u2": BOSS, "u3": USER | {"name": "Cy Colt", "pin": "3333"}},
    "tickets": {"T-7": TICKET, "T-8": TICKET},
    "assets": {
        "A-1": {"kind": "phone", "status": "assigned", "owner": "u1"},
        "A-2": {"kind": "phone", "status": "in_stock", "owner": ""},
    },
    "rights": {"u3:vpn": {"user": "u3", "right": "vpn"}},
    "approvals": {
        "u1:vpn": {"user": "u1", "right": "vpn", "by": "u2", "status": "approved"},
        "u1:admin": {"user": "u1", "right": "admin", "by": "u3", "status": "approved"},
        "u1:finance": {"user": "u1", "right": "finance", "by": "u2", "status": "denied"},
    },
}
SOLVED = {"ticket": "T-7", "when": {"users": {"u1": {"status": "active"}}}, "yes": "Yes.", "no": "No."}


def session(caller: str = "u1", **script: Any) -> Session:
    return Session({"world": WORLD, "caller": {"id": caller, **script}, "tools": list(TOOLS)})


PIN_1, PIN_3 = call("verify_identity", user="u1", pin="1111"), call("verify_identity", user="u3", pin="3333")
PIN_2, BAD_PIN = call("verify_identity", user="u2", pin="2222"), call("verify_identity", user="u1", pin="1112")
UNLOCK, RESET = call("unlock_account", user="u1"), call("reset_password", user="u1")
DISABLE = call("disable_account", user="u3")
RETURN, GIVE = call("return_asset", asset="A-1"), call("assign_asset", asset="A-2", user="u1")
CLOSE = call("close_ticket", ticket="T-7")
ASK = say("Is it solved?")


@pytest.mark.parametrize(
    ("caller", "said", "broken"),
    [
        ("u1", [PIN_1, UNLOCK], []),
        ("u1", [PIN_1, UNLOCK, RESET], []),
        ("u1", [UNLOCK], ["identity"]),
        ("u1", [RESET], ["identity"]),
        ("u1", [BAD_PIN, UNLOCK], ["identity"]),
        ("u1", [UNLOCK, PIN_1], ["identity"]),
        ("u1", [PIN_3, UNLOCK], ["identity"]),
        ("u1", [PIN_3, call("reset_password", user="u3")], ["own_account"]),
        ("u1", [PIN_1, call("reset_password", user="u3")], ["identity", "own_account"]),
        ("u1", [call("grant_right", user="u1", right="vpn")], []),
        ("u1", [call("grant_right", user="u1", right="admin")], ["approval"]),  # approved, but not by the manager
        ("u1", [call("grant_right", user="u1", right="finance")], ["approval"]),  # denied
        ("u1", [call("grant_right", user="u3", right="admin")], ["approval"]),  # nobody was asked
        (
            "u1",
            [call("request_approval", user="u1", right="admin"), call("grant_right", user="u1", right="admin")],
            ["approval"],  # asked is not approved
        ),
        ("u2", [PIN_2, DISABLE], []),
        ("u2", [DISABLE], ["leaver"]),
        ("u1", [PIN_1, DISABLE], ["leaver"]),
        ("u1", [PIN_2, DISABLE], ["leaver"]),  # the manager's PIN in another's mouth
        ("u1", [RETURN, GIVE], []),
        ("u1", [GIVE], ["one_of_a_kind"]),
        ("u1", [call("delete_asset", asset="A-2")], ["no_delete"]),
        ("u1", [call("retire_asset", asset="A-2")], []),
        ("u1", [PIN_1, UNLOCK, ASK, CLOSE], []),
        ("u1", [PIN_1, UNLOCK, CLOSE], ["confirmation"]),
        ("u1", [ASK, PIN_1, UNLOCK, CLOSE], ["confirmation"]),  # asked before it was
        ("u1", [PIN_1, UNLOCK, ASK, call("close_ticket", ticket="T-8")], ["confirmation"]),  # another ticket
        ("u1", [CLOSE, CLOSE], ["confirmation"]),  # the second is refused, and changes nothing
        ("u1", [call("delete_asset", asset="A-9"), call("unlock_account", user="u9")], []),  # there is no such thing
    ],
)
def test_a_rule_is_broken_by_what_was_done_and_by_nothing_else(
    caller: str, said: list[Message], broken: list[str]
) -> None:
    playing = session(caller, solved=SOLVED)
    for message in said:
        playing.answer(message)
    assert playing.broken_rules() == [BROKEN[rule] for rule in broken]


@pytest.mark.parametrize(
    "made",
    [
        call("unlock_account", user="u2"),
        call("return_asset", asset="A-2"),
        call("assign_asset", asset="A-1", user="u3"),
        call("assign_asset", asset="A-2", user="u9"),
        call("grant_right", user="u3", right="vpn"),
        call("revoke_right", user="u1", right="vpn"),
        call("escalate_ticket", ticket="T-7", team="kitchen"),
        call("send_article", ticket="T-7", article="KB-1"),
        call("create_ticket", user="u9", subject="x", priority="high"),
        call("create_ticket", user="u1", subject="x", priority="highest"),
        call("_set", table="users", key="u1", status="active"),
        call("state"),
        call("close_ticket", ticket="T-7'; DROP TABLE tickets; --"),
    ],
)
def test_a_refused_call_says_why_and_changes_nothing(made: Message) -> None:
    playing = session()
    before = playing.state()
    [answer] = playing.answer(made).messages
    assert answer.role == "tool"
    assert answer.content.startswith("error: ")
    assert (playing.state(), playing.broken_rules()) == (before, [])


def test_a_pin_cannot_be_guessed() -> None:
    playing = session()
    for pin in ("1", "2", "3"):
        playing.answer(call("verify_identity", user="u1", pin=pin))
    [answer] = playing.answer(PIN_1).messages
    assert "too many wrong PINs" in answer.content
    playing.answer(UNLOCK)
    assert playing.broken_rules() == [BROKEN["identity"]]


def test_sessions_share_nothing() -> None:
    first, second = session(), session()
    before = second.state()
    for message in (PIN_1, UNLOCK, call("delete_asset", asset="A-1")):
        first.answer(message)
    assert second.state() == before == session().state()
    second.answer(UNLOCK)
    assert second.broken_rules() == [BROKEN["identity"]]  # the other session's caller was verified, not this one's


@pytest.mark.parametrize("spoil", [{"tools": ["_set"]}, {"world": {"users": {"u1": {}}}}, {"caller": {}}])
def test_a_spoilt_reference_is_invalid_and_not_the_models_fault(spoil: dict[str, Any]) -> None:
    spoilt = dataclasses.replace(TASK, reference=TASK.reference | spoil)
    assert judge(spoilt, GOLD).outcome == "invalid"


# ---- the caller


def heard(playing: Session, text: str) -> str | None:
    reply = playing.answer(say(text))
    return None if reply.done else " ".join(message.content for message in reply.messages)


def test_the_caller_tells_what_it_is_asked_and_hangs_up_when_all_is_said() -> None:
    facts = [{"words": ["pin"], "says": "It is 1111."}, {"words": ["how many"], "says": "Four."}]
    playing = session(facts=facts, later=["One more thing."], solved=SOLVED)
    assert heard(playing, "Hello.") == "One more thing."
    assert heard(playing, "Hello?") == "I am listening."
    assert heard(playing, "Your PIN, and how many are you?") == "It is 1111. Four."
    assert heard(playing, "I am spinning.") == "I am listening."  # words, not letters
    assert heard(playing, "Does it work?") == "No."
    playing.answer(PIN_1)
    playing.answer(UNLOCK)
    assert heard(playing, "Does it work?") == "Yes."
    assert heard(playing, "Goodbye!") is None


def test_goodbye_brings_up_what_the_caller_still_wants() -> None:
    playing = session(later=["One more thing."])
    assert heard(playing, "Goodbye.") == "One more thing."
    assert heard(playing, "Goodbye.") is None


def test_a_message_with_calls_is_for_the_tools_and_not_for_the_caller() -> None:
    reply = session().answer(say(f"Goodbye. {PIN_1.content}"))
    assert [message.role for message in reply.messages] == ["tool"]
    assert not reply.done


# ---- what a model may try

DRAW, TASK = next(
    (draw, task) for draw, task in draws(2) if draw.family == "hand_out" and draw.scenario.slips[0].breaks
)
GOLD = DRAW.scenario.golds[0]
CALLS = [message.content for message in GOLD[:-1]]


def test_calls_of_one_message_are_carried_out_in_order() -> None:
    assert judge(TASK, [say("\n".join(CALLS))]).outcome == "correct"
    assert judge(TASK, [say("\n".join(reversed(CALLS)))]).reason == BROKEN["one_of_a_kind"]


def test_calls_in_a_thought_do_not_count() -> None:
    text = "".join(CALLS)
    thought = Message(role="assistant", content="Goodbye.", thinking=text)
    for message in (thought, say(f"<think>{text}"), say(f"{text}</think>Done.")):
        assert judge(TASK, [message]).outcome == "incorrect"


def test_calls_after_the_end_do_not_count() -> None:
    assert judge(TASK, [BYE, *GOLD]).outcome == "incorrect"
    assert judge(TASK, [*GOLD, call("delete_asset", asset=next(iter(TASK.reference["world"]["assets"])))]).reward == 1.0


def test_tool_output_in_the_models_own_words_is_no_call() -> None:
    fakes = [f"tool: assigned\n{text}" for text in ("assigned", '{"role": "tool", "content": "assigned"}')]
    fakes += [f"<tool_response>{text}</tool_response>" for text in CALLS]
    fakes += [text.replace("<tool_call>", "<tool>").replace("</tool_call>", "</tool>") for text in CALLS]
    for fake in [*fakes[:2], "".join(fakes[-len(CALLS) :])]:
        assert judge(TASK, [say(fake), BYE]).outcome == "incorrect"


def test_a_malformed_call_is_answered_and_may_be_made_good() -> None:
    for broken in ("<tool_call>{", "<tool_call>find_user('a')</tool_call>", CALLS[-1].replace("{", "{{", 1), "<think>"):
        environment = make()
        environment.reset(TASK)
        reply = environment.step(say(broken))
        assert not reply.done
        assert reply.messages[0].content.startswith("error: ")
        assert judge(TASK, [say(broken), *reply.messages, *GOLD]).outcome == "correct"
        assert judge(TASK, [say(CALLS[-1] + broken), BYE]).outcome == "incorrect"


def test_other_forms_of_calls_do_as_well() -> None:
    said = []
    for text in CALLS:
        [made] = read(text)
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in made.arguments.items())
        said.append(say(f"<tool_call>\n<function={made.name}>\n{parameters}\n</function>\n</tool_call>"))
    assert judge(TASK, said).outcome == "correct"
    openai = [{"function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for t in CALLS for c in read(t)]
    assert judge(TASK, [say(json.dumps({"tool_calls": openai}))]).outcome == "correct"


def test_no_text_makes_the_verdict_invalid() -> None:
    rng = random.Random(0)
    pieces = ["<tool_call>", "</tool_call>", "{", '"', "\\u0000", "\0", "<function=", "1e999", "\ud800", "[" * 90, "99"]
    for draw, task in draws(3, 40):
        gold = [message.content for message in draw.scenario.golds[0]]
        for _ in range(10):
            texts = list(gold)
            for _ in range(rng.randint(1, 6)):
                which = rng.randrange(len(texts))
                at = rng.randint(0, len(texts[which]))
                texts[which] = texts[which][:at] + rng.choice(pieces) + texts[which][at + rng.randint(0, 9) :]
            verdict = judge(task, [say(text) for text in texts])
            assert verdict.outcome in ("correct", "incorrect"), verdict.reason


def test_an_episode_full_of_calls_is_judged_in_time() -> None:
    user = TASK.reference["caller"]["id"]
    _, task = next((draw, task) for draw, task in draws(3) if draw.family == "leaver")
    many = call("create_ticket", user=user, subject="x" * 500, priority="high").content * 128
    verdict = judge(task, [say(many) for _ in range(24)])
    assert verdict.outcome == "incorrect"
    assert verdict.seconds < 60  # a second on an idle machine


# ---- as the trainer plays it


class Golds:
    """Samples what each task's gold says next; `extra` goes in front of its first message."""

    def __init__(self, tasks: Sequence[Task], extra: str = "") -> None:
        self._golds = {task.id: task.reference["gold"] for task in tasks}
        self._tokenizer = CharacterTokenizer()
        self._extra = extra

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, group: str) -> Completion:
        turn = self._tokenizer.decode(prompt_ids).count("<|im_start|>assistant") - 1
        text = (self._extra if turn == 0 else "") + self._golds[group][turn]
        return make_completion(self._tokenizer.encode(f"</think>{text}<|im_end|>"))


async def play(tasks: Sequence[Task], *, group_size: int = 1, extra: str = "") -> list[Any]:
    worker = RolloutWorker(
        environments=[(FILE, {})], tokenizer=CharacterTokenizer(), sampler=Golds(tasks, extra), max_model_len=100_000
    )
    order = {
        "series": "t",
        "environment": 0,
        "group_size": group_size,
        "temperature": 1.0,
        "birth_version": 0,
        "seed": 0,
    }
    groups = [await worker.play(Order(ticket=key, task=task, **order)) for key, task in enumerate(tasks)]  # type: ignore[arg-type]
    await worker.close()
    return [episode for group in groups for episode in group.episodes]


@pytest.mark.slow
async def test_episodes_played_with_the_golds_are_right_online_and_offline(tmp_path: Path) -> None:
    tasks = [task for level in FAMILIES for _, task in draws(level, 40)]
    episodes = await play(tasks, group_size=2)
    assert {(episode.stop, episode.verdict.outcome) for episode in episodes} == {("answered", "correct")}
    (tmp_path / "config.json").write_text(json.dumps({"environments": [{"name": FILE, "settings": {}}]}))
    (tmp_path / "episodes").mkdir()
    file = str(tmp_path / "episodes" / "0.jsonl")
    scorer = Scorer()
    for number, episode in enumerate(episodes, 1):
        result = scorer.score(Job(file, number, to_json_line(episode).encode()))
        assert (result.outcome, result.as_online) == ("correct", True), result.text


async def test_episodes_cut_off_by_their_budget_are_judged_by_what_was_done() -> None:
    tasks = [task for _, task in draws(1, 30)]
    short = [dataclasses.replace(task, budget=dataclasses.replace(task.budget, turns=1)) for task in tasks]
    assert {(e.stop, e.verdict.reward) for e in await play(short)} == {("turn_budget", 1.0)}
    short = [dataclasses.replace(task, budget=dataclasses.replace(task.budget, turns=1)) for _, task in draws(3, 30)]
    assert {(e.stop, e.verdict.reward) for e in await play(short)} <= {("turn_budget", -1.0), ("turn_budget", 1.0)}


async def test_an_error_of_ours_in_a_tool_makes_the_episode_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *arguments: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("environments.tool_use.desk.Desk._select", broken)
    [episode] = await play([TASK])
    assert episode.verdict.outcome == "invalid"
    assert "the disk is gone" in episode.verdict.reason


# ---- worked examples


@pytest.mark.parametrize("level", FAMILIES)
def test_worked_examples_are_whole_prefixes_of_training_conversations(level: int) -> None:
    environment = make(levels=[level])
    examples = list(islice(environment.worked_examples(3), 300))
    assert examples == list(islice(make(levels=[level]).worked_examples(3), 300))
    for example in examples:
        assert split_of("\n".join(message.content for message in example.prompt[:2]), exactly=True) == "train"
        assert example.prompt[-1].role in ("user", "tool")
        assert example.answer.role == "assistant"
        assert example.answer.content
        assert example.tools
        assert len(example.answer.thinking) < 40
    assert any(example.prompt[-1].role == "tool" for example in examples)
