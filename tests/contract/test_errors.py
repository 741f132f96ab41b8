"""Errors of the API: every mistake of a request and every failure has its status, code and field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.domain import RANKS, RequestOptions
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    InferenceFailed,
    OutOfMemory,
    QueueFull,
    ReplicaLost,
    ServiceError,
    Unavailable,
)
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, running, served_by_both
from tests.fakes import FakeClock

LABELS = ["好评", "差评"]
SECRET = "不可外传的文字"
READING = {"passage": "甲", "question": "乙", "choices": ["好", "差"]}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


def check(response: httpx.Response, status: int, code: str) -> list[dict[str, str]]:
    """Asserts that the response is a problem document; returns its field errors."""
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert list(body) == ["type", "title", "status", "code", "detail", "errors", "request_id"]
    assert body["type"] == "about:blank"
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    errors: list[dict[str, str]] = body["errors"]
    return errors


FIELDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("classify", {}, "inputs", "is required"),
    ("classify", {"inputs": ""}, "inputs[0].text", "must not be empty"),
    ("classify", {"inputs": ["好", " \n\u3000"]}, "inputs[1].text", "must not be empty"),
    ("classify", {"inputs": [{"text": "好", "text_pair": ""}]}, "inputs[0].text_pair", "must not be empty"),
    ("classify", {"inputs": []}, "inputs", "at least one"),
    ("classify", {"inputs": 5}, "inputs", "must be a string or a list"),
    ("classify", {"inputs": None}, "inputs", "must be a string or a list"),
    ("classify", {"inputs": ["好", 5]}, "inputs[1]", "must be a string, or an object"),
    ("classify", {"inputs": [["好", "差"]]}, "inputs[0]", "must be a string, or an object"),
    ("classify", {"inputs": [{"text": 5}]}, "inputs[0].text", "must be a string"),
    ("classify", {"inputs": [{"txt": "好", "text": "好"}]}, "inputs[0].txt", "did you mean text?"),
    ("classify", {"inputs": ["好"] * 10_000}, "inputs", "has 10000 inputs; at most 256"),
    ("classify", {"inputs": "好" * 350_000}, "inputs[0].text", "has 350000 characters; at most 100000"),
    ("classify", {"inputs": "好", "lables": LABELS}, "lables", "unknown field; did you mean labels?"),
    ("classify", {"inputs": "好", "zzz": 1}, "zzz", "unknown field; the known ones are"),
    ("classify", {"inputs": "好", "labels": []}, "labels", "at least one label"),
    ("classify", {"inputs": "好", "labels": ["甲", "乙", "甲"]}, "labels", "entry 2 repeats entry 0"),
    ("classify", {"inputs": "好", "labels": ["甲", " 甲"]}, "labels", "entry 1 repeats entry 0"),
    ("classify", {"inputs": "好", "labels": ["甲", ""]}, "labels[1]", "must not be empty"),
    ("classify", {"inputs": "好", "labels": "甲"}, "labels", "must be a list"),
    ("classify", {"inputs": "好", "labels": [1]}, "labels[0]", "must be a string"),
    ("classify", {"inputs": "好", "labels": [f"第{n}类" for n in range(1001)]}, "labels", "store more as a label set"),
    ("classify", {"inputs": "好", "labels": [{"description": "好"}]}, "labels[0].name", "is required"),
    ("classify", {"inputs": "好", "labels": ["差", {"name": "差"}]}, "labels", "entry 1 repeats entry 0"),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": "好", "descripton": "差"}]},
        "labels[0].descripton",
        "description?",
    ),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": "好", "description": ""}]},
        "labels[0].description",
        "not be empty",
    ),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": "好", "examples": "差"}]},
        "labels[0].examples",
        "must be a list",
    ),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": "好", "examples": ["差"] * 65}]},
        "labels[0].examples",
        "has 65 examples; at most 64",
    ),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": "好", "examples": ["差" * 2001]}]},
        "labels[0].examples[0]",
        "has 2001 characters; at most 2000 are allowed in a label's description or example",
    ),
    (
        "classify",
        {"inputs": "好", "labels": [{"name": str(n), "examples": ["差"] * 64} for n in range(16)]},
        "labels",
        "has 1024 examples in all; at most 1000",
    ),
    ("classify", {"inputs": "好", "labels": ["好", "😀", "差", "😡"]}, "labels[3]", "as labels[1]: both become [UNK]"),
    ("classify", {"inputs": "好", "labels": ["好", "\u200b"]}, "labels[1]", "has no token for mini"),
    ("classify", {"inputs": "好", "labels": ["\u200b"]}, "labels[0]", "has no token for mini"),
    (
        "classify",
        {"inputs": "好", "labels": ["好评", "好 评"]},
        "labels[1]",
        "they differ only in white space",
    ),
    ("classify", {"inputs": "好", "labels": ["好" * 600 + "评", "好" * 600 + "差"]}, "labels[1]", "first 512 tokens"),
    (
        "classify",
        {"inputs": "好", "labels": ["好评" * 300, "差评" * 300], "truncation": "error"},
        "labels",
        "1 option takes at least 514 tokens; at most 480 fit",
    ),
    ("classify", {"inputs": "好", "labels": LABELS, "multi_label": "yes"}, "multi_label", "must be true or false"),
    ("classify", {"inputs": "好", "multi_label": True}, "multi_label", "requires labels"),
    ("classify", {"inputs": "好", "question": "哪个？"}, "question", "requires labels"),
    ("classify", {"inputs": "好", "labels": LABELS, "question": ""}, "question", "must not be empty"),
    ("classify", {"inputs": "好", "labels": LABELS, "top_k": 0}, "top_k", "must be at least 1"),
    ("classify", {"inputs": "好", "labels": LABELS, "top_k": "2"}, "top_k", "must be a whole number"),
    ("classify", {"inputs": "好", "labels": LABELS, "top_k": 1.5}, "top_k", "must be a whole number"),
    ("classify", {"inputs": "好", "labels": LABELS, "top_k": True}, "top_k", "must be a whole number"),
    ("classify", {"inputs": "好", "labels": LABELS, "truncation": "up"}, "truncation", "'window' or 'error'"),
    ("classify", {"inputs": "好", "labels": LABELS, "timeout_ms": 0}, "timeout_ms", "must be from 1 to 600000"),
    ("classify", {"inputs": "好", "labels": LABELS, "timeout_ms": 10**9}, "timeout_ms", "must be from 1 to 600000"),
    ("classify", {"inputs": "好", "labels": LABELS, "model": ""}, "model", "must not be empty"),
    ("classify", {"inputs": "好", "labels": LABELS, "model": 1}, "model", "must be a string"),
    ("classify", {"inputs": "好"}, "labels", "missing, and without it no served model"),
    ("embed", {"inputs": "好" * 600, "truncation": "error"}, "inputs[0]", "takes at least 600 tokens; at most 510 fit"),
    ("embed", {"inputs": ["好"], "pooling": "median"}, "pooling", "'weightedmean' or 'lasttoken'"),
    ("embed", {"inputs": ["好"], "normalize": 1}, "normalize", "must be true or false"),
    ("embed", {"inputs": [{"text": "好"}]}, "inputs[0]", "must be a string"),
    ("similarity", {}, "inputs", "is required, or source and candidates"),
    ("similarity", {"inputs": []}, "inputs", "at least one"),
    ("similarity", {"inputs": [["甲"]]}, "inputs[0]", "must be a list of two texts"),
    ("similarity", {"inputs": [["甲", "乙", "丙"]]}, "inputs[0]", "must be a list of two texts"),
    ("similarity", {"inputs": [["甲", "乙"], ["甲", ""]]}, "inputs[1][1]", "must not be empty"),
    ("similarity", {"inputs": "甲"}, "inputs", "must be a list"),
    ("similarity", {"source": "甲"}, "candidates", "is required with source"),
    ("similarity", {"candidates": ["甲"]}, "source", "is required with candidates"),
    ("similarity", {"source": "甲", "candidates": []}, "candidates", "at least one"),
    ("similarity", {"source": "甲", "candidates": ["乙", ""]}, "candidates[1]", "must not be empty"),
    ("similarity", {"source": "甲", "inputs": [["甲", "乙"]]}, "source", "cannot be combined with inputs"),
    (
        "similarity",
        {"source": "甲", "candidates": ["乙", "好" * 900], "truncation": "error"},
        "candidates[1]",
        "tokens",
    ),
    ("mrc", {"inputs": [READING | {"choices": []}]}, "inputs[0].choices", "at least one choice"),
    ("mrc", {"inputs": [READING, READING | {"choices": ["丙", "丙"]}]}, "inputs[1].choices", "entry 1 repeats entry 0"),
    (
        "mrc",
        {"inputs": [READING, READING | {"choices": ["好", "éa", "EA"]}]},
        "inputs[1].choices[2]",
        "is the same to mini as inputs[1].choices[1]: they differ only in case, accents",
    ),
    ("mrc", {"inputs": [READING | {"choices": ["\x07", "好"]}]}, "inputs[0].choices[0]", "has no token for mini"),
    ("mrc", {"inputs": [READING | {"question": 1}]}, "inputs[0].question", "must be a string"),
    ("mrc", {"inputs": [READING | {"choises": ["甲"]}]}, "inputs[0].choises", "did you mean choices?"),
    ("mrc", {"inputs": ["甲"]}, "inputs[0]", "must be an object"),
    ("mrc", {"inputs": READING}, "inputs", "must be a list"),
    ("nli", {"inputs": [["甲", 1]]}, "inputs[0][1]", "must be a string"),
    ("fill-mask", {"inputs": ["没有"]}, "inputs[0]", "has no [MASK]"),
    ("fill-mask", {"inputs": ["好" * 600 + "[MASK]"]}, "inputs[0]", "are within the 512 tokens"),
    ("fill-mask", {"inputs": ["[MASK]"], "top_k": 1001}, "top_k", "must be at most 1000"),
]


@pytest.mark.parametrize(("task", "body", "field", "message"), FIELDS, ids=range(len(FIELDS)))
async def test_the_error_of_a_field_names_it_and_its_problem(
    service: Service, task: str, body: dict[str, Any], field: str, message: str
) -> None:
    response = await service.post(f"/v1/{task}", body)
    errors = check(response, 422, "invalid_request")
    assert errors[0]["field"] == field
    assert message in errors[0]["message"]
    assert errors[0]["message"] in response.json()["detail"]
    assert service.submit.calls == []


async def test_a_float_without_a_fraction_is_a_whole_number(service: Service) -> None:
    response = await service.post("/v1/classify", {"inputs": "好", "labels": LABELS, "top_k": 1.0, "timeout_ms": 5e4})
    assert (response.status_code, len(response.json()["results"][0]["scores"])) == (200, 1)


async def test_at_most_twenty_field_errors_are_listed(service: Service) -> None:
    response = await service.post("/v1/classify", {"inputs": [""] * 200, "labels": [], "top_k": 0})
    assert len(check(response, 422, "invalid_request")) == 20
    assert "(and 201 more)" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({f"字段{n}": n for n in range(50_000)}, "the body has 50000 fields"),
        ({"inputs": [{f"x{n}": n for n in range(50_000)}]}, "inputs[0]: has 50000 fields"),
        ({"x" * 1_000_000: 1, "inputs": "好"}, "x" * 64 + ": unknown field"),
    ],
    ids=["many", "nested", "long"],
)
async def test_the_error_of_a_huge_number_of_fields_is_short(
    service: Service, body: dict[str, Any], detail: str
) -> None:
    response = await service.post("/v1/classify", body)
    check(response, 422, "invalid_request")
    assert response.json()["detail"].startswith(detail)
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"nul",
        b'{"inputs": "a",}',
        b'{"inputs": NaN}',
        b'{"inputs": Infinity}',
        b'{"top_k": 1e999}',
        b"\xff\xfe",
        b'{"inputs": "\xe5\xa5"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"inputs":' * 2000 + b"1" + b"}" * 2000,
    ],
    ids=range(13),
)
async def test_a_body_that_is_not_json_is_400(service: Service, body: bytes) -> None:
    assert check(await service.client.post("/v1/classify", content=body), 400, "malformed_body") == []


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"inputs": ["a", NaN]}', "NaN at line 1, column 18 is no JSON; send null or leave the text out"),
        ('{"inputs": ["今天",\n NaN]}'.encode(), "NaN at line 2, column 2 is no JSON"),
        (b'{"inputs": -Infinity}', "Infinity at line 1, column 13 is no JSON"),
        (b'{"inputs": "NaN", "a" 1, "b": NaN}', "unexpected character"),
        (b'{"inputs": [NaNa]}', "unexpected character"),
    ],
)
async def test_the_error_of_a_missing_value_names_it(service: Service, body: bytes, detail: str) -> None:
    response = await service.client.post("/v1/classify", content=body)
    check(response, 400, "malformed_body")
    assert response.json()["detail"].startswith(f"the body is not JSON: {detail}")


@pytest.mark.parametrize("body", [b"[]", b"5", b'"text"', b"null", b"[[[[[[]]]]]]", b"1" * 4000])
async def test_json_that_is_not_an_object_is_refused(service: Service, body: bytes) -> None:
    response = await service.client.post("/v1/classify", content=body)
    assert response.status_code in (400, 422)
    assert "JSON" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"inputs": ["a", "\\ud800"]}', "inputs[1]"),
        (b'{"inputs": "\\udc00\\ud800"}', "inputs"),
        (b'{"inputs": [{"text": "x\\ud83d"}]}', "inputs[0].text"),
        (b'{"inputs": "a", "labels": ["\\udfff"]}', "labels[0]"),
        (b'{"\\ud800": 1}', "\\ud800"),
    ],
)
async def test_a_lone_surrogate_is_422_and_names_the_field(service: Service, body: bytes, field: str) -> None:
    errors = check(await service.client.post("/v1/classify", content=body), 422, "invalid_request")
    assert errors == [{"field": field, "message": "holds a lone surrogate, which is no character"}]


async def test_a_surrogate_pair_is_one_character(service: Service) -> None:
    response = await service.client.post("/v1/embed", content=b'{"inputs": "\\ud83d\\ude00"}')
    assert response.status_code == 200


async def test_a_too_large_content_length_is_413() -> None:
    async with running(settings=Server(max_body_bytes=1024)) as service:
        response = await service.post("/v1/embed", {"inputs": "好" * 1024})
    check(response, 413, "body_too_large")
    assert "1024 bytes" in response.json()["detail"]


async def test_a_body_without_content_length_is_413_at_the_limit() -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 512

    async with running(settings=Server(max_body_bytes=1024)) as service:
        check(await service.client.post("/v1/embed", content=body()), 413, "body_too_large")
    assert sent <= 4


async def test_a_compressed_body_is_415(service: Service) -> None:
    response = await service.client.post("/v1/embed", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    check(response, 415, "unsupported_encoding")
    assert "compressed" in response.json()["detail"]


async def test_an_unknown_model_is_404_with_the_served_models(service: Service) -> None:
    response = await service.post("/v1/embed", {"inputs": "好", "model": "nope"})
    check(response, 404, "model_not_found")
    assert "mini" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/classify/", "/v2/classify", "/static-offline-docs/none.js"])
async def test_an_unknown_route_is_404(service: Service, path: str) -> None:
    check(await service.client.post(path) if "static" not in path else await service.client.get(path), 404, "not_found")


async def test_a_wrong_method_is_405_with_the_allowed_one(service: Service) -> None:
    response = await service.client.get("/v1/classify")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    check(await service.client.delete("/livez"), 405, "method_not_allowed")
    assert (await service.client.head("/v1/classify")).status_code == 405
    for path in ("/livez", "/readyz", "/metrics", "/v1/models", "/docs"):
        assert (await service.client.head(path)).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (QueueFull("full", retry_after_s=2.3), 429, "queue_full", ("3", "2300")),
        (DeadlineUnreachable("late", retry_after_s=0.1), 429, "deadline_unreachable", ("1", "100")),
        (Unavailable("none"), 503, "unavailable", ("1", "1000")),
        (ReplicaLost("lost", retry_after_s=0.25), 503, "replica_lost", ("1", "250")),
        (OutOfMemory("no memory"), 503, "out_of_memory", ("1", "1000")),
        (DeadlineExceeded("late"), 504, "deadline_exceeded", (None, None)),
        (InferenceFailed("row"), 500, "inference_failed", (None, None)),
    ],
)
async def test_a_service_error_has_its_status_and_retry_after(
    error: ServiceError, status: int, code: str, retry: tuple[str | None, str | None]
) -> None:
    async with running(submit=FakeSubmit(error=error)) as service:
        response = await service.post("/v1/embed", {"inputs": "好"})
    check(response, status, code)
    assert (response.headers.get("retry-after"), response.headers.get("retry-after-ms")) == retry


@pytest.mark.parametrize(
    ("path", "body", "row", "field"),
    [
        ("/v1/embed", {"inputs": ["甲", "乙"]}, 1, "inputs[1]"),
        ("/v1/classify", {"inputs": ["甲", "乙"], "labels": LABELS}, 1, "inputs[1]"),
        ("/v1/classify", {"inputs": ["甲", "乙"], "labels": LABELS}, 3, "inputs[1]"),
        ("/v1/classify", {"inputs": ["甲", "乙"], "labels": LABELS}, 5, "labels"),
        ("/openai/v1/embeddings", {"model": "e5", "input": ["甲", "乙"]}, 1, "input[1]"),
    ],
)
async def test_a_failed_row_is_named_by_the_field_that_it_was_made_of(
    path: str, body: dict[str, Any], row: int, field: str
) -> None:
    failing = FakeSubmit(error=InferenceFailed("the model failed on this text", row=row))
    async with running(*served_by_both(), submit=failing) as service:
        response = await service.client.post(path, json=body)
    assert response.status_code == 500
    assert f"{field}: the model failed on this text" in response.text


async def test_admission_refuses_a_request_before_its_body_is_read() -> None:
    admitted_options: list[RequestOptions] = []
    has_read = False

    def refuse(options: RequestOptions) -> None:
        admitted_options.append(options)
        raise QueueFull("full", retry_after_s=2.3)

    async def body() -> AsyncIterator[bytes]:
        nonlocal has_read
        has_read = True
        yield b"{}"

    settings = Server(max_timeout_ms=70_000)
    async with running(admit=refuse, settings=settings, clock=FakeClock(100.0)) as service:
        response = await service.client.post("/v1/embed", content=body())
        headers = {"X-Request-Timeout-Ms": "5000", "X-Request-Priority": "bulk"}
        await service.client.post("/v1/embed", content=body(), headers=headers)
    check(response, 429, "queue_full")
    assert response.headers["retry-after-ms"] == "2300"
    assert not has_read
    assert admitted_options == [RequestOptions(170.0, RANKS["interactive"]), RequestOptions(105.0, RANKS["bulk"])]


async def test_an_unexpected_exception_is_500_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    async with running(submit=FakeSubmit(error=RuntimeError(SECRET))) as service:
        response = await service.post("/v1/embed", {"inputs": "好"})
    check(response, 500, "internal_error")
    assert SECRET not in response.text
    assert "internal error" in caplog.text


async def test_no_error_contains_the_text_of_the_request(service: Service) -> None:
    bodies: list[tuple[str, Any]] = [
        ("fill-mask", {"inputs": SECRET}),
        ("classify", {"inputs": SECRET, "labels": [SECRET, SECRET]}),
        ("classify", {"inputs": SECRET, "truncation": SECRET}),
        ("embed", {"inputs": [SECRET, ""], "pooling": SECRET}),
        ("similarity", {"inputs": [[SECRET * 200, SECRET * 200]], "truncation": "error"}),
        ("mrc", {"inputs": SECRET}),
        ("nli", {"inputs": [SECRET]}),
    ]
    for task, body in bodies:
        response = await service.post(f"/v1/{task}", body)
        check(response, 422, "invalid_request")
        assert SECRET not in response.text


async def test_the_error_of_an_invalid_timeout_header_names_it(service: Service) -> None:
    for value in ("soon", "0", "-1", "1.5", "９", "9" * 40):
        headers = {"X-Request-Timeout-Ms": value.encode()}
        response = await service.client.post("/v1/embed", json={"inputs": "好"}, headers=headers)
        assert check(response, 422, "invalid_request")[0]["field"] == "X-Request-Timeout-Ms"


async def test_requests_are_503_until_ready_while_operations_are_answered(service: Service) -> None:
    service.reason.append("models are loading")
    for response in (await service.post("/v1/embed", {"inputs": "好"}), await service.client.get("/readyz")):
        check(response, 503, "unavailable")
        assert "models are loading" in response.json()["detail"]
        assert response.headers["retry-after"] == "5"
    for path in ("/livez", "/metrics", "/v1/models", "/docs"):
        assert (await service.client.get(path)).status_code == 200
    service.reason.clear()
    assert (await service.client.get("/readyz")).json() == {"status": "ready"}


async def test_a_failed_liveness_check_is_503_with_its_reason() -> None:
    async with running(alive=lambda: "every replica was lost 6 times") as service:
        response = await service.client.get("/livez")
        check(response, 503, "unavailable")
        assert response.json()["detail"] == "not alive: every replica was lost 6 times"
        assert (await service.client.get("/readyz")).status_code == 200


async def test_a_disconnect_cancels_the_jobs_and_is_counted_as_499() -> None:
    async with running(submit=FakeSubmit(gate=asyncio.Event())) as service:
        tasks_before = asyncio.all_tasks()
        sent = await _disconnect_after_submit(service)
        assert service.submit.num_cancelled == 1
        assert sent == []
        assert value_of(service, "erlangshen_requests_total", task="embed", model="none", code="499") == 1
        assert value_of(service, "erlangshen_requests_in_progress", task="embed") == 0
        assert asyncio.all_tasks() == tasks_before


async def _disconnect_after_submit(service: Service) -> list[Any]:
    """Sends one ASGI request whose client disconnects once the jobs have been submitted."""
    sent: list[Any] = []
    body = b'{"inputs": "a"}'
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await service.submit.arrived.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embed",
        "raw_path": b"/v1/embed",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-length", str(len(body)).encode())],
    }
    await service.app(scope, receive, send)
    return sent


def value_of(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


async def test_every_response_is_counted_by_model_and_code(service: Service) -> None:
    await service.post("/v1/embed", {"inputs": "好"})
    await service.post("/v1/embed", {"inputs": ""})
    await service.post("/v1/embed", {"inputs": "好", "model": "mini", "truncation": "no"})
    counted = {
        (model, code): value_of(service, "erlangshen_requests_total", task="embed", model=model, code=code)
        for model, code in (("mini", "200"), ("none", "422"))
    }
    assert counted == {("mini", "200"): 1, ("none", "422"): 2}
    timed = [
        value_of(service, "erlangshen_request_duration_seconds_count", task="embed", model=model)
        for model in ("mini", "none")
    ]
    assert timed == [1, 2]
    assert value_of(service, "erlangshen_request_inputs_sum", task="embed") == 1


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("", False), ("<x>", False)],
)
async def test_a_valid_request_id_is_returned_and_any_other_replaced(
    service: Service, sent: str, is_kept: bool
) -> None:
    for path in ("/livez", "/nowhere"):
        answered = (await service.client.get(path, headers={"X-Request-ID": sent})).headers["x-request-id"]
        assert (answered == sent) is is_kept
        assert len(answered) >= 7
