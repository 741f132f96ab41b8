"""The real server with another engine: `python -m tests.support.engine_server ENGINE [flags of serve]`.

ENGINE is `null`, which computes nothing, or `faulty=FOLDER`, which carries out the orders in that folder; the server
then writes the number of its asyncio tasks there. With --profile, SIGUSR1 starts a profile of the event loop's thread,
and SIGUSR2 writes it.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from service import logs
from service.cli_args import add_setting_flags, settings_from
from service.commands.application import Application
from service.commands.serving import make_server
from service.server.listener import bind, url_of
from service.settings import Settings
from tests.support.engines import TASKS, load_faulty, load_null

EVERY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.engine_server", description=(__doc__ or "")[:40])
    parser.add_argument("engine", metavar="ENGINE", help="null or faulty=FOLDER")
    add_setting_flags(parser)
    arguments = parser.parse_args()
    kind, _, orders = arguments.engine.partition("=")
    load = partial(load_faulty, orders=Path(orders)) if kind == "faulty" else load_null
    settings = settings_from(arguments)
    logs.configure(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, load, Path(orders) / TASKS if orders else None))


async def _serve(settings: Settings, load: Any, tasks: Path | None) -> None:
    application = Application(settings, load=load)
    server = make_server(application, settings)
    with bind(settings.server) as listener:
        application.begin(url_of(listener), on_failure=server.leave)
        counting = asyncio.create_task(_count_tasks(tasks)) if tasks is not None else None
        await server.serve(sockets=[listener])
        if counting is not None:
            counting.cancel()
    if application.failure is not None:
        raise application.failure


async def _count_tasks(file: Path) -> None:
    while True:
        await asyncio.to_thread(file.write_text, str(len(asyncio.all_tasks())))
        await asyncio.sleep(EVERY_S)


if __name__ == "__main__":
    main()
