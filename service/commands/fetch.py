"""`python -m service fetch`: brings the models of these settings into the cache, and ends.

For what runs before a server that has no network: an init container, or the build of an image. Loads no weights.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from service import logs
from service.cli_args import add_setting_flags, settings_from
from service.commands.models import fetch_checkpoint, specs_of


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service fetch", description="Download the models, and say where they lie.")
    add_setting_flags(parser)
    settings = settings_from(parser.parse_args(argv))
    logs.configure(settings.log.level, settings.log.format)
    for spec in specs_of(settings.models):
        print(f"{spec.name} {fetch_checkpoint(spec, settings.models).path}")
    return 0
