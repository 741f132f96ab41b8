"""Access to the fields of records, and the errors for missing and bad values."""

from __future__ import annotations

from typing import Any

import pytest

from service.tools.data.converters import index_of, list_of, number_of, text_of, texts_of, value_of
from service.tools.data.files import RecordError

RECORD = {"text": "甲", "none": None, "one": 1, "yes": True, "list": ["a", "b"], "mixed": ["a", 1]}


def test_values_are_read_by_field_and_by_column() -> None:
    assert value_of(RECORD, "one") == 1
    assert text_of(RECORD, "text") == "甲"
    assert text_of(["a", "b"], 1) == "b"
    assert texts_of(RECORD, "list") == ("a", "b")
    assert list_of(RECORD, "mixed") == ["a", 1]
    assert number_of(["a", " 2.5"], 1) == 2.5


@pytest.mark.parametrize(
    ("record", "key", "problem"),
    [
        (RECORD, "sentence", "has no field 'sentence'"),
        (["a"], 1, "has no column 2"),
        (["a"], "sentence", "has no field 'sentence'"),
        ({"a": 1}, 0, "has no column 1"),
        (None, "sentence", "has no field 'sentence'"),
        (7, 0, "has no column 1"),
    ],
)
def test_a_missing_field_is_an_error(record: Any, key: str | int, problem: str) -> None:
    with pytest.raises(RecordError) as caught:
        value_of(record, key)
    assert str(caught.value) == problem


def test_a_value_of_another_type_is_an_error() -> None:
    for key in ("none", "one", "list"):
        with pytest.raises(RecordError, match=rf"^field '{key}' is not text$"):
            text_of(RECORD, key)
    for key in ("none", "text"):
        with pytest.raises(RecordError, match=rf"^field '{key}' is not a list$"):
            texts_of(RECORD, key)
    with pytest.raises(RecordError, match=r"^field 'mixed' is not a list of texts$"):
        texts_of(RECORD, "mixed")
    for key in ("none", "text", "list"):
        with pytest.raises(RecordError, match=rf"^field '{key}' is not a number$"):
            number_of(RECORD, key)


def test_index_of_compares_labels_as_json_text() -> None:
    assert index_of({"label": "1"}, "label", ("0", "1")) == 1
    assert index_of({"label": 1}, "label", ("0", "1")) == 1
    assert index_of({"label": True}, "label", ("false", "true")) == 1
    assert index_of(["a", "b"], 1, ("b", "c")) == 0


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(RecordError, match=r"^field 'label' is 'neutrl', which is none of contradiction, neutral$"):
        index_of({"label": "neutrl"}, "label", ("contradiction", "neutral"))
    with pytest.raises(RecordError, match=r"^column 3 is '2', which is none of 0, 1$"):
        index_of(["a", "b", "2"], 2, ("0", "1"))
    with pytest.raises(RecordError, match=r"^field 'label' is 'none', which is none of 0, 1$"):
        index_of({"label": None}, "label", ("0", "1"))


def test_long_values_and_long_lists_are_abbreviated() -> None:
    with pytest.raises(RecordError) as caught:
        index_of({"label": "x" * 1000}, "label", [str(number) for number in range(100)])
    assert str(caught.value) == f"field 'label' is {'x' * 40!r}, which is none of 0, ... 99"
