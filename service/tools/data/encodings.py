"""The encoding of a text file, by its byte-order mark or by which of UTF-8 and GB18030 reads more of its lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from service.errors import DatasetError

CANDIDATES = ("utf-8", "gb18030")
"""The first one wins where both read a file equally well. GBK and GB2312 are parts of GB18030."""
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BINARY = {
    b"PK\x03\x04": "an Excel file or an archive (zip); a workbook is read as .xlsx",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls); save it as .xlsx or as CSV",
    b"PAR1": "a parquet file; it is read as .parquet",
    b"\x1f\x8b": "compressed (gzip); decompress it first",
    b"%PDF": "a PDF document",
}
"""What a file with a wrong suffix is, by its first bytes."""


def guess_encoding(path: Path) -> str:
    """
    Raises:
        DatasetError: the file cannot be read, is a binary file, or most of its lines are in neither encoding.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            for magic, what in BINARY.items():
                if start.startswith(magic):
                    raise DatasetError(f"{path}: is {what}")
            for mark, name in BOMS.items():
                if start.startswith(mark):
                    return name
            file.seek(0)
            num_lines, bad = 0, dict.fromkeys(CANDIDATES, 0)
            for line in file:
                num_lines += 1
                if not line.isascii():
                    for name in CANDIDATES:
                        bad[name] += not _can_decode(line, name)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    best = min(CANDIDATES, key=lambda name: bad[name])
    if bad[best] * 2 > num_lines:
        raise DatasetError(f"{path}: is neither UTF-8 nor GB18030; name its encoding with --encoding")
    return best


def _can_decode(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Bytes that cannot be decoded become lone surrogates, which `is_text` finds; line ends stay as they are.

    Raises:
        DatasetError: the file cannot be read, or there is no such encoding.
    """
    try:
        lines = path.open(encoding=encoding, errors="surrogateescape", newline="")
    except LookupError:
        raise DatasetError(f"--encoding {encoding}: Python has no encoding of this name") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    with lines:
        try:
            yield lines
        except UnicodeDecodeError as error:  # of UTF-16, whose bytes come in pairs
            raise DatasetError(f"{path}: is not {encoding}: {error.reason}") from None


def is_text(value: str) -> bool:
    """Whether it can be sent to a server: no bytes of another encoding, no NUL."""
    if "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
