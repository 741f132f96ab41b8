"""What the text of a flag may be: numbers above zero, lists of them, files, and whatever a parser of ours refuses."""

from __future__ import annotations

import ipaddress
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The ValueError of a parser as argparse's own, which is shown as it is written."""

    def type_of_flag(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return type_of_flag


@checked
def above_zero(text: str) -> float:
    if not (value := float(text)) > 0:
        raise ValueError(f"{text}: wanted a number above zero")
    return value


@checked
def whole_above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text}: wanted a whole number above zero")
    return int(text)


@checked
def file_to_write(text: str) -> Path:
    """Refused before a long run rather than after it."""
    file = Path(text)
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"{text}: wanted a file in a folder that is there")
    return file


def list_of(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Comma-separated."""
    return lambda text: tuple(one(part) for part in text.split(","))


def add_key(parser: ArgumentParser) -> None:
    """`args.key`: None where none is given."""
    text = "a file that holds the API key to ask with"
    parser.add_argument("--key-file", dest="key", type=key_in, metavar="FILE", help=text)


def key_in(file: str) -> str:
    """The API key that a file holds; the command line of a process is there for everybody to read."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ArgumentTypeError(f"{file}: {error.strerror}") from None


def is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
