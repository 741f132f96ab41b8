"""The HTTP application: the fronts, the operators' routes and the docs behind one edge.

Knows no replica and no torch: it gets a pipeline, and callables such as `alive` and `ready` (the reason why not, or
None) and `info`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.api import openapi, operations
from service.api.auth import AuthMiddleware, KeyStore
from service.api.middleware import RequestMiddleware, context_of, reply_to
from service.api.protocols import native
from service.api.request import PRIORITY_HEADER, TIMEOUT_HEADER
from service.api.shortcut import Shortcut
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import VERSION, Security, Server
from service.tracing.trace import NO_TRACER, Tracer

FILES = "/static-offline-docs"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_SEEN = ("X-Request-ID", "Server-Timing", "Retry-After", "Retry-After-Ms")
_SENT = ("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", PRIORITY_HEADER, TIMEOUT_HEADER)


def add_docs(app: FastAPI) -> None:
    """GET /docs."""
    page = get_swagger_ui_html(
        openapi_url=app.openapi_url or "",
        title=app.title,
        swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{FILES}/favicon.png",
    )
    text = bytes(page.body).decode()
    headers = {
        "Content-Security-Policy": content_policy(text),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)


def content_policy(page: str) -> str:
    """Only what the page came with: its script by its hash, its own files and calls to this server. Swagger UI sets
    styles by attribute and draws its icons from data."""
    scripts = " ".join(f"'sha256-{_sha256(script)}'" for script in _INLINE_SCRIPT.findall(page))
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def cors(origins: Sequence[str]) -> dict[str, Any]:
    """For starlette's CORSMiddleware. No cookies: a key is sent by whoever has it, never by the browser itself."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST"),
        "allow_headers": _SENT,
        "expose_headers": _SEEN,
    }


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_UNGUARDED = Security()

_ABOUT = """Chinese text understanding with Erlangshen (MegatronBert, BERT) encoder models: classification with or
without labels of your own, similarity, reading comprehension, inference, masks and embeddings.

Every error has one shape, `application/problem+json`, with a stable `code`. Every reply carries `X-Request-ID`."""


def create_app(
    pipeline: Pipeline,
    *,
    info: Callable[[], operations.ModelsReply],
    ready: Callable[[], str | None],
    alive: Callable[[], str | None] = lambda: None,
    settings: Server,
    metrics: Metrics,
    tracer: Tracer = NO_TRACER,
    key_store: KeyStore | None = None,
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
    front = native.TaskRoutes(pipeline, accepting or ready, settings, metrics, admit, clock)
    endpoints = native.endpoints(front)
    app.include_router(native.router(endpoints, settings))
    probes = operations.probes(alive, ready)
    app.include_router(operations.router(probes, info, metrics))
    add_docs(app)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Shortcut, endpoints={"POST": endpoints, "GET": probes})
    if key_store is not None:
        app.add_middleware(
            AuthMiddleware, key_store=key_store, metrics=metrics, tasks=endpoints, open_docs=security.open_docs
        )
    app.add_middleware(RequestMiddleware, metrics=metrics, tracer=tracer)
    if security.cors_origins:
        app.add_middleware(CORSMiddleware, **cors(security.cors_origins))
    openapi.install(app, [route.request for route in native.ROUTES], settings, with_keys=key_store is not None)
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    return reply_to(error, context_of(request))
