"""Overload: every request of a flood has an outcome, and the headers of the client reach the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.overload import HeaderClient, Reply, main, recovery_s


@pytest.mark.slow
@pytest.mark.system
def test_a_short_flood(tmp_path: Path) -> None:
    file = tmp_path / "overload.json"
    assert main(["--models", "mini", "--seconds", "1", "--short", "1", "--times", "4", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["models"]["mini"]
    assert found["peak_per_s"] > 0
    codes = found["overload"]["codes"]
    assert sum(codes.values()) == round(found["overload"]["offered_per_s"])
    assert codes.get("0", 0) == 0


def test_headers_are_in_the_message() -> None:
    message = HeaderClient(80, "secret", X_Request_Timeout_Ms="5")._message("POST", "/", b"body")
    lines = message.split(b"\r\n")
    assert lines[0] == b"POST / HTTP/1.1"
    assert {b"X-Request-Timeout-Ms: 5", b"Authorization: Bearer secret"} < set(lines)
    assert message.endswith(b"\r\n\r\nbody")


def test_recovery_ends_with_the_last_request_that_is_refused_or_late() -> None:
    good = [Reply(10.0 + number, 10.9 + number, 200) for number in range(5)]
    assert recovery_s(good, target_s=1.0, ended=10.0) == 0.0
    assert recovery_s([*good, Reply(10.5, 10.6, 429), Reply(11.5, 12.6, 200)], target_s=1.0, ended=10.0) == 1.5
