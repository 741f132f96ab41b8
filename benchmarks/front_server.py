"""A whole service on this machine's loopback for `benchmarks.front`: `python -m benchmarks.front_server PORT [--real]`.

Everything is real but the engine: unless --real, the child answers every batch at once with numbers of the right shape.
SIGUSR1 starts a profile of the event loop's thread, SIGUSR2 ends it and writes it to --profile.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import signal
from pathlib import Path

import uvloop

from benchmarks.null_engine import load_null
from service import logs
from service.commands.application import Application
from service.commands.serve import make_server
from service.replicas.runner import load_engine
from service.server.listener import bind, url_of
from service.settings import Batching, Replicas, Server, Settings, Tracing

LINES = 60
"""Of a profile, by the time that a function itself took."""


def main() -> None:
    arguments = _parse()
    settings = Settings(
        server=Server(port=arguments.port),
        batching=Batching(max_batch_tokens=arguments.max_batch_tokens),
        replicas=Replicas(threads=1),
        tracing=Tracing(endpoint=arguments.collector, sample_ratio=arguments.sample_ratio),
    )
    logs.configure("info", "json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, arguments))


async def _serve(settings: Settings, arguments: argparse.Namespace) -> None:
    whole = Application(settings, load=load_engine if arguments.real else load_null)
    server = make_server(whole, settings)
    if arguments.profile:
        _profile_on_signals(arguments.profile)
    with bind(settings.server) as listener:
        whole.begin(url_of(listener), on_failure=server.leave)
        await server.serve(sockets=[listener])
    if whole.failure is not None:
        raise whole.failure


def _profile_on_signals(file: Path) -> None:
    profiler = cProfile.Profile()

    def write() -> None:
        profiler.disable()
        with file.open("w", encoding="utf-8") as stream:
            pstats.Stats(profiler, stream=stream).strip_dirs().sort_stats("tottime").print_stats(LINES)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, profiler.enable)
    loop.add_signal_handler(signal.SIGUSR2, write)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front_server", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--real", action="store_true", help="the model that ships, computed")
    parser.add_argument("--profile", type=Path, help="where SIGUSR2 writes the profile that SIGUSR1 began")
    parser.add_argument("--collector", help="trace requests and send their spans there; default: do not trace")
    parser.add_argument("--sample-ratio", type=float, default=1.0, help="of the requests; default: all")
    parser.add_argument("--max-batch-tokens", type=int, default=16_384, help="default: what suits a fast GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
