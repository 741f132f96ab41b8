"""`python -m service serve`: runs the HTTP server.

Imports only what reads the settings, finds weights and starts processes: the rest of the server is imported while the
worker processes import torch, which takes longer, and the weights are read from the disk.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import ExitStack

from service import logs
from service.cli_args import add_setting_flags, settings_from
from service.commands.launching import launch_workers, read_weights


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service serve", description="Run the HTTP server.")
    add_setting_flags(parser)
    settings = settings_from(parser.parse_args(argv))
    logs.configure(settings.log.level, settings.log.format)
    with ExitStack() as stack:
        workers = launch_workers(settings)
        for worker in workers:
            stack.callback(worker.discard)
        read_weights(settings)
        from service.commands.serving import serve  # now, while the workers import

        serve(settings, workers)
    return 0
