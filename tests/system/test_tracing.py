"""Tracing of a real server: spans sent to collectors in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.collectors import Collector, collecting, collecting_by_grpc
from tests.system.test_serve import Running, serving, until

pytestmark = pytest.mark.system

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "秘密的菜很好吃"
NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[Running]:
    flags = ("--model", "mini", "--tracing-endpoint", collector.url, "--log-format", "json")
    with serving(*flags, OTEL_BSP_SCHEDULE_DELAY="50") as running:
        yield running


def classify(server: Running, text: str = SECRET, **headers: str) -> httpx.Response:
    body = {"inputs": text, "labels": ["好评", "差评"]}
    return httpx.post(f"{server.url}/v1/classify", json=body, headers=headers, timeout=60, trust_env=False)


def test_a_request_is_traced_from_the_client_to_the_replica(server: Running, collector: Collector) -> None:
    response = classify(server, traceparent=f"00-{TRACE}-{PARENT}-01")
    _, trace, root_id, flags = response.headers["traceresponse"].split("-")
    assert (trace, int(flags, 16) & 1) == (TRACE, 1)
    until(lambda: len(collector.of(TRACE)) == 4)
    spans = {span.name: span for span in collector.of(TRACE)}
    root = spans["POST /v1/classify"]
    assert (root.span_id.hex(), root.parent_span_id.hex(), root.kind) == (root_id, PARENT, Span.SPAN_KIND_SERVER)
    said = {one.key: one.value for one in root.attributes}
    assert (said["url.scheme"].string_value, said["url.path"].string_value) == ("http", "/v1/classify")
    assert (said["server.address"].string_value, said["server.port"].int_value) == (
        "127.0.0.1",
        httpx.URL(server.url).port,
    )
    assert said["user_agent.original"].string_value.startswith("python-httpx/")
    assert {"client.address", "network.protocol.version", "http.request.method", "http.route"} <= said.keys()
    stages = [spans[name] for name in ("tokenize", "queue", "batch")]
    assert {stage.parent_span_id for stage in stages} == {root.span_id}
    ends = [time for stage in stages for time in (stage.start_time_unix_nano, stage.end_time_unix_nano)]
    bounds = [root.start_time_unix_nano, *ends, root.end_time_unix_nano]
    assert bounds == sorted(bounds)
    [link] = spans["batch"].links
    batch, replica = sorted(collector.of(link.trace_id.hex()), key=lambda span: span.name)
    assert (batch.span_id, batch.name, replica.name) == (link.span_id, "batch", "replica")
    assert [one.span_id for one in batch.links] == [root.span_id]
    assert replica.parent_span_id == batch.span_id
    attributes = {one.key: one.value for one in replica.attributes}
    assert attributes["erlangshen.replica"].string_value == "cpu"
    assert attributes["erlangshen.rows"].int_value == 1
    assert not any(SECRET.encode() in request.SerializeToString() for request in collector.requests)


def test_requests_that_share_a_batch_are_linked_to_its_span(server: Running, collector: Collector) -> None:
    texts = [SECRET + "好" * (40 + number) for number in range(NUM_CLIENTS)]
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        roots = {
            reply.headers["traceresponse"].split("-")[2]
            for reply in clients.map(lambda one: classify(server, one), texts)
        }
    until(lambda: roots <= {span.span_id.hex() for span in collector.spans()})
    batches = [span for span in collector.spans() if span.name == "batch" and not span.parent_span_id]
    linked = [[link.span_id.hex() for link in batch.links] for batch in batches]
    assert roots <= set(chain(*linked))
    assert max(len(set(ids) & roots) for ids in linked) > 1


def test_log_lines_have_the_trace_ids(server: Running) -> None:
    trace = "1" * 32
    reply = classify(server, traceparent=f"00-{trace}-{PARENT}-01")
    until(lambda: any(trace in line for line in server.lines))
    [line] = [json.loads(line) for line in server.lines if trace in line]
    assert line["message"] == "request"
    assert line["span_id"] == reply.headers["traceresponse"].split("-")[2]
    assert line["request_id"] == reply.headers["x-request-id"]


def test_the_latency_histogram_has_an_exemplar_of_the_trace(server: Running) -> None:
    trace = "2" * 32
    classify(server, traceparent=f"00-{trace}-{PARENT}-01")
    metrics = httpx.get(f"{server.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}).text
    [line] = [line for line in metrics.splitlines() if trace in line]
    assert line.startswith("erlangshen_request_duration_seconds_bucket")
    assert 'task="classify"' in line.partition(" # ")[0]
    assert f'trace_id="{trace}"' in line.partition(" # ")[2]


def test_probes_are_not_traced(server: Running) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in httpx.get(f"{server.url}{path}").headers


def test_pending_spans_are_sent_at_shutdown() -> None:
    with collecting() as collector, serving("--model", "mini", "--tracing-endpoint", collector.url) as running:
        classify(running)
        running.process.terminate()
        assert running.process.wait(30) == 0
        assert "POST /v1/classify" in {span.name for span in collector.spans()}


@pytest.mark.slow
def test_spans_are_sent_by_grpc_as_the_standard_variables_say() -> None:
    with collecting_by_grpc() as collector:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        with serving("--model", "mini", **variables) as running:
            classify(running, traceparent=f"00-{TRACE}-{PARENT}-01")
            running.process.terminate()
            assert running.process.wait(30) == 0
        names = sorted(span.name for span in collector.of(TRACE))
        assert names == ["POST /v1/classify", "batch", "queue", "tokenize"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_server_without_its_collector_stops_in_time(protocol: str) -> None:
    flags = ("--tracing-endpoint", "http://127.0.0.1:9", "--tracing-protocol", protocol)
    with serving("--model", "mini", *flags) as running:
        assert classify(running).status_code == 200
        running.process.terminate()
        assert running.process.wait(15) == 0
