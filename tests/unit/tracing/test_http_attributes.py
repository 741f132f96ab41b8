"""HTTP attributes of a request from its ASGI scope and headers."""

from __future__ import annotations

from typing import Any

import pytest

from service.tracing.http_attributes import MAX_CHARS, request_attributes, span_name

SCOPE: dict[str, Any] = {
    "method": "POST",
    "scheme": "https",
    "path": "/v1/标签",
    "raw_path": b"/v1/%E6%A0%87%E7%AD%BE",
    "query_string": b"text=secret",
    "http_version": "1.1",
    "client": ("10.0.0.7", 4711),
    "server": ("10.0.0.1", 8443),
}


def test_a_request_has_the_attributes_of_the_conventions() -> None:
    assert request_attributes(SCOPE, {"host": "nlp.example", "user-agent": "curl/8"}) == {
        "http.request.method": "POST",
        "url.scheme": "https",
        "url.path": "/v1/%E6%A0%87%E7%AD%BE",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "client.address": "10.0.0.7",
        "server.address": "nlp.example",
        "server.port": 443,
    }


def test_no_attribute_contains_the_query_or_a_key() -> None:
    found = request_attributes(SCOPE, {"authorization": "Bearer secret", "x-api-key": "secret"})
    assert not any("secret" in str(value) for value in found.values())


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("a.b:81", "a.b", 81),
        ("[::1]:8000", "::1", 8000),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("", "10.0.0.1", 8443),
        ("a.b:port", "10.0.0.1", 8443),
        ("user@a.b", "10.0.0.1", 8443),
        ("a.b/path", "10.0.0.1", 8443),
    ],
)
def test_the_server_is_that_of_the_host_header_or_the_listener(host: str, address: str, port: int) -> None:
    found = request_attributes(SCOPE, {"host": host})
    assert (found["server.address"], found["server.port"]) == (address, port)


def test_a_unix_socket_has_no_port_and_no_client() -> None:
    found = request_attributes({**SCOPE, "client": None, "server": ("/run/nlp.sock", None)}, {})
    assert found["server.address"] == "/run/nlp.sock"
    assert not {"server.port", "client.address"} & found.keys()


def test_values_that_the_client_chooses_are_cut() -> None:
    long = "x" * 1000
    found = request_attributes(
        {**SCOPE, "method": long, "raw_path": f"/{long}".encode()}, {"user-agent": long, "host": long}
    )
    assert max(len(str(value)) for value in found.values()) == MAX_CHARS


def test_a_method_in_lower_case_is_not_the_known_one() -> None:
    found = request_attributes({**SCOPE, "method": "post"}, {})
    assert (found["http.request.method"], found["http.request.method_original"]) == ("_OTHER", "post")


@pytest.mark.parametrize(
    ("method", "route", "name"),
    [("GET", "/v1/models", "GET /v1/models"), ("GET", None, "GET"), ("BREW", "/x", "HTTP /x"), ("BREW", None, "HTTP")],
)
def test_a_span_is_named_by_method_and_route(method: str, route: str | None, name: str) -> None:
    assert span_name(method, route) == name
