from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from rlvr.tools import Toolbox, ToolError, describe
from rlvr.types import Message
from verifiers.tool_dispatch import dispatch


class Person(BaseModel):
    name: str
    title: str = "none"  # a parameter called as pydantic's own key is


class Shop:
    def __init__(self) -> None:
        self.orders: list[tuple[str, int]] = []

    def order(
        self,
        item: str,
        count: Annotated[int, Field(ge=1, le=9)] = 1,
        size: Literal["s", "m"] | None = None,
        to: list[Person] = [],  # noqa: B006 - read only
        on: date = date(2026, 1, 2),
    ) -> dict[str, Any]:
        """Order an item,
        or several.

        Args:
            item: the article's name
            count (int): how many: nine
                at most

        Returns:
            What was ordered.
        """
        if item == "gold":
            raise ToolError("gold is sold out")
        if item == "bug":
            raise KeyError(item)
        self.orders.append((item, count))
        return {"item": item, "count": count, "size": size, "to": to, "on": on}


def call(arguments: dict[str, Any]) -> str:
    return Toolbox(Shop().order).call("order", arguments)


def json_call(**arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': 'order', 'arguments': arguments})}</tool_call>"


def test_hints_and_docstring_become_the_schema_that_a_model_reads() -> None:
    [spec] = Toolbox(Shop().order).specs
    assert spec["type"] == "function"
    function = spec["function"]
    assert (function["name"], function["description"]) == ("order", "Order an item, or several.")
    parameters = function["parameters"]
    Draft202012Validator.check_schema(parameters)
    assert parameters["required"] == ["item"]
    assert parameters["additionalProperties"] is False
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "title": {"type": "string", "default": "none"}},
        "required": ["name"],
    }
    assert parameters["properties"] == {
        "item": {"type": "string", "description": "the article's name"},
        "count": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9,
            "default": 1,
            "description": "how many: nine at most",
        },
        "size": {"anyOf": [{"enum": ["s", "m"], "type": "string"}, {"type": "null"}], "default": None},
        "to": {"type": "array", "items": person, "default": []},
        "on": {"type": "string", "format": "date", "default": "2026-01-02"},
    }


def test_arguments_arrive_as_the_types_of_the_hints_and_defaults_are_the_functions() -> None:
    def look(person: Person, on: date, more: str = "x") -> str:
        """Look."""
        return f"{type(person).__name__} {person.name} {type(on).__name__} {more}"

    arguments = {"person": {"name": "Ann"}, "on": "2026-01-02"}
    assert Toolbox(look).call("look", arguments) == "Person Ann date x"


def test_a_text_comes_back_as_it_is_and_other_values_as_json() -> None:
    assert json.loads(call({"item": "tea", "count": 2.0, "to": [{"name": "Ann"}]})) == {
        "item": "tea",
        "count": 2,
        "size": None,
        "to": [{"name": "Ann", "title": "none"}],
        "on": "2026-01-02",
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "item: Field required"),
        ({"item": 1}, "item: Input should be a valid string, got 1"),
        ({"item": "tea", "count": "2"}, "count: Input should be a valid integer"),
        ({"item": "tea", "count": True}, "count: Input should be a valid integer"),
        ({"item": "tea", "count": 10}, "count: Input should be less than or equal to 9"),
        ({"item": "tea", "count": float("inf")}, "no JSON"),
        ({"item": "tea", "size": "l"}, "size"),
        ({"item": "tea", "to": [{"name": 1}]}, "to.0.name: Input should be a valid string"),
        ({"item": "tea", "self": 1}, "self: Extra inputs are not permitted"),
        ({"item": "tea", "x" * 999: 1}, "Extra inputs"),
        ({"item": "\ud800"}, "JSON"),
        ({"item": "gold"}, "gold is sold out"),
    ],
)
def test_what_a_model_does_wrong_is_an_error_that_it_can_read(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ToolError) as caught:
        call(arguments)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_unknown_tool_is_answered_with_the_names_there_are() -> None:
    for name in ("pay", "__init__", "orders"):
        with pytest.raises(ToolError, match=f"no tool is named '{name}'; there are order"):
            Toolbox(Shop().order).call(name, {})


def test_an_exception_of_ours_goes_through() -> None:
    with pytest.raises(KeyError):
        call({"item": "bug"})


def test_objects_share_a_description_and_no_state() -> None:
    first, second = Shop(), Shop()
    assert describe(first.order) is describe(second.order) is describe(Shop.order)
    Toolbox(first.order).call("order", {"item": "tea"})
    assert (first.orders, second.orders) == ([("tea", 1)], [])


def no_hint(item) -> None:  # type: ignore[no-untyped-def]
    """Doc."""


def no_docstring(item: str) -> None: ...


def star(*items: str) -> None:
    """Doc."""


def double_star(**items: str) -> None:
    """Doc."""


def positional(item: str, /) -> None:
    """Doc."""


def wrong_note(item: str) -> None:
    """Doc.

    Args:
        itme: a slip
    """


def odd_type(item: Callable[[], int]) -> None:
    """Doc."""


def odd_default(item: Any = object()) -> None:  # noqa: B008 - what is tested
    """Doc."""


def unresolved(item: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Doc."""


class Tree(BaseModel):
    children: list[Tree]


def recursive(tree: Tree) -> None:
    """Doc."""


async def coroutine(item: str) -> None:
    """Doc."""


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_hint, "'item' has no type hint"),
        (no_docstring, "has no docstring"),
        (star, "cannot be given by name"),
        (double_star, "cannot be given by name"),
        (positional, "cannot be given by name"),
        (wrong_note, "describes itme"),
        (odd_type, "has no JSON Schema"),
        (odd_default, "is no JSON"),
        (unresolved, "Nowhere"),
        (recursive, "Tree holds itself"),
        (coroutine, "no plain Python function"),
        (print, "no plain Python function"),
        (Shop.order, "without its object"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_defined(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Toolbox(function)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="two tools are named 'order'"):
        Toolbox(Shop().order, Shop().order)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([0.5, 2.0, 9.0])
    | st.sampled_from(["s", "m", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "title", "x"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["item", "count", "size", "to", "other"]), JSON))
def test_the_toolbox_takes_exactly_what_the_schema_says(arguments: dict[str, Any]) -> None:
    [spec] = Toolbox(Shop().order).specs
    if Draft202012Validator(spec["function"]["parameters"]).is_valid(arguments):
        call(arguments)
    else:
        with pytest.raises(ToolError):
            call(arguments)


def test_calls_of_a_message_are_answered_one_by_one_in_order() -> None:
    shop = Shop()
    answers = dispatch(f"Well: {json_call(item='tea')} and {json_call(item='egg', count=2)}", Toolbox(shop.order))
    assert shop.orders == [("tea", 1), ("egg", 2)]
    assert [answer.role for answer in answers] == ["tool"] * 2
    assert [json.loads(answer.content)["item"] for answer in answers] == ["tea", "egg"]


@pytest.mark.parametrize("wrong", [json_call(item=3), json_call(item="gold"), json_call(), "<tool_call>[]</tool_call>"])
def test_nothing_is_gained_by_trying_everything_at_once(wrong: str) -> None:
    shop = Shop()
    answers = dispatch(json_call(item="tea") + wrong + json_call(item="egg"), Toolbox(shop.order))
    assert ("egg", 1) not in shop.orders
    assert answers[-1].content.startswith("error: ")


def test_a_message_that_cannot_be_read_is_answered_once_and_carries_nothing_out() -> None:
    shop = Shop()
    [answer] = dispatch(json_call(item="tea") + "<tool_call>{", Toolbox(shop.order))
    assert answer.content.startswith("error: a <tool_call> without its end")
    assert shop.orders == []


def test_a_message_without_calls_has_no_answer() -> None:
    assert dispatch("I would call order(item='tea')", Toolbox(Shop().order)) == ()


def test_text_arguments_get_the_types_of_the_schema() -> None:
    shop = Shop()
    parameters = '<parameter=item>12</parameter><parameter=count>2</parameter><parameter=to>[{"name": "7"}]</parameter>'
    [answer] = dispatch(f"<tool_call><function=order>{parameters}</function></tool_call>", Toolbox(shop.order))
    assert json.loads(answer.content)["to"] == [{"name": "7", "title": "none"}]
    assert shop.orders == [("12", 2)]
    [answer] = dispatch("<function=order><parameter=count>x</parameter></function>", Toolbox(shop.order))
    assert answer == Message(role="tool", content=answer.content)
    assert answer.content.startswith("error: ")
