"""Which JSON schemas are choices, and what the scores of a choice fill in."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from service.api.protocols.choice_schemas import MAX_DECISIONS, read_choices, read_schema
from service.errors import UnsupportedRequest


class Mood(Enum):
    GOOD = "好评"
    BAD = "差评"


class Detail(BaseModel):
    mood: Mood
    again: Mood


class Review(BaseModel):
    mood: Mood = Field(description="这条评论是好评还是差评？")
    urgent: bool
    stars: Literal[1, 2, 3]
    tags: list[Literal["贵", "慢"]]
    maybe: Literal["甲", "乙"] | None = None
    detail: Detail
    kind: Literal["review"] = "review"


def content(schema: Any, scores: list[dict[str, float]]) -> Any:
    return json.loads("".join(piece.text for piece in read_schema(schema, "schema").fill(scores)))


def test_a_model_of_choices_is_filled_in() -> None:
    scores = [
        {"好评": 0.9, "差评": 0.1},
        {"是": 0.2, "否": 0.8},
        {"1": 0.1, "2": 0.7, "3": 0.2},
        {"贵": 0.6, "慢": 0.5},
        {"甲": 0.3, "乙": 0.7},
        {"好评": 0.4, "差评": 0.6},
        {"好评": 0.6, "差评": 0.4},
    ]
    filled = content(Review.model_json_schema(), scores)
    assert Review.model_validate(filled) == Review(
        mood=Mood.GOOD, urgent=False, stars=2, tags=["贵", "慢"], maybe="乙", detail=Detail(mood="差评", again="好评")
    )


def test_a_description_is_the_question() -> None:
    first, second, *_ = read_schema(Review.model_json_schema(), "schema").decisions
    assert (first.question, second.question) == ("这条评论是好评还是差评？", None)


def test_the_description_of_a_schema_with_one_choice_is_its_question() -> None:
    schema = {"description": "好吗？", "properties": {"mood": {"enum": ["好", "坏"]}}}
    assert read_schema(schema, "schema").decisions[0].question == "好吗？"


def test_alternatives_with_a_title_are_read_by_it() -> None:
    schema = {"oneOf": [{"const": "A", "title": "退款"}, {"const": "B", "description": "物流"}]}
    assert read_schema(schema, "schema").decisions[0].options == ("退款", "物流")
    assert content(schema, [{"退款": 0.1, "物流": 0.9}]) == "B"


@pytest.mark.parametrize(
    ("bounds", "expected"), [({}, []), ({"minItems": 1}, ["甲"]), ({"minItems": 2, "maxItems": 2}, ["甲", "乙"])]
)
def test_a_list_keeps_its_bounds(bounds: dict[str, int], expected: list[str]) -> None:
    schema = {"type": "array", "items": {"enum": ["甲", "乙", "丙"]}, **bounds}
    assert content(schema, [{"甲": 0.4, "乙": 0.3, "丙": 0.2}]) == expected


def test_text_is_escaped_as_json() -> None:
    schema = {"properties": {'a"': {"enum": ['说"好"', "b\n"]}}}
    assert content(schema, [{'说"好"': 0.9, "b\n": 0.1}]) == {'a"': '说"好"'}


def test_a_piece_of_an_option_has_the_scores_of_all_options_best_first() -> None:
    pieces = read_schema({"properties": {"a": {"enum": ["甲", "乙"]}}}, "schema").fill([{"甲": 0.2, "乙": 0.8}])
    assert [(piece.text, piece.score, piece.others) for piece in pieces] == [
        ('{"a":"', 1.0, ()),
        ("乙", 0.8, (("乙", 0.8), ("甲", 0.2))),
        ('"}', 1.0, ()),
    ]


def test_an_option_without_a_score_is_the_last() -> None:
    assert content({"enum": ["甲", "乙"]}, [{"乙": 0.1}]) == "乙"


def test_a_list_of_options_is_answered_without_quotes() -> None:
    pieces = read_choices(["甲", "乙"], "choice").fill([{"甲": 0.2, "乙": 0.8}])
    assert [piece.text for piece in pieces if piece.others] == ["乙"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (None, "schema"),
        ({"type": "object"}, "schema"),
        ({"properties": {"name": {"type": "string"}}}, "schema.properties.name"),
        ({"properties": {"names": {"type": "array", "items": {"type": "string"}}}}, "schema.properties.names.items"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "integer"}]}, "schema.anyOf[1]"),
        ({"$ref": "#/$defs/Missing"}, "schema.$ref"),
        ({"$ref": "http://example.com/schema"}, "schema.$ref"),
        ({"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}, "schema"),
        ({"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}, "$ref": "#/$defs/A"}, "schema"),
        ({"const": "only"}, "schema"),
        ({"type": "array", "items": {"enum": []}}, "schema.items"),
    ],
)
def test_another_schema_is_refused_with_its_place(schema: Any, path: str) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        read_schema(schema, "schema")
    assert caught.value.errors[0].field.startswith(path)


def test_more_choices_than_are_answered_are_refused() -> None:
    schema = {"properties": {f"p{index}": {"type": "boolean"} for index in range(MAX_DECISIONS + 1)}}
    with pytest.raises(UnsupportedRequest, match="one choice too many"):
        read_schema(schema, "schema")


def test_a_schema_that_multiplies_by_references_is_refused() -> None:
    wide = {f"A{level}": {"anyOf": [{"$ref": f"#/$defs/A{level + 1}"}] * 30} for level in range(6)}
    with pytest.raises(UnsupportedRequest, match="is too large"):
        read_schema({"$defs": wide | {"A6": {"enum": ["a", "b"]}}, "$ref": "#/$defs/A0"}, "schema")
