"""An upload as a form: the file as it comes, the fields, and forms that are none."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.multipart import MAX_FIELD_BYTES, MAX_PARTS, FormReader
from service.errors import InvalidRequest, MalformedBody, ServiceError

TYPE = 'multipart/form-data; boundary="b"'


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    more = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join((*parts, b"--b--\r\n"))


FORM = form(part("purpose", b"batch"), part("file", b"a\r\n--c\nb" * 50, "数据.jsonl"), part("x[y]", "好".encode()))


@pytest.mark.parametrize("size", [1, 3, 7, 64, 10_000])
def test_pieces_of_any_size_make_the_same_form(size: int) -> None:
    reader = FormReader(TYPE)
    content = b"".join(reader.feed(FORM[at : at + size]) for at in range(0, len(FORM), size))
    assert (reader.finish(), reader.fields) == ("数据.jsonl", {"purpose": "batch", "x[y]": "好"})
    assert content == b"a\r\n--c\nb" * 50


def test_the_content_is_handed_on_before_the_form_is_complete() -> None:
    reader = FormReader(TYPE)
    assert reader.feed(part("file", b"x" * 1000, "a")[:-10]) == b"x" * 992
    with pytest.raises(MalformedBody, match="ends before"):
        reader.finish()


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "text/plain; boundary=b"])
def test_another_content_type_is_refused(kind: str) -> None:
    with pytest.raises(MalformedBody, match="must be multipart/form-data"):
        FormReader(kind)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"nonsense", MalformedBody, "not valid"),
        (form(part("purpose", b"batch")), InvalidRequest, "file: is required"),
        (form(part("file", b"1", "a"), part("file", b"2", "b")), InvalidRequest, "must be one file"),
        (form(part("x", b"1" * (MAX_FIELD_BYTES + 1))), InvalidRequest, "at most 4096 bytes"),
        (form(*[part("x", b"1")] * (MAX_PARTS + 1)), MalformedBody, "more than 16 parts"),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, MalformedBody, "not valid"),
    ],
)
def test_a_form_that_is_wrong(body: bytes, error: type[ServiceError], message: str) -> None:
    def read() -> Any:
        reader = FormReader(TYPE)
        reader.feed(body)
        return reader.finish()

    with pytest.raises(error, match=message):
        read()
