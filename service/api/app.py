"""The HTTP application: the fronts, the operators' routes and the docs behind one edge.

Knows no replica and no torch: it gets a pipeline, and callables such as `alive` and `ready` (the reason why not, or
None) and `info`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from service.api import native, openapi, ops
from service.api.edge import Edge, exchange_of, reply_to
from service.api.gate import Gate
from service.api.keyring import KeyRing
from service.api.pages import add_docs, cors
from service.api.shortcut import Shortcut
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import VERSION, Security, Server
from service.tracing.trace import NO_TRACER, Tracer

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_UNGUARDED = Security()

_ABOUT = """Chinese text understanding with Erlangshen (MegatronBert, BERT) encoder models: classification with or
without labels of your own, similarity, reading comprehension, inference, masks and embeddings.

Every error has one shape, `application/problem+json`, with a stable `code`. Every reply carries `X-Request-ID`."""


def create_app(
    pipeline: Pipeline,
    *,
    info: Callable[[], ops.ModelsReply],
    ready: Callable[[], str | None],
    alive: Callable[[], str | None] = lambda: None,
    settings: Server,
    metrics: Metrics,
    tracer: Tracer = NO_TRACER,
    ring: KeyRing | None = None,
    security: Security = _UNGUARDED,
    accepting: Callable[[], str | None] | None = None,
    admit: native.Admit = lambda terms: None,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """`accepting` is to tasks what `ready` is to /readyz: a service that is about to stop still answers.

    `admit` refuses a request before it is read, where it would be refused anyway. `clock` is the pipeline's: deadlines
    are times of it. Without a `ring` of keys everybody is answered.
    """
    # FastAPI's own /docs loads its scripts from the internet; this one brings them along. Its own telemetry would look
    # for OpenTelemetry at every request, and count and trace what is counted and traced here.
    app = FastAPIOffline(
        title="Erlangshen Service",
        version=VERSION,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    front = native.Front(pipeline, accepting or ready, settings, metrics, admit, clock)
    endpoints = native.endpoints(front)
    app.include_router(native.router(endpoints, settings))
    probes = ops.probes(alive, ready)
    app.include_router(ops.router(probes, info, metrics))
    add_docs(app)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Shortcut, endpoints={"POST": endpoints, "GET": probes})
    if ring is not None:
        app.add_middleware(Gate, ring=ring, metrics=metrics, tasks=endpoints, open_docs=security.open_docs)
    app.add_middleware(Edge, metrics=metrics, tracer=tracer)
    if security.cors_origins:
        app.add_middleware(CORSMiddleware, **cors(security.cors_origins))
    openapi.install(app, [route.request for route in native.ROUTES], settings, with_keys=ring is not None)
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    return reply_to(error, exchange_of(request))
