"""Log format: JSON lines with the ids of request and trace, or plain text on a terminal.

Messages are constant; variable data are fields (`extra={...}`). Users' text is never logged: a traceback is logged
without the exception's message, which may quote text. Worker processes call `configure` as well.
"""

from __future__ import annotations

import logging
import random
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from service.tracing import trace

request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# They log every request and download, which the log lines of this service cover.
_QUIET = ("httpx", "httpcore", "huggingface_hub", "filelock", "urllib3")


def new_request_id() -> str:
    """A random id. It need not be secret: a secure random number would cost a system call."""
    return f"{random.getrandbits(128):032x}"


def configure(level: str = "info", format: str = "auto") -> None:
    """Routes all loggers of the process, including uvicorn's, through one handler to stderr."""
    _disable_unused_fields()
    as_text = sys.stderr.isatty() if format == "auto" else format == "text"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("uvicorn.access", "uvicorn.error", *_QUIET):
        logging.getLogger(name).setLevel(logging.WARNING)


def _disable_unused_fields() -> None:
    """Disables file, line, thread and process, which cost as much as writing the line. Source: Python's logging HOWTO,
    "Optimization"."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """Time, level, message and fields on one line, followed by the stack of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        stack = fields.pop("stack", None)
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        tail = "".join(f" {name}={value}" for name, value in fields.items())
        line = f"{when} {record.levelname.lower():<7} {record.getMessage()}{tail}"
        return f"{line}\n{stack}" if stack else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    fields |= trace.current.get().ids
    if current := request_id.get():
        fields.setdefault("request_id", current)
    if record.exc_info and record.exc_info[0]:
        kind, _, frames = record.exc_info
        fields |= {"error": kind.__name__, "stack": stack_of(frames)}
    return fields


def stack_of(frames: TracebackType | None) -> str:
    """The stack of an exception, without its message."""
    return "".join(traceback.format_tb(frames)).rstrip()
