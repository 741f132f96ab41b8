"""Loads the settings in rising precedence: default, TOML file, environment, flag.

An unknown name is an error, and the error for an invalid value names its source. This is the only file that reads
settings from `os.environ`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service.errors import SettingError
from service.settings import VERSION, Settings

ENV_PREFIX = "ERLANGSHEN_"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting: its flag, environment variable, default and description."""

    section: str
    name: str
    flag: str
    env: str
    default: Any
    annotation: Any
    metavar: str
    help: str
    is_secret: bool
    """The value is never printed or logged: by mistake it may be a secret instead of its hash."""

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def is_bool(self) -> bool:
        return self.annotation is bool

    @property
    def is_repeatable(self) -> bool:
        return isinstance(self.default, (tuple, dict))


def setting_rows() -> list[SettingRow]:
    """All settings, in the order of declaration."""
    return [
        _row(section, name, field)
        for section, part in Settings.model_fields.items()
        for name, field in type(part.default).model_fields.items()
    ]


def _row(section: str, name: str, field: FieldInfo) -> SettingRow:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return SettingRow(
        section=section,
        name=name,
        flag=str(extra.get("flag", f"--{name.replace('_', '-')}")),
        env=f"{ENV_PREFIX}{section}__{name}".upper(),
        default=field.default,
        annotation=field.annotation,
        metavar=str(extra.get("metavar", _metavar(name, field.annotation))),
        help=field.description or "",
        is_secret=bool(extra.get("secret")),
    )


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return name.rsplit("_", 1)[-1].upper()


def section_help() -> dict[str, str]:
    """The one-line description of each section, by name."""
    return {name: (type(part.default).__doc__ or "").strip() for name, part in Settings.model_fields.items()}


ENV_CONFIG = "ERLANGSHEN_CONFIG"
# Kubernetes sets these in every pod if there is a Service called "erlangshen": they are not settings.
_KUBERNETES_LINK = re.compile(
    r"ERLANGSHEN_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from all sources; `flags` maps "section.name" to the value of the flag, and `defaults` to one that
    takes the place of the default.

    Raises:
        SettingError: names each invalid setting, its value, its source and the problem.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    layers = [
        _from_flags(defaults or {}),
        _from_file(config or environ.get(ENV_CONFIG) or None),
        _from_env(environ),
        _from_flags(flags or {}),
    ]
    for layer in layers:
        for row, value, origin in layer:
            values.setdefault(row.section, {})[row.name] = value
            origins[row.key] = origin
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _setting_error(error, origins) from None


def weight_cache_folder(setting: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder for a value of `models.weight_cache_dir`; None if it is off, or if the user has no home directory."""
    if setting in ("off", ""):
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    base = Path((os.environ if environ is None else environ).get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # XDG: an unset or relative path means the default
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "erlangshen" / "weights"


Layer = list[tuple[SettingRow, Any, str]]


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    known = {row.key: row for row in setting_rows()}
    return [(known[key], value, known[key].flag) for key, value in flags.items()]


def _from_env(environ: Mapping[str, str]) -> Layer:
    known = {row.env: row for row in setting_rows()}
    # An empty variable counts as not set: compose files define variables in this way.
    ours = [name for name, value in environ.items() if name.startswith(ENV_PREFIX) and name != ENV_CONFIG and value]
    # Without values: a variable of another program may hold a secret. All at once: after a rollback there may be many.
    unknown = [name for name in ours if name not in known and not _KUBERNETES_LINK.fullmatch(name)]
    if unknown:
        lines = [f"{name} is not a setting{_nearest(name, known, ENV_PREFIX)}" for name in unknown]
        raise SettingError(f"environment: {'; '.join(lines)} (this is version {VERSION})")
    return [(known[name], environ[name], name) for name in ours if name in known]


def _from_file(path: str | Path | None) -> Layer:
    if path is None:
        return []
    known = {row.key: row for row in setting_rows()}
    layer: Layer = []
    for section, part in _read_toml(path).items():
        if section not in Settings.model_fields or not isinstance(part, dict):
            raise SettingError(f"{path}: [{section}] is not a section{_nearest(section, Settings.model_fields)}")
        for name, value in part.items():
            key = f"{section}.{name}"
            if key not in known:
                raise SettingError(f"{path}: {key} is not a setting{_nearest(key, known)} (this is version {VERSION})")
            layer.append((known[key], value, str(path)))
    return layer


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"configuration file {path} is not TOML: {error}") from error


def mask_password(text: str) -> str:
    """The text with the user and the password of every URL in it replaced by `***`."""
    return re.sub(r"(?<=//)[^/?#\s]*@|[^/?#\s'\"]+:[^/?#\s]*@", "***@", text)


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the most similar name. Compares without `prefix`, which would make all names similar."""
    near = get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; see docs/settings.md for all of them"


def _setting_error(error: ValidationError, origins: Mapping[str, str]) -> SettingError:
    lines = []
    secret = {row.key for row in setting_rows() if row.is_secret}
    for one in error.errors():
        key = ".".join(str(part) for part in one["loc"][:2])
        message = one["msg"].removeprefix("Value error, ").removeprefix("Input ")
        origin = f" (from {origins[key]})" if key in origins else ""
        value = f" = {mask_password(repr(one['input']))}" if key in origins and key not in secret else ""
        lines.append(f"{key}{value}{origin}: {message}")
    return SettingError("; ".join(lines))
