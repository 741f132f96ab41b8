"""multipart/form-data with one file, read piece by piece: the file is handed on as it comes, and never kept whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidRequest, MalformedBody

MEDIA_TYPE = b"multipart/form-data"
MAX_PARTS = 16
MAX_FIELD_BYTES = 4096
MAX_FILENAME = 255


class FormReader:
    """Reads a form whose part named `file` is a file. After `finish`, `fields` has the other parts."""

    def __init__(self, content_type: str) -> None:
        """Raises MalformedBody if the content type is another one."""
        kind, options = parse_options_header(content_type)
        if kind != MEDIA_TYPE or not options.get(b"boundary"):
            raise MalformedBody("the body must be multipart/form-data, with a file and its purpose")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._content = bytearray()
        self._disposition = self._header = self._value = b""
        self._name = ""
        self._field: bytearray | None = None
        self._num_parts = 0
        self._is_complete = False
        with _parsing():
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )

    def feed(self, data: bytes) -> bytearray:
        """The content of the file in the next bytes of the body. Raises MalformedBody, InvalidRequest."""
        with _parsing():
            self._parser.write(data)
        content, self._content = self._content, bytearray()
        return content

    def finish(self) -> str:
        """The name of the file, once the body is read. Raises MalformedBody, InvalidRequest."""
        if not self._is_complete:
            raise MalformedBody("the body ends before its last part does")
        if self.filename is None:
            raise InvalidRequest.of("file", "is required")
        return self.filename

    # callbacks of the parser

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise MalformedBody(f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""))
        self._field = None if self._name == "file" else bytearray()
        if self._field is None:
            if self.filename is not None:
                raise InvalidRequest.of("file", "must be one file")
            self.filename = _text(options.get(b"filename", b""))[:MAX_FILENAME] or "file"

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._content += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise InvalidRequest.of(self._name[:64], f"must have at most {MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._name] = _text(bytes(self._field))

    def _end(self) -> None:
        self._is_complete = True


@contextmanager
def _parsing() -> Iterator[None]:
    """Makes an error of the parser one for clients."""
    try:
        yield
    except FormParserError:
        raise MalformedBody("the body is not valid multipart/form-data") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
