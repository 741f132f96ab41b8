"""The HTTP application: the fronts, the operators' routes and the docs behind one edge.

Knows no replica and no torch: it gets a pipeline and two callables, `ready` (the reason why not, or None) and `info`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api import native, openapi, ops
from service.api.edge import Edge, exchange_of, reply_to
from service.api.shortcut import Shortcut
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import VERSION, Server

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_ABOUT = """Chinese text understanding with Erlangshen (MegatronBert, BERT) encoder models: classification with or
without labels of your own, similarity, reading comprehension, inference, masks and embeddings.

Every error has one shape, `application/problem+json`, with a stable `code`. Every reply carries `X-Request-ID`."""


def create_app(
    pipeline: Pipeline,
    *,
    info: Callable[[], ops.ModelsReply],
    ready: Callable[[], str | None],
    settings: Server,
    metrics: Metrics,
    accepting: Callable[[], str | None] | None = None,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """`accepting` is to tasks what `ready` is to /readyz: a service that is about to stop still answers.

    `clock` is the pipeline's: deadlines are times of it.
    """
    # FastAPI's own /docs loads its scripts from the internet; this one brings them along.
    app = FastAPIOffline(
        title="Erlangshen Service",
        version=VERSION,
        description=_ABOUT,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    front = native.Front(pipeline, accepting or ready, settings, metrics, clock)
    endpoints = native.endpoints(front)
    app.include_router(native.router(endpoints))
    app.include_router(ops.router(ready, info, metrics))
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Shortcut, endpoints=endpoints)
    app.add_middleware(Edge, metrics=metrics)
    openapi.install(app, [route.request for route in native.ROUTES])
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    return reply_to(error, exchange_of(request))
