"""What a browser meets: the docs page, what its scripts may do, and which other sites may call the API.

Knows no key. The page brings its scripts along: FastAPI's own loads them from the internet.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

from service.api.guards import PRIORITY_HEADER, TIMEOUT_HEADER

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
