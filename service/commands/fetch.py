"""`python -m service fetch`: downloads the models of the settings into the cache.

For use before a server without network access: in an init container, or when an image is built.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from service import logs
from service.cli_args import add_setting_flags, settings_from
from service.commands.models import fetch_checkpoint, parse_specs


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service fetch", description="Download the models, and print their folders.")
    add_setting_flags(parser)
    settings = settings_from(parser.parse_args(argv))
    logs.configure(settings.log.level, settings.log.format)
    for spec in parse_specs(settings.models):
        print(f"{spec.name} {fetch_checkpoint(spec, settings.models).folder}")
    return 0
