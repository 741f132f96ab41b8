"""The real server with an engine that obeys orders: `python -m benchmarks.faults.server ORDERS [flags of serve]`.

Writes the number of its asyncio tasks into the file TASKS in that folder, which is told to nobody else.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path

import uvloop

from benchmarks.faults.orders import TASKS, load_faulty
from service import logs
from service.cli_args import add_setting_flags, settings_from
from service.commands.application import Application
from service.commands.serve import make_server
from service.server.listener import bind, url_of
from service.server.uvicorn_server import Server
from service.settings import Settings

TELL_S = 1.0


def main() -> None:
    about = (__doc__ or "").partition(":")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.server", description=about)
    parser.add_argument("orders", type=Path, metavar="ORDERS", help="a folder")
    add_setting_flags(parser)
    arguments = parser.parse_args()
    settings = settings_from(arguments)
    logs.configure(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, arguments.orders))


async def _serve(settings: Settings, orders: Path) -> None:
    whole = Application(settings, load=partial(load_faulty, orders=orders))
    server = make_server(whole, settings)
    with bind(settings.server) as listener:
        whole.begin(url_of(listener), on_failure=server.leave)
        telling = asyncio.create_task(_tell(server, orders / TASKS))
        await server.serve(sockets=[listener])
        telling.cancel()
    if whole.failure is not None:
        raise whole.failure


async def _tell(server: Server, file: Path) -> None:
    while not server.should_exit:
        await asyncio.to_thread(file.write_text, str(len(asyncio.all_tasks())))
        await asyncio.sleep(TELL_S)


if __name__ == "__main__":
    main()
