from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.types import Message, Task, Verdict
from tests.clock import processor_seconds
from verifiers import tool_schema
from verifiers.tool_calls import ToolCallSettings, ToolCallVerifier, compare_states, same
from verifiers.tool_forms import Call, FormError, read
from verifiers.worker import WorkerPool

TOOLS = json.loads((Path(__file__).parents[1] / "data" / "tool_calls" / "tools.json").read_text())
CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "tool_calls" / "cases.jsonl").read_text().splitlines()
]


def judge(reference: dict[str, Any], *contents: str, verifier: ToolCallVerifier | None = None) -> Verdict:
    prompt = (Message(role="user", content="Book it. <tool_call>no call of the model's</tool_call>"),)
    task = Task(id="tool_use/train/0", environment="tool_use", prompt=prompt, reference={"tools": TOOLS, **reference})
    answers = [Message(role="assistant", content=content) for content in contents]
    return (verifier or ToolCallVerifier()).verify(task, [*prompt, *answers])


def hermes(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_recorded_cases_get_their_verdict(case: dict[str, Any]) -> None:
    verdict = judge(case["reference"], case["completion"])
    assert verdict.outcome == case["outcome"], verdict.reason
    assert case.get("reason", "") in verdict.reason


ADD = {"name": "add_item", "arguments": {"cart": "a", "sku": "x1", "quantity": 2}}
PAY = {"name": "pay", "arguments": {"cart": "a"}}


def test_order_counts_unless_the_reference_says_otherwise() -> None:
    swapped = hermes("pay", cart="a") + hermes("add_item", cart="a", sku="x1", quantity=2)
    assert judge({"calls": [ADD, PAY]}, swapped).outcome == "incorrect"
    assert judge({"calls": [ADD, PAY], "order": "any"}, swapped).outcome == "correct"
    assert judge({"calls": [ADD, PAY], "order": "some"}, swapped).outcome == "invalid"


def test_the_same_call_twice_is_not_one_call() -> None:
    once, twice = hermes("pay", cart="a"), hermes("pay", cart="a") * 2
    for order in ("given", "any"):
        assert judge({"calls": [PAY], "order": order}, twice).outcome == "incorrect"
        assert judge({"calls": [PAY, PAY], "order": order}, once).outcome == "incorrect"
        assert judge({"calls": [PAY, PAY], "order": order}, twice).outcome == "correct"


def test_calls_of_several_turns_add_up_and_settings_choose_the_last() -> None:
    turns = (hermes("add_item", cart="a", sku="x1", quantity=2), hermes("pay", cart="a"))
    last = ToolCallVerifier(ToolCallSettings(turns="last"))
    assert judge({"calls": [ADD, PAY]}, *turns).outcome == "correct"
    assert judge({"calls": [PAY]}, *turns, verifier=last).outcome == "correct"
    assert last.version != ToolCallVerifier().version


def test_optional_arguments_may_be_left_out_but_not_be_wrong() -> None:
    wanted = {"name": "search", "arguments": {"query": "tea", "limit": 10}}
    reference = {"calls": [wanted], "optional": {"search": ["limit"]}}
    assert judge(reference, hermes("search", query="tea")).outcome == "correct"
    assert judge(reference, hermes("search", query="tea", limit=10)).outcome == "correct"
    assert judge(reference, hermes("search", query="tea", limit=9)).outcome == "incorrect"


def test_an_unordered_matching_with_optional_arguments_finds_the_only_way() -> None:
    calls = [
        {"name": "search", "arguments": {"query": "tea"}},
        {"name": "search", "arguments": {"query": "tea", "limit": 5}},
    ]
    reference = {"calls": calls, "order": "any", "optional": {"search": ["limit"]}}
    assert judge(reference, hermes("search", query="tea") + hermes("search", query="tea", limit=7)).outcome == "correct"
    assert (
        judge(reference, hermes("search", query="tea", limit=5) + hermes("search", query="tea", limit=7)).outcome
        == "correct"
    )


def shop(start: Any, calls: Sequence[Call]) -> Any:
    for call in calls:
        if call.name == "add_item":
            items = start["carts"].setdefault(call.arguments["cart"], {})
            items[call.arguments["sku"]] = items.get(call.arguments["sku"], 0) + call.arguments["quantity"]
        start["log"].append(call.name)
    return start


def test_the_end_state_decides_and_ignored_fields_do_not() -> None:
    reference = {
        "start": {"carts": {}, "log": []},
        "states": [{"carts": {"a": {"x1": 3}}}, {"carts": {"a": {"x1": 4}}}],
        "ignore": ["log"],
    }
    verifier = ToolCallVerifier(world=shop)
    one = hermes("add_item", cart="a", sku="x1", quantity=3)
    two = hermes("add_item", cart="a", sku="x1", quantity=1) + hermes("add_item", cart="a", sku="x1", quantity=2)
    for content in (one, two, one):  # the start is not worn out
        assert judge(reference, content, verifier=verifier).outcome == "correct"
    wrong = judge(reference, hermes("add_item", cart="a", sku="x1", quantity=2), verifier=verifier)
    assert wrong.outcome == "incorrect"
    assert "state.carts.a.x1" in wrong.reason
    assert judge(reference, one).outcome == "invalid"  # no world given


def test_a_world_that_raises_is_our_fault() -> None:
    def broken(start: Any, calls: Sequence[Call]) -> Any:
        raise RuntimeError("the world broke")

    verdict = judge({"states": [{}]}, hermes("pay", cart="a"), verifier=ToolCallVerifier(world=broken))
    assert (verdict.outcome, verdict.reward) == ("invalid", None)
    assert "the world broke" in verdict.reason


def test_ignored_paths_reach_into_lists_and_wildcards() -> None:
    state = {"users": [{"name": "a", "seen": 1}, {"name": "b", "seen": 2}]}
    other = {"users": [{"name": "a", "seen": 9}, {"name": "b"}]}
    assert compare_states(state, [other], ["users.*.seen"]) is None
    assert compare_states(state, [other], ["users.0.seen"]) is not None


def test_json_values_are_equal_by_value_and_kind() -> None:
    assert same(2, 2.0)
    assert same({"a": [1, None]}, {"a": [1.0, None]})
    for a, b in ((True, 1), (False, 0), (None, False), ("1", 1), ("", None), ([], {}), (10**400, 1.5)):
        assert not same(a, b), (a, b)


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"calls": "pay"},
        {"calls": [{"name": "fly", "arguments": {}}]},
        {"calls": [{"name": "pay", "arguments": {}}]},
        {"calls": [PAY], "tools": [{"name": "pay", "parameters": {"type": "thing"}}]},
        {"calls": [{"name": "pay", "arguments": ["a"]}]},
        {"calls": [PAY], "optional": ["cart"]},
        {"calls": [PAY], "optional": {"pay": "cart"}},
        {"calls": [PAY], "tools": [{"name": "pay", "parameters": {"$ref": "https://example.com/schema"}}]},
    ],
)
def test_a_broken_reference_is_invalid_and_named(reference: dict[str, Any]) -> None:
    verdict = judge(reference, hermes("pay", cart="a"))
    assert verdict.outcome == "invalid"
    assert "tool_use/train/0" in verdict.reason


@settings(max_examples=150)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_raises(text: str) -> None:
    for content in (text, f"<tool_call>{text}</tool_call>", f"<function=pay>{text}</function>", "[" + text):
        assert judge({"calls": [PAY]}, content).outcome == "incorrect"


def test_mutations_of_valid_answers_never_raise_or_hang() -> None:
    rng = random.Random(0)
    valid = [case["completion"] for case in CASES if case["outcome"] == "correct" and case["completion"]]
    pieces = [
        "<tool_call>",
        "</tool_call>",
        "{",
        "}",
        '"',
        "\\u0000",
        "<function=",
        "</parameter>",
        "1e999",
        "[" * 90,
        "\ud800",
    ]
    for _ in range(1000):
        text = rng.choice(valid)
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(pieces) + text[at + rng.randint(0, 5) :]
        verdict = judge({"calls": [ADD, PAY]}, text)
        assert verdict.outcome in ("correct", "incorrect")
        assert verdict.seconds < 10  # of a machine that has other work


@pytest.mark.parametrize("text", ["<tool_call>" * 20_000, "[" * 150_000, '{"a":' * 30_000, "<function=a>" * 10_000])
def test_large_hostile_answers_are_refused_at_once(text: str) -> None:
    verdict = judge({"calls": [PAY]}, text)
    assert verdict.outcome == "incorrect"
    assert verdict.seconds < 10  # of a machine that has other work


def tool(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "f", "parameters": {"type": "object"} | schema}]


UNIQUE = {"properties": {"s": {"type": "array", "uniqueItems": True}}}
BACKTRACKS = {"properties": {"s": {"type": "string", "pattern": "^(a+)+$"}}}
RECURSES = {
    "$defs": {"n": {"anyOf": [{"properties": {"c": {"$ref": "#/$defs/n"}}, "required": [key]} for key in "yz"]}},
    "$ref": "#/$defs/n",
}
NESTED: dict[str, Any] = {}
for _ in range(55):
    NESTED = {"c": NESTED}


@pytest.mark.parametrize(
    ("schema", "right", "hostile"),
    [
        (BACKTRACKS, {"s": "aaa"}, {"s": "a" * 50 + "!"}),
        (UNIQUE, {"s": [1, "1", {}]}, {"s": [{"a": i} if i % 2 else i for i in range(9000)]}),
        (RECURSES, {"y": 1}, NESTED),
    ],
)
def test_a_schema_that_could_take_for_ever_is_checked_in_bounded_time(
    schema: dict[str, Any], right: dict[str, Any], hostile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_schema, "SECONDS", 0.3)
    reference = {"tools": tool(schema), "calls": [{"name": "f", "arguments": right}]}
    assert judge(reference, hermes("f", **right)).outcome == "correct"
    start = processor_seconds(tool_schema._POOL)
    verdict = judge(reference, hermes("f", **hostile))
    assert (verdict.outcome, "take longer than" in verdict.reason) == ("incorrect", True), verdict.reason
    assert processor_seconds(tool_schema._POOL) - start < 1.0
    assert judge(reference | {"calls": [{"name": "f", "arguments": hostile}]}, "").outcome == "invalid"


def test_without_a_worker_a_costly_schema_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_schema, "_POOL", WorkerPool("verifiers.no_such_module"))
    reference = {"tools": tool(BACKTRACKS), "calls": [{"name": "f", "arguments": {"s": "a"}}]}
    assert judge(reference, hermes("f", s="a")).outcome == "invalid"


def test_unread_text_is_no_call() -> None:
    assert read("I would call pay(cart='a').") == []
    with pytest.raises(FormError):
        read("<tool_call>{}")
