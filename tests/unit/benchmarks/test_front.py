"""The client that loads the front, and the sums that are made of what it saw."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from benchmarks.front import H100_ROWS_PER_S, THIS, _overhead, _saturation
from benchmarks.front_client import Client, Tally, messages_of

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


class FakeTransport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.is_closed = True


def connected(tally: Tally) -> tuple[Client, FakeTransport]:
    client, transport = Client(cycle([b"1", b"2"]), tally), FakeTransport()
    client.connection_made(transport)
    return client, transport


@pytest.mark.parametrize("at", [1, 20, len(OK) - 1])
def test_the_next_message_leaves_when_the_reply_is_whole(at: int) -> None:
    tally = Tally()
    client, transport = connected(tally)
    client.data_received(OK[:at])
    assert (transport.written, tally.latencies) == ([b"1"], [])
    client.data_received(OK[at:])
    assert transport.written == [b"1", b"2"]
    assert len(tally.latencies) == 1
    client.end()
    client.data_received(OK)
    assert (transport.written, transport.is_closed) == ([b"1", b"2"], True)


def test_what_is_not_200_is_kept() -> None:
    tally = Tally()
    client, _ = connected(tally)
    refused = OK.replace(b"200 OK", b"429 Too Many Requests")
    client.data_received(refused)
    assert tally.refusals == [refused]


def test_texts_are_grouped_into_requests() -> None:
    found = messages_of(["甲", "乙", "丙"], 2)
    assert ["甲" in one.decode() for one in found] == [True, False]
    assert found[1].endswith('{"inputs": ["丙"], "labels": ["体育", "财经"]}'.encode())


def test_the_overhead_is_what_computing_leaves() -> None:
    found = _overhead(THIS, [(0.005, 0.003), (0.006, 0.004), (0.009, 0.002)], [0.004])
    assert (found["round_trip_p50_ms"], found["over_compute_ms"], found["over_bare_ms"]) == (6.0, 2.0, 2.0)
    assert "over_bare_ms" not in _overhead("other", [(0.005, 0.003)], [])


def test_saturation_is_of_this_checkout_only() -> None:
    def entry(service: str, inputs: int, rate: float, cpu_ms: float) -> dict[str, Any]:
        return {"service": service, "inputs": inputs, "inputs_per_s": rate, "parent_cpu_ms": cpu_ms}

    entries = [entry(THIS, 1, 500.0, 1.0), entry(THIS, 32, 9000.0, 2.0), entry("other", 1, 10_000.0, 0.1)]
    best = _saturation(entries)["best"]
    assert best["1 inputs"]["inputs_per_s"] == 500
    assert best["1 inputs"]["inputs_per_s_of_a_core"] == 1000
    assert best["32 inputs"]["share_of_h100_of_a_core"] == round(16_000 / H100_ROWS_PER_S, 2)
