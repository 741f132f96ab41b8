"""Calls of several protocols at one path: which one answers, what a key needs, and the shape of errors."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.auth import ADMIN, INFER, OPEN, READERS, Access, AccessTable
from service.api.calls import Call, Protocol
from service.api.dispatch import ErrorBodies, accesses, choose, table_of
from service.api.exchange import Exchange, json_response, renamed
from service.api.field_types import Lenient
from service.api.problems import error_answer
from service.errors import FieldError, InvalidRequest, QueueFull


class Texts(Lenient):
    query: str
    texts: list[str]


class Documents(Lenient):
    query: str
    documents: list[str]
    top_n: int | None = None


async def answer_one(exchange: Exchange, body: Any) -> Any:
    return json_response({})


async def answer_two(exchange: Exchange, body: Any) -> Any:
    return json_response({})


def call(body: Any, handle: Any = answer_one, **more: Any) -> Call:
    return Call("POST", "/rank", handle, body=body, task="similarity", roots=("/rank",), **more)


def in_one(error: Any, request_id: str) -> Any:
    return {"one": error.detail, "id": request_id}


ONE = Protocol("one", "One", (call(Texts),), in_one)
TWO = Protocol("two", "Two", (call(Documents, answer_two),), lambda error, request_id: {"two": error.detail})
OFFERS = table_of((ONE, TWO))["POST", "/rank"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"query": "a", "texts": []}, "one"),
        ({"query": "a", "documents": [], "top_n": 1}, "two"),
    ],
)
def test_the_required_fields_of_a_body_choose_the_protocol(body: Any, name: str) -> None:
    assert choose(OFFERS, body, {}).protocol.name == name


def test_a_body_of_two_protocols_is_refused_with_both_names_and_paths() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(OFFERS, {"query": "a", "texts": [], "documents": []}, {})
    assert caught.value.detail == "the body fits one and two, which share /rank; send it to /one/rank or /two/rank"


@pytest.mark.parametrize("body", [{}, {"query": "a"}, [], "text", None])
def test_a_body_of_no_protocol_is_refused_with_what_each_wants(body: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(OFFERS, body, {})
    wanted = "one: `query` and `texts`; two: `query` and `documents`"
    assert caught.value.detail == f"the body fits no protocol that shares /rank; wanted {wanted}"


def test_a_body_of_no_protocol_is_for_the_native_one() -> None:
    native = Protocol("native", "Native", (call(Texts, answer_two),), has_prefix=False)
    offers = table_of((native, TWO))["POST", "/rank"]
    assert choose(offers, {}, {}).protocol is native


def test_within_a_protocol_the_first_call_that_claims_a_body_answers() -> None:
    first = call(Texts, claims=lambda value, models: "first" in value)
    protocol = Protocol("three", "Three", (first, call(Texts, answer_two)))
    offers = table_of((protocol,))["POST", "/three/rank"]
    assert choose(offers, {"first": 1, "query": "a", "texts": []}, {}).call is first
    assert choose(offers, {"query": "a", "texts": []}, {}).call.handle is answer_two


def test_a_protocol_without_prefix_has_only_its_roots() -> None:
    native = Protocol("native", "Native", (call(Texts),), has_prefix=False)
    assert list(table_of((native, TWO))) == [("POST", "/rank"), ("POST", "/two/rank")]


def test_gets_of_one_path_have_one_handler() -> None:
    one, two = (
        Protocol(each.__name__, "", (Call("GET", "/x", each, roots=("/x",)),)) for each in (answer_one, answer_two)
    )
    with pytest.raises(AssertionError, match="GET /x has several calls"):
        table_of((one, two))


def test_calls_of_one_path_need_the_same_scopes() -> None:
    other = Protocol("other", "", (call(Texts, answer_two, scopes=ADMIN),))
    with pytest.raises(AssertionError, match="different scopes"):
        table_of((TWO, other))


def test_a_path_is_not_shared_where_admission_would_be_left_out() -> None:
    first = Protocol("first", "", (Call("POST", "/rank", answer_two, body=Texts, roots=("/rank",)),))
    with pytest.raises(AssertionError, match="is admitted only if its first call has a task"):
        table_of((first, TWO))


def test_only_calls_that_infer_count_towards_the_limits_of_a_key() -> None:
    calls = (
        call(Texts),
        Call("GET", "/info", answer_one, scopes=READERS),
        Call("GET", "/health", answer_one, scopes=OPEN),
        Call("POST", "/hook", answer_one, scopes=ADMIN),
    )
    limited = {access.path: access.is_limited for access in accesses(table_of((Protocol("p", "", calls),)))}
    assert limited == {"/p/rank": True, "/rank": True, "/p/info": False, "/p/health": False, "/p/hook": False}


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/models/a/b", READERS),
        ("POST", "/models/a:predict", INFER),
        ("DELETE", "/models/a:predict", READERS),
        ("GET", "/models", ADMIN),
        ("POST", "/exact", INFER),
        ("GET", "/exact", INFER),
        ("POST", "/exact/", ADMIN),
    ],
)
def test_the_access_of_a_path_is_that_of_its_method(method: str, path: str, scopes: Any) -> None:
    table = AccessTable(
        (
            Access("GET", "/models/{name:path}", READERS),
            Access("POST", "/models/{name}:predict", INFER),
            Access("POST", "/exact", INFER),
        )
    )
    assert table.find(method, path).scopes == scopes


@pytest.mark.parametrize(
    ("path", "body"),
    [("/one/rank", True), ("/one/nowhere", True), ("/one", True), ("/rank", False), ("/onerous", False), ("", False)],
)
def test_errors_below_a_prefix_have_the_shape_of_the_protocol(path: str, body: bool) -> None:
    assert (ErrorBodies(table_of((ONE, TWO))).find(path) is in_one) is body


def test_errors_of_a_root_path_of_one_protocol_have_its_shape() -> None:
    assert ErrorBodies(table_of((ONE,))).find("/rank") is in_one


def test_an_error_in_the_shape_of_a_protocol_keeps_status_and_retry_after() -> None:
    response = error_answer(QueueFull("full", retry_after_s=1.5), "id", in_one)
    assert (response.status_code, response.body) == (429, b'{"one":"full","id":"id"}')
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1500")


def test_an_error_with_a_lone_surrogate_is_json() -> None:
    error = InvalidRequest("x", errors=[FieldError("\ud800", "unknown")])
    response = error_answer(error, "id", lambda error, request_id: {"field": error.errors[0].field})
    assert response.body == b'{"field": "\\ud800"}'


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("inputs[3].text", "texts[3].text"),
        ("inputs", "texts"),
        ("inputs_more", "inputs_more"),
        ("labels[0]", "labels[0]"),
    ],
)
def test_renamed_changes_the_first_field_of_a_path(path: str, expected: str) -> None:
    assert renamed({"inputs": "texts"})(path) == expected
