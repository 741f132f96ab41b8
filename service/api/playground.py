"""The playground: a page at `GET /` that tries every task in a browser. Static files of `web/`, read once at start.

The page is the same for all and needs no key; what it asks of the API needs one where the server has keys. Before a
key is there, `about.json` says what the page can offer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.api.auth import OPEN, Access
from service.api.request import PREFIX_KEY, WITHOUT_SLASH, PlainRoute

WEB = Path(__file__).parent / "web"
PAGE = "index.html"
ABOUT = "about.json"
FILES = "/playground"
ACCESS = (Access("GET", "/", OPEN), Access("GET", f"{FILES}/{{name}}", OPEN))
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Scripts and styles are files of this server alone, and no text becomes markup: a browser that knows trusted types
refuses every assignment to innerHTML."""


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> File:
        data = path.read_bytes()
        return cls(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:20]}"')

    def respond(self, request: Request, **more: str) -> Response:
        headers = {**HEADERS, "ETag": self.etag, **more}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers=headers, media_type=self.media_type)


@dataclass(frozen=True, slots=True)
class PlaygroundRoutes:
    """`about` is what `about.json` holds: whether a key is needed, whether /docs is open and label sets are kept, and
    the names of the protocols, whose clients the page shows."""

    about: Callable[[], dict[str, Any]]
    files: dict[str, File] = field(
        default_factory=lambda: {path.name: File.read(path) for path in sorted(WEB.iterdir()) if path.suffix in TYPES}
    )

    async def page(self, request: Request) -> Response:
        """404 for a client that is no browser: the page says nothing to it."""
        if "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(404)
        if request.scope.get(WITHOUT_SLASH):
            return RedirectResponse(f"{request.scope[PREFIX_KEY]}/")
        return self.files[PAGE].respond(request, Vary="Accept")

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == ABOUT:
            return Response(orjson.dumps(self.about()), headers=HEADERS, media_type="application/json")
        found = self.files.get(name)
        if found is None:
            raise HTTPException(404)
        return found.respond(request)

    def routes(self) -> list[PlainRoute]:
        return [PlainRoute("/", self.page, methods=["GET"]), PlainRoute(f"{FILES}/{{name}}", self.file)]
