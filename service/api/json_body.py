"""From the bytes of a body to a wire model: JSON, its bounds, and its errors.

The parser holds the GIL, and millions of small values take it seconds and hundreds of megabytes: they are counted
first, and refused where no request within the limits has as many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from service.api.problems import MAX_LISTED, from_validation_error, invalid, path_of
from service.errors import FieldError, InvalidRequest, MalformedBody
from service.settings import Server

M = TypeVar("M", bound=BaseModel)
Body = bytes | bytearray
FieldPath = tuple[str | int, ...]

INLINE_BYTES = 262_144
INLINE_VALUES = 2000
"""A body up to these limits is parsed on the event loop."""
VALUES_PER_INPUT = 8
"""Of an input besides its labels: its texts, and the lists and objects around them."""
VALUES_PER_LABEL = 5
"""Of a label: its object, name, description, list of examples, and one example."""
OTHER_VALUES = 1000
_CONSTANT = re.compile(r"NaN\b|Infinity\b")
"""What Python's json writes for numbers that JSON has not: pandas has NaN for a missing text."""
_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def is_quick(body: Body) -> bool:
    """Whether the body is parsed in a few milliseconds."""
    return len(body) <= INLINE_BYTES and _marks(body) <= INLINE_VALUES


def text_memory(body: Body) -> int:
    """Bytes that the texts of a body take at most: with one character above U+FFFF 4 for each character, with one above
    U+00FF 2, and their UTF-8 form next to them."""
    if _WIDE.search(body):
        return 5 * len(body)
    return len(body) if body.isascii() and b"\\u" not in body else 3 * len(body)


def max_values(limits: Server) -> int:
    """More values than a request within the limits has."""
    of_inputs, of_labels = limits.max_inputs * (limits.max_labels + VALUES_PER_INPUT), limits.max_inline_labels
    return of_inputs + of_labels * VALUES_PER_LABEL + OTHER_VALUES


def max_set_values(limits: Server) -> int:
    """More values than a label set within the limits has."""
    return limits.max_set_labels * VALUES_PER_LABEL + OTHER_VALUES


def parse(body: Body, model: type[M], limits: Server, most: int | None = None) -> M:
    """The body as a wire model. `most` is the largest number of JSON values; default: that of a request.

    Raises:
        MalformedBody: not UTF-8, not JSON, or nested too deep.
        InvalidRequest: names every field that is wrong.
    """
    return validate(parse_json(body, most or max_values(limits)), model, limits)


def validate(value: Any, model: type[M], limits: Server) -> M:
    """A JSON value as a wire model. Raises InvalidRequest, which names every field that is wrong."""
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate(value, context=limits)
    except ValidationError as error:
        raise from_validation_error(error, model) from None


def parse_json(body: Body, max_values: int) -> Any:
    """The value of a body.

    Raises:
        MalformedBody: not UTF-8, not JSON, nested too deep, or more than `max_values` values.
        InvalidRequest: holds a lone surrogate, which is not text.
    """
    if has_more_values(body, max_values):
        raise MalformedBody(f"the body has more than {max_values} JSON values, which no request within the limits has")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _refuse_surrogates(body)
        raise MalformedBody(f"the body is not JSON: {_reason(body, error)}") from None


def has_more_values(body: Body, limit: int) -> bool:
    """Whether there are more values than `limit`, at least up to where the JSON is malformed.

    Commas and brackets are counted. They are searched for outside of strings only where the whole body has many of
    them: a long English text has a comma every 50 characters.
    """
    if _marks(body) <= limit:
        return False
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    if bare.count(b'"') > 4 * (limit + 1):  # a value is at most two strings, its name and itself
        return True
    return _marks(b"".join(bare.split(b'"')[::2])) > limit


def _marks(body: Body) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _reason(body: Body, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "it is empty"
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start} is not UTF-8"
    place = f"at line {error.lineno}, column {error.colno}"
    if constant := _CONSTANT.match(error.doc, error.pos):
        return f"{constant[0]} {place} is no JSON; send null or leave the text out"
    return f"{error.msg} {place}"


def _refuse_surrogates(body: Body) -> None:
    """orjson calls "\\ud800" malformed; it is well-formed JSON, and the error should name the field that holds it."""
    if not _SURROGATE.search(body):
        return
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return
    broken = islice(_surrogates(value), MAX_LISTED)
    found = [FieldError(path, "holds a lone surrogate, which is no character") for path in broken]
    if found:
        raise invalid(found)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _surrogates(value: Any) -> Iterator[str]:
    """Paths of the strings that UTF-8 cannot encode."""
    for path, one in _values(value):
        if isinstance(one, str) and _is_broken(one):
            yield path_of(path) or "body"


def _values(value: Any) -> Iterator[tuple[FieldPath, Any]]:
    """Every value in a JSON value with its path, in order; for a name that UTF-8 cannot encode, the name.

    Without recursion: a hostile body is deeply nested.
    """
    open_ones: list[Iterator[tuple[FieldPath, Any]]] = [iter([((), value)])]
    while open_ones:
        for path, one in open_ones[-1]:
            yield path, one
            if isinstance(one, list | dict):
                open_ones.append(_parts(path, one))
                break
        else:
            open_ones.pop()


def _parts(path: FieldPath, whole: list[Any] | dict[str, Any]) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(whole, list):
        return (((*path, index), part) for index, part in enumerate(whole))
    return (((*path, name), name if _is_broken(name) else part) for name, part in whole.items())


def _is_broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
