"""Tensors of the Open Inference Protocol: binary data and JSON, in and out, and what is refused."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.protocols.tensors import InputTensor, Output, header_length, read_texts, write
from service.errors import InvalidRequest


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensor(shape: list[int], name: str = "text", datatype: str = "BYTES", **rest: Any) -> InputTensor:
    return InputTensor.model_validate({"name": name, "datatype": datatype, "shape": shape, **rest})


def binary(num_bytes: int, shape: list[int], name: str = "text") -> InputTensor:
    return tensor(shape, name, parameters={"binary_data_size": num_bytes})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5))
def test_binary_elements_are_read_as_they_were_written(texts: list[str]) -> None:
    content, size = write({}, [Output("text", (len(texts),), texts)], [True])
    assert size is not None
    [described] = orjson.loads(content[:size])["outputs"]
    assert read_texts([InputTensor.model_validate(described)], memoryview(content)[size:], 10) == {"text": texts}


def test_the_data_of_several_inputs_follow_one_another() -> None:
    first, second = packed(b"a", b"bc"), packed("好".encode())
    tensors = [binary(len(first), [2]), tensor([1], "question", data=["?"]), binary(len(second), [1, 1], "labels")]
    found = read_texts(tensors, memoryview(first + second), 10)
    assert found == {"text": ["a", "bc"], "question": ["?"], "labels": ["好"]}


def test_nested_data_is_read_row_by_row() -> None:
    assert read_texts([tensor([2, 2], data=[["a", "b"], ["c", "d"]])], memoryview(b""), 10) == {"text": list("abcd")}


def test_data_nested_ten_thousand_deep_is_read_without_recursion() -> None:
    data: Any = "a"
    for _ in range(10_000):
        data = [data]
    deep = InputTensor.model_construct(name="text", datatype="BYTES", shape=[1], data=data)
    assert read_texts([deep], memoryview(b""), 10) == {"text": ["a"]}


@pytest.mark.parametrize(
    ("tensors", "data", "message"),
    [
        ([tensor([1], datatype="FP32", data=[1.0])], b"", "inputs[0].datatype: must be BYTES"),
        ([tensor([1], data=[1])], b"", "inputs[0].data: must hold strings"),
        ([tensor([1])], b"", "inputs[0].data: is required"),
        ([tensor([3], data=["a"])], b"", "inputs[0].shape: has 3 elements, but the data has 1"),
        ([tensor([1], data=["a", "b"])], b"", "inputs[0].shape: has 1 elements, but the data has more"),
        ([tensor([2**40, 2**40], data=["a"])], b"", "elements; at most 10 are allowed"),
        ([tensor([-1, -1], data=["a"])], b"", "inputs[0].shape: must not be negative"),
        ([tensor([1], data=["a"]), tensor([1], data=["a"])], b"", "inputs[1].name: repeats"),
        ([binary(9, [1])], packed(b"a"), "fewer bytes of binary data"),
        ([binary(2, [1])], b"\1\0", "the length of an element is cut off"),
        ([binary(5, [1])], struct.pack("<I", 2**32 - 1) + b"a", "longer than the rest"),
        ([binary(5, [1])], packed(b"\xff"), "not UTF-8"),
        ([tensor([1], data=["a"])], b"rest", "4 bytes of binary data belong to no input"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(tensors: list[InputTensor], data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_texts(tensors, memoryview(data), 10)
    assert message in caught.value.detail


@pytest.mark.parametrize("value", ["", "-1", "11", "1e1", "１", "9" * 20])
def test_a_header_length_beyond_the_body_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        header_length(value, 10)


def test_numbers_are_little_endian_float32() -> None:
    content, size = write({"id": "1"}, [Output("scores", (1, 2), np.array([[0.5, 2.0]], dtype=np.float32))], [True])
    assert size is not None
    assert content[size:] == struct.pack("<2f", 0.5, 2.0)


def test_without_binary_outputs_the_reply_is_json_alone() -> None:
    outputs = [Output("label", (1,), ["好评"]), Output("score", (1,), np.array([0.5], dtype=np.float32))]
    content, size = write({"model_name": "m"}, outputs, [False, False])
    assert size is None
    assert orjson.loads(content) == {
        "model_name": "m",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["好评"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.5]},
        ],
    }


@given(st.binary(max_size=40))
def test_no_binary_data_raises_anything_but_our_errors(data: bytes) -> None:
    with suppress(InvalidRequest):
        read_texts([binary(len(data), [1])], memoryview(data), 10)
