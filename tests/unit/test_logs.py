"""Log lines as machines and people get them."""

from __future__ import annotations

import json
import logging

import pytest

from service import logs
from service.tracing import trace
from tests.unit.tracing.recording import RecordedTrace


def record(message: str = "batch done", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, "x.py", 1, message, (), None)
    vars(made).update(fields)
    return made


def test_a_json_line_has_the_fields_and_the_id_of_the_request() -> None:
    token = logs.request_id.set("r-1")
    line = json.loads(logs.JsonFormatter().format(record(rows=3, path=pytest)))
    logs.request_id.reset(token)
    assert (line["level"], line["logger"], line["message"]) == ("info", "service.x", "batch done")
    assert (line["rows"], line["request_id"]) == (3, "r-1")
    assert line["time"].endswith("+00:00")
    assert isinstance(line["path"], str)


def test_a_line_of_a_traced_request_has_the_ids_of_its_trace() -> None:
    token = trace.current.set(RecordedTrace())
    line = json.loads(logs.JsonFormatter().format(record()))
    trace.current.reset(token)
    assert (line["trace_id"], line["span_id"]) == ("t", "s")
    assert "trace_id" not in json.loads(logs.JsonFormatter().format(record()))


def test_a_text_line_has_them_too() -> None:
    line = logs.TextFormatter().format(record(rows=3, device="cpu"))
    assert line.endswith("info    batch done rows=3 device=cpu")


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
def test_a_traceback_tells_the_place_and_the_kind_but_not_the_message(formatter: logging.Formatter) -> None:
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


def test_a_record_does_not_ask_for_what_no_line_shows(caplog: pytest.LogCaptureFixture) -> None:
    logs.configure("info", "json")
    logging.getLogger().addHandler(caplog.handler)
    logging.getLogger("service.x").info("batch done")
    [made] = caplog.records
    assert (made.pathname, made.thread, made.process, made.processName) == ("(unknown file)", None, None, None)


def test_uvicorn_speaks_through_the_same_writer(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logging.getLogger("uvicorn.error").error("lost")
    logging.getLogger("uvicorn.error").info("chatter")
    logging.getLogger("service").info("ours")
    logging.getLogger("service").debug("detail")
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["lost", "ours"]


def test_elsewhere_than_on_a_terminal_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "auto")
    logs.configure("warning", "auto")
    logging.getLogger("service").warning("once")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "once"
