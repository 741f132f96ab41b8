"""A flag for every setting, made from the settings' own declaration."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace

from service.setting_layers import ENV_CONFIG, load
from service.setting_rows import SettingRow, section_help, setting_rows
from service.settings import Settings


def add_setting_flags(parser: ArgumentParser) -> None:
    """Add `--config` and one flag for each setting, in the settings' sections."""
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
    """The settings of all layers, with the flags that were typed on top."""
    known = {row.key for row in setting_rows()}
    typed = {key: value for key, value in vars(arguments).items() if key in known}
    return load(typed, config=arguments.config)
