"""The lines of a batch's input file, `{"custom_id", "method", "url", "body"}`, and what is wrong with them.

Codes are OpenAI's, and where its documentation names none, those of its service on Azure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from service.api.json_body import has_more_values
from service.slices import between_slices

MAX_ERRORS = 100
MAX_ID_CHARS = 512
FRAME_BYTES = 4096
"""Of a line besides its body."""


@dataclass(frozen=True, slots=True)
class InputLimits:
    max_lines: int
    max_body_bytes: int
    max_values: int
    """JSON values of a line: more than any request within the limits has."""


@dataclass(frozen=True, slots=True)
class Checked:
    """An input file without `errors` has `num_lines` requests, of which each that names a model names this one."""

    num_lines: int
    model: str | None
    errors: list[dict[str, Any]]


class _WrongLine(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class InputFile:
    """Reads the lines of a file one after the other, of each at most as much as a line may have."""

    def __init__(self, path: Path, limits: InputLimits) -> None:
        self._file = path.open("rb")
        self._limits = limits
        self._max_bytes = limits.max_body_bytes + FRAME_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def rewind(self) -> None:
        self._file.seek(0)

    def skip(self, num_lines: int) -> None:
        for _ in zip(range(num_lines), self.raw(), strict=False):
            pass

    def raw(self) -> Iterator[bytes]:
        """The lines without their ends; of one that is too long the beginning, which is longer than any line may be."""
        while line := self._file.readline(self._max_bytes + 2):
            yield line.removesuffix(b"\n").removesuffix(b"\r")
            while not line.endswith(b"\n") and (line := self._file.readline(self._max_bytes)):
                pass

    def take(self, most: int, most_bytes: int) -> list[bytes]:
        """The next lines, at least one of those that are left; [] at the end."""
        taken: list[bytes] = []
        num_bytes = 0
        for line in self.raw():
            taken.append(line)
            num_bytes += len(line)
            if len(taken) >= most or num_bytes >= most_bytes:
                break
        return taken

    def check(self, endpoint: str) -> Checked:
        """Reads the whole file; stops at MAX_ERRORS."""
        errors: list[dict[str, Any]] = []
        seen: set[bytes] = set()
        model: str | None = None
        number = 0
        for number, raw in enumerate(self.raw(), 1):
            between_slices()
            if number > self._limits.max_lines:
                detail = f"The file has more than {self._limits.max_lines} lines (max_batch_lines)."
                errors.append(_error("too_many_tasks", detail, None, None))
                break
            try:
                value = self._read(raw)
                digest = hashlib.blake2b(value["custom_id"].encode(), digest_size=16).digest()
                _check_request(value, endpoint)
                if digest in seen:
                    detail = "The custom_id of this line is that of a line before; each must be unique in the file."
                    raise _WrongLine("duplicate_custom_id", detail, "custom_id")
                seen.add(digest)
                model = _check_model(value["body"], model)
            except _WrongLine as wrong:
                errors.append(_error(wrong.code, str(wrong), wrong.param, number))
            if len(errors) >= MAX_ERRORS:
                break
        if not number:
            errors.append(_error("empty_file", "The input file has no lines.", None, None))
        return Checked(number, model, errors)

    def _read(self, raw: bytes) -> dict[str, Any]:
        """Raises _WrongLine."""
        if len(raw) > self._max_bytes:
            detail = f"This line has more than {self._max_bytes} bytes (max_body_bytes)."
            raise _WrongLine("invalid_json_line", detail)
        if not raw.strip():
            raise _WrongLine("invalid_json_line", "This line is blank; each line must be a JSON object.")
        if has_more_values(raw, self._limits.max_values):
            detail = f"This line has more than {self._limits.max_values} JSON values"
            raise _WrongLine("invalid_json_line", f"{detail}, which no request within the limits has.")
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            detail = "not UTF-8" if "UTF-8" in str(error) or "utf-8" in str(error) else "not JSON"
            raise _WrongLine("invalid_json_line", f"This line is {detail}.") from None
        if not isinstance(value, dict):
            raise _WrongLine("invalid_json_line", "This line is no JSON object.")
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if name not in value:
                raise _WrongLine("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
            if not isinstance(value[name], kind):
                wanted = "a string" if kind is str else "an object"
                raise _WrongLine("invalid_request", f"'{name}' must be {wanted}.", name)
        return value


def _check_request(value: Mapping[str, Any], endpoint: str) -> None:
    """Raises _WrongLine."""
    if not 1 <= len(value["custom_id"]) <= MAX_ID_CHARS:
        raise _WrongLine("invalid_request", f"'custom_id' must have 1 to {MAX_ID_CHARS} characters.", "custom_id")
    if value["method"] != "POST":
        raise _WrongLine("invalid_request", "'method' must be POST.", "method")
    if value["url"] != endpoint:
        raise _WrongLine("url_mismatch", f"'url' must be the endpoint of the batch, {endpoint}.", "url")
    if value["body"].get("stream"):
        raise _WrongLine("invalid_request", "A batch cannot stream; leave 'stream' out.", "body.stream")


def _check_model(body: Mapping[str, Any], model: str | None) -> str | None:
    """The model of all lines so far. Raises _WrongLine."""
    named = body.get("model")
    if not isinstance(named, str):
        return model
    if model is not None and named != model:
        detail = "The model of this line is another than that of the lines before; a batch is for one model."
        raise _WrongLine("model_mismatch", detail, "body.model")
    return named


def _error(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
