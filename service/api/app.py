"""The HTTP application: the routes of the protocols and of operations, the docs page, and the middleware around
them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from service.api import call_docs, label_set_routes, openapi, operations, playground
from service.api.auth import OPERATIONS, AccessTable, AuthMiddleware, KeyStore
from service.api.dispatch import ErrorBodies, accesses, endpoints_of, routes, table_of
from service.api.label_set_routes import LabelSetRoutes
from service.api.lines import bulk
from service.api.lines.answers import Lines
from service.api.lines.batch_runner import BatchRunner, accounts_of
from service.api.lines.bulk import BulkRoutes
from service.api.load import LoadRoutes
from service.api.middleware import RequestMiddleware, error_response
from service.api.operations import OperationRoutes
from service.api.playground import PlaygroundRoutes
from service.api.protocols import native, openai
from service.api.protocols.registry import enabled
from service.api.request import PREFIX_KEY, PRIORITY_HEADER, TIMEOUT_HEADER, DirectRoutes, PlainRoute, context_of
from service.api.schemas import LabelSetBody
from service.api.state import ServiceState
from service.settings import VERSION, Security, Server

FILES = "/static-offline-docs"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_SEEN = ("X-Request-ID", "Server-Timing", "Retry-After", "Retry-After-Ms", "ETag")
_SENT = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "X-API-Key",
    "X-Request-ID",
    PRIORITY_HEADER,
    TIMEOUT_HEADER,
)


def add_docs(app: FastAPI) -> None:
    """Adds GET /docs, and GET /openapi.json ahead of FastAPI's.

    The page names its files relative to itself, so they are found below the path of any proxy. `servers` of the
    document is that path where it is known: FastAPI's own route takes it from `root_path`, with which the other routes
    would not be found.
    """
    files = FILES.lstrip("/")
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"{files}/swagger-ui-bundle.js",
        swagger_css_url=f"{files}/swagger-ui.css",
        swagger_favicon_url=f"{files}/favicon.png",
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

    def write(prefix: str | None) -> JSONResponse:
        return JSONResponse(app.openapi() | ({"servers": [{"url": prefix}]} if prefix else {}))

    async def document(request: Request) -> JSONResponse:
        """In a thread: the first one takes a second to make."""
        return await asyncio.to_thread(write, request.scope.get(PREFIX_KEY))

    app.router.routes.insert(0, PlainRoute("/openapi.json", document))


def content_policy(page: str) -> str:
    """Content-Security-Policy of the docs page: its script by its hash, its own files, and calls to this server.
    Swagger UI sets styles by attribute and loads its icons from data URLs."""
    scripts = " ".join(f"'sha256-{_sha256(script)}'" for script in _INLINE_SCRIPT.findall(page))
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def cors(origins: Sequence[str]) -> dict[str, Any]:
    """Arguments of starlette's CORSMiddleware. No cookies: a page sends its key itself, the browser never does."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST", "PUT", "DELETE"),
        "allow_headers": _SENT,
        "expose_headers": _SEEN,
    }


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DEFAULT_SECURITY = Security()

_ABOUT = """Chinese text understanding with Erlangshen (MegatronBert, BERT) encoder models: classification with or
without labels of your own, similarity, reading comprehension, inference, masks and embeddings.

Every error has one shape, `application/problem+json`, with a stable `code`. Every reply carries `X-Request-ID`."""


def create_app(
    state: ServiceState,
    server: Server,
    security: Security = _DEFAULT_SECURITY,
    *,
    key_store: KeyStore | None = None,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The HTTP application. `clock` is that of the pipeline's deadlines. Without a `key_store` no key is needed."""

    @asynccontextmanager
    async def with_batches(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app) if lifespan else nullcontext(), runner.running() if runner else nullcontext():
            yield

    # FastAPI's own /docs loads its scripts from the internet; this class brings them along. FastAPI's own telemetry
    # would look for OpenTelemetry at every request, and count and trace a second time.
    app = FastAPIOffline(
        title="Erlangshen Service",
        version=VERSION,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=with_batches,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.cors_origins = security.cors_origins
    protocols = enabled(server)
    table = table_of((native.PROTOCOL, *protocols))
    error_bodies = ErrorBodies(table)

    def about() -> dict[str, Any]:
        return {
            "needs_key": key_store is not None,
            "docs": key_store is None or security.open_docs,
            "label_sets": state.label_sets is not None,
            "protocols": [protocol.name for protocol in protocols],
        }

    endpoints = endpoints_of(table, state, server, clock)
    found, num_native = routes(endpoints), len(native.ROUTES)
    check_key = (lambda account: None) if key_store is None else key_store.check
    app.state.lines = lines = Lines(endpoints, state, server, check_key, clock)
    runner = None
    if openai.PROTOCOL in protocols and state.batches is not None:
        runner = BatchRunner(state.batches, lines, state, server, openai.error_body, accounts_of(key_store))
    app.state.batch_runner = runner
    app.router.routes[:0] = [  # a route is found by trying one after the other
        *found[:num_native],
        *OperationRoutes(state).routes(),
        *LoadRoutes(state.metrics).routes(),
        *LabelSetRoutes(state, server).routes(),
        *BulkRoutes(state, server, lines).routes(),
        *found[num_native:],
        *(PlaygroundRoutes(about).routes() if server.playground else []),
    ]
    add_docs(app)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        return error_response(error, context_of(request), error_bodies.find(request.scope["path"]))

    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(DirectRoutes, routes=found)
    if key_store is not None:
        pages = playground.ACCESS if server.playground else ()
        access = AccessTable((*OPERATIONS, *pages, *accesses(table)))
        app.add_middleware(
            AuthMiddleware, key_store=key_store, metrics=state.metrics, table=access, open_docs=security.open_docs
        )
    app.add_middleware(RequestMiddleware, metrics=state.metrics, tracer=state.tracer, find_error_body=error_bodies.find)
    if security.cors_origins:
        app.add_middleware(CORSMiddleware, **cors(security.cors_origins))

    def documented() -> APIRouter:
        router = APIRouter()
        native.document(router, server)
        operations.document(router)
        label_set_routes.document(router, server)
        bulk.document(router)
        call_docs.document(router, protocols, with_keys=key_store is not None)
        return router

    bodies: list[type[BaseModel]] = [*call_docs.bodies_of((native.PROTOCOL, *protocols)), LabelSetBody]
    openapi.install(app, documented, bodies, server, with_keys=key_store is not None)
    return app
