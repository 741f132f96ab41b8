"""Log format: JSON lines with the ids of request and trace, or plain text on a terminal.

Messages are constant; variable data are fields (`extra={...}`). Users' text is never logged: a traceback is logged
without the exception's message, which may quote text. Worker processes call `configure` as well.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import stat
import sys
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from service.tracing import trace

request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
MAX_KEPT_BYTES = 1 << 20
"""Of lines that stderr has not taken yet."""

# They log every request and download, which the log lines of this service cover.
_QUIET = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "filelock", "urllib3")


def new_request_id() -> str:
    """A random id. It need not be secret: a secure random number would cost a system call."""
    return f"{random.getrandbits(128):032x}"


def configure(level: str = "info", format: str = "auto") -> None:
    """Routes all loggers of the process, including uvicorn's, through one handler to stderr."""
    _disable_unused_fields()
    as_text = sys.stderr.isatty() if format == "auto" else format == "text"
    handler = _make_handler()
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


def _make_handler() -> logging.Handler:
    try:
        return BoundedHandler(sys.stderr.fileno())
    except OSError:  # replaced by a stream without a descriptor, as notebooks and test runners do
        return logging.StreamHandler()


def _disable_unused_fields() -> None:
    """Disables file, line, thread and process, which cost as much as writing the line. Source: Python's logging HOWTO,
    "Optimization"."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def num_dropped() -> int:
    """Log lines of this process that were dropped because stderr did not take them."""
    return sum(handler.num_dropped for handler in logging.getLogger().handlers if isinstance(handler, BoundedHandler))


class BoundedHandler(logging.Handler):
    """Writes lines to a file descriptor and never waits for its reader.

    A reader that stalls would stop the event loop, which logs. Lines that cannot be written are kept, up to
    MAX_KEPT_BYTES; then new ones are dropped and counted, and a line says how many once there is a reader again. The
    descriptor is opened again for that: O_NONBLOCK on the one that was inherited would hold for other processes, too.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.num_dropped = 0
        self._num_reported = 0
        self._kept: deque[bytes] = deque()
        self._num_kept_bytes = 0
        self._write = _make_nonblocking_write(fd)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a line that cannot be formatted is no reason to fail the request
            self.num_dropped += 1
            return
        if self._num_kept_bytes + len(line) > MAX_KEPT_BYTES:
            self.num_dropped += 1
        else:
            self._kept.append(line)
            self._num_kept_bytes += len(line)
        self.flush()

    def flush(self) -> None:
        while self._kept and (num_written := self._try_write(self._kept[0])):
            line = self._kept.popleft()
            self._num_kept_bytes -= num_written
            if num_written < len(line):
                self._kept.appendleft(line[num_written:])
        if not self._kept and self.num_dropped > self._num_reported:
            num_missing, self._num_reported = self.num_dropped - self._num_reported, self.num_dropped
            logging.getLogger(__name__).warning("log lines were dropped", extra={"lines": num_missing})

    def _try_write(self, line: bytes) -> int:
        """Bytes that were taken: 0 while the reader stalls, all of them when there will never be a reader."""
        try:
            return self._write(line)
        except BlockingIOError:
            return 0
        except OSError:  # no reader, no space, or closed
            self.num_dropped += 1
            self._num_reported += 1
            return len(line)


def _make_nonblocking_write(fd: int) -> Callable[[bytes], int]:
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sending = socket.socket(fileno=os.dup(fd))
        return lambda line: sending.send(line, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        with suppress(OSError):
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return lambda line: os.write(fd, line)


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
