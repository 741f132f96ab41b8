"""Types of flags, checked while the command line is parsed, and the flags that several commands share."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from service.settings import Settings
from service.settings_sources import ENV_CONFIG, SettingRow, load, section_help, setting_rows

T = TypeVar("T")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A flag type that shows the message of `parse`'s ValueError; argparse alone would drop it."""

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
    """Checked before a long run instead of after it; `-`, where a command accepts it, passes too."""
    file = Path(text)
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"{text}: wanted a file in an existing folder")
    return file


@checked
def server_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{text}: wanted http://HOST:PORT")
    return text


def list_of(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A comma-separated list of `one`."""
    return lambda text: tuple(one(part) for part in text.split(","))


def add_key(parser: ArgumentParser) -> None:
    """Adds --key-file; `args.key` is the key, or None without the flag."""
    text = "file with the API key to send"
    parser.add_argument("--key-file", dest="key", type=read_key, metavar="FILE", help=text)


def read_key(file: str) -> str:
    """The API key in a file. There is no flag for the key itself: every user can read a process's command line."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ArgumentTypeError(f"{file}: {error.strerror}") from None


def add_setting_flags(parser: ArgumentParser) -> None:
    """Adds `--config` and one flag for each setting, grouped by section."""
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with settings [{ENV_CONFIG}]")
    for section, purpose in section_help().items():
        group = parser.add_argument_group(section, purpose)
        for row in setting_rows():
            if row.section == section:
                _add(group, row)


def _add(group: object, row: SettingRow) -> None:
    add = group.add_argument  # type: ignore[attr-defined]
    text = f"{row.help} [{row.env}]".replace("%", "%%")
    if row.is_bool:
        add(row.flag, dest=row.key, action=BooleanOptionalAction, default=SUPPRESS, help=text)
    elif row.is_repeatable:
        add(row.flag, dest=row.key, action="append", default=SUPPRESS, metavar=row.metavar, help=text)
    else:
        add(row.flag, dest=row.key, default=SUPPRESS, metavar=row.metavar, help=text)


def settings_from(arguments: Namespace) -> Settings:
    """The settings of all sources; the flags take precedence."""
    known = {row.key for row in setting_rows()}
    typed = {key: value for key, value in vars(arguments).items() if key in known}
    return load(typed, config=arguments.config)
