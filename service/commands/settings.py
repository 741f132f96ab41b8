"""`python -m service settings`: the settings in effect, or with --markdown the page that documents them all."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import orjson

from service.cli_args import add_setting_flags, settings_from
from service.settings import Settings
from service.settings_sources import ENV_CONFIG, SettingRow, section_help, setting_rows

_HEAD = f"""# Settings

Made by `python -m service settings --markdown > docs/settings.md`; a test fails when it is out of date.

A setting comes from, in rising order: its default, a TOML file, the environment, a flag of `python -m service serve`.
The file is named by `--config FILE` or `{ENV_CONFIG}`; its sections are the headings below. In the environment a list
is comma-separated (`a,b`); its flag may be repeated. `labels` and `keys` are tables: `[models.labels]` in the file,
`NAME=A,B;OTHER=C,D` in the environment. A name that is no setting is refused, in the file and in the environment, and
a wrong value stops the start with a line that says which and why. `python -m service settings` prints what is in
effect.
"""


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service settings", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print docs/settings.md")
    add_setting_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        print(markdown(), end="")
        return 0
    print(orjson.dumps(_shown(settings_from(arguments)), option=orjson.OPT_INDENT_2).decode())
    return 0


def _shown(settings: Settings) -> dict[str, Any]:
    """Of what is secret, the names."""
    values = settings.model_dump(mode="json")
    for row in setting_rows():
        if row.is_secret:
            values[row.section][row.name] = sorted(values[row.section][row.name])
    return values


def markdown() -> str:
    """docs/settings.md."""
    parts = [_HEAD]
    for section, purpose in section_help().items():
        parts.append(f"\n## {section}\n\n{purpose}\n\n| setting | flag | environment | default | meaning |\n")
        parts.append("|---|---|---|---|---|\n")
        parts.extend(_line(row) for row in setting_rows() if row.section == section)
    return "".join(parts)


def _line(row: SettingRow) -> str:
    flag = row.flag if row.is_bool else f"{row.flag} {row.metavar}".replace("|", "\\|")
    return f"| `{row.name}` | `{flag}` | `{row.env}` | {_default(row)} | {row.help} |\n"


def _default(row: SettingRow) -> str:
    if isinstance(row.default, bool):
        return f"`{str(row.default).lower()}`"
    if row.default is None or row.default in ((), {}):
        return "none"
    if isinstance(row.default, tuple):
        return f"`{','.join(row.default)}`"
    return f"`{row.default}`"
