"""The settings as the outside sees them: one row each, with its flag and its environment name, made from its own name.

Knows no value but the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import Settings

ENV_PREFIX = "ERLANGSHEN_"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as the outside sees it."""

    section: str
    name: str
    flag: str
    env: str
    default: Any
    annotation: Any
    metavar: str
    help: str
    is_secret: bool
    """Its value is shown nowhere: who mistakes a secret for its hash must not find it in a log."""

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
    """Section name -> its one-line description."""
    return {name: (type(part.default).__doc__ or "").strip() for name, part in Settings.model_fields.items()}
