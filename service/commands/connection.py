"""The server that a command asks: one at a URL, or the service itself, started in this process for a model."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from service import logs
from service.api.app import create_app
from service.cli_args import add_key, server_url
from service.commands.application import Application
from service.settings import Settings
from service.settings_sources import load
from service.tools.evaluation import EvaluationClient, open_client

DEFAULT_URL = "http://127.0.0.1:8000"
IN_PROCESS = "http://in-process"
POLL_S = 0.05
LONGEST_WAIT_MS = 3_600_000
"""Of a request to the server in this process: on a slow machine it is answered late instead of being refused."""


def add_connection_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="start this model (a directory, a hub id, or mini) in this process, with the settings of `serve` in the "
        "environment; several are separated by commas. With --url: the name of one of the server's models",
    )
    parser.add_argument(
        "--url", type=server_url, help=f"ask the server that runs here instead (without --model: {DEFAULT_URL})"
    )
    add_key(parser)


def own_head(served: Sequence[dict[str, Any]], wanted: str | None) -> dict[str, Any] | None:
    """The model that answers with labels of its own: the wanted one, or the only one that is served."""
    found = [info for info in served if wanted in (None, info["name"], info["source"])]
    if len(found) != 1 or not (found[0]["labels"] or found[0]["kind"] == "sequence-classification"):
        return None
    return found[0]


@asynccontextmanager
async def connect(
    args: Namespace, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[EvaluationClient]:
    """A client of the server that the flags name. `transport` replaces the network in tests.

    Raises:
        StartupError: the model cannot be started.
    """
    if args.model is not None and args.url is None and transport is None:
        async with serve_in_process(args.model.split(",")) as own, open_client(IN_PROCESS, None, own) as client:
            yield EvaluationClient(client)
        return
    async with open_client(args.url or DEFAULT_URL, args.key, transport) as client:
        yield EvaluationClient(client, args.model)


@asynccontextmanager
async def serve_in_process(models: Sequence[str]) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """A transport to the whole service in this process. Raises StartupError: a model cannot be started."""
    async with running(settings_in_process(models)) as (app, _):
        yield httpx.ASGITransport(app)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Any, Application]]:
    """The whole service without a socket, once it is ready, as an ASGI app and what is behind it.

    Raises:
        StartupError: a model cannot be started.
    """
    logs.configure(settings.log.level, settings.log.format)
    application = Application(settings)
    async with application.lifespan(None):
        while application.why_not_accepting() is not None:
            if application.failure is not None:
                raise application.failure
            await asyncio.sleep(POLL_S)
        yield create_app(application, settings.server), application


def settings_in_process(models: Sequence[str]) -> Settings:
    """Those of `serve` in the environment, but no request is refused because others are computed before it."""
    waits = ("server.default_timeout_ms", "server.max_timeout_ms", "batching.max_wait_ms")
    return load({"models.specs": list(models), "log.level": "warning"} | dict.fromkeys(waits, LONGEST_WAIT_MS))
