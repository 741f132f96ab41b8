"""Log lines: formats, request and trace ids, tracebacks, and a reader that stalls."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from service import logs
from service.logs import MAX_KEPT_BYTES, BoundedHandler, JsonFormatter, num_dropped
from service.tracing import trace
from tests.unit.tracing.recording import RecordedTrace


def record(message: str = "batch done", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, "x.py", 1, message, (), None)
    vars(made).update(fields)
    return made


def test_a_json_line_has_the_fields_and_the_request_id() -> None:
    token = logs.request_id.set("r-1")
    line = json.loads(logs.JsonFormatter().format(record(rows=3, path=pytest)))
    logs.request_id.reset(token)
    assert (line["level"], line["logger"], line["message"]) == ("info", "service.x", "batch done")
    assert (line["rows"], line["request_id"]) == (3, "r-1")
    assert line["time"].endswith("+00:00")
    assert isinstance(line["path"], str)


def test_a_json_line_of_a_traced_request_has_its_trace_ids() -> None:
    token = trace.current.set(RecordedTrace())
    line = json.loads(logs.JsonFormatter().format(record()))
    trace.current.reset(token)
    assert (line["trace_id"], line["span_id"]) == ("t", "s")
    assert "trace_id" not in json.loads(logs.JsonFormatter().format(record()))


def test_a_text_line_has_the_fields() -> None:
    line = logs.TextFormatter().format(record(rows=3, device="cpu"))
    assert line.endswith("info    batch done rows=3 device=cpu")


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
def test_a_traceback_has_the_place_and_the_class_but_not_the_message(formatter: logging.Formatter) -> None:
    text = "".join(("秘", "密"))
    try:
        raise KeyError(text)
    except KeyError as error:
        made = record("internal error")
        made.exc_info = (type(error), error, error.__traceback__)
    line = formatter.format(made)
    assert "KeyError" in line
    assert "test_logs.py" in line
    assert text not in line


def test_a_record_omits_fields_that_no_format_shows(caplog: pytest.LogCaptureFixture) -> None:
    logs.configure("info", "json")
    logging.getLogger().addHandler(caplog.handler)
    logging.getLogger("service.x").info("batch done")
    [made] = caplog.records
    assert (made.pathname, made.thread, made.process, made.processName) == ("(unknown file)", None, None, None)


def test_uvicorn_logs_warnings_through_the_same_handler(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logging.getLogger("uvicorn.error").error("lost")
    logging.getLogger("uvicorn.error").info("chatter")
    logging.getLogger("service").info("ours")
    logging.getLogger("service").debug("detail")
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["lost", "ours"]


def test_the_clients_of_the_hubs_log_no_addresses() -> None:
    """An address may have a password, and that of a storage is signed."""
    logs.configure("info", "json")
    clients = ("httpx", "httpx2")
    assert [name for name in clients if logging.getLogger(name).isEnabledFor(logging.INFO)] == []


def test_auto_format_is_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "auto")
    logs.configure("warning", "auto")
    logging.getLogger("service").warning("once")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "once"


@pytest.fixture
def pipe() -> Iterator[tuple[int, BoundedHandler]]:
    """The reading end of a pipe, and a handler that writes into it."""
    reading, writing = os.pipe()
    handler = BoundedHandler(writing)
    handler.setFormatter(JsonFormatter())
    yield reading, handler
    for fd in (reading, writing):
        with suppress(OSError):
            os.close(fd)


def read(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    with suppress(BlockingIOError):
        while more := os.read(fd, 1 << 16):
            data += more
    return data


def parse(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.splitlines()]


def long_record(number: int) -> logging.LogRecord:
    return logging.LogRecord("service.x", logging.INFO, "x.py", 1, f"{number} " + "x" * 10_000, (), None)


def test_a_stalled_reader_does_not_block_and_later_gets_the_kept_lines(
    pipe: tuple[int, BoundedHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, handler = pipe
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    num_lines = 3 * MAX_KEPT_BYTES // 10_000
    for number in range(num_lines):
        handler.emit(long_record(number))
    assert handler.num_dropped == num_dropped() > 0
    data = b""
    while more := read(reading):
        data += more
        handler.flush()
    found = parse(data)
    numbers = [int(line["message"].split()[0]) for line in found if line["message"].endswith("x")]
    assert numbers == list(range(num_lines - handler.num_dropped)), "the first lines, complete and in order"
    assert [line["lines"] for line in found if line["message"] == "log lines were dropped"] == [handler.num_dropped]
    handler.emit(long_record(0))
    assert len(parse(read(reading))) == 1


def test_without_a_reader_lines_are_dropped_and_counted(pipe: tuple[int, BoundedHandler]) -> None:
    reading, handler = pipe
    os.close(reading)
    handler.emit(long_record(1))
    assert handler.num_dropped == 1


def test_a_line_to_a_file_is_written_immediately(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("ab") as stream:
        handler = BoundedHandler(stream.fileno())
        handler.setFormatter(JsonFormatter())
        handler.emit(long_record(7))
        assert orjson.loads(file.read_bytes())["message"].startswith("7 ")
