"""The gate: where there are keys, nobody comes past it without one that reaches the route; and its limits.

Pure ASGI, before any route is looked for. What is not listed here is for `admin` only, so a route that somebody adds,
or a path that somebody twists, is closed until it is opened. Knows no keys file and no task but its path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.edge import SCOPE_KEY, Exchange
from service.api.keyring import KeyRing
from service.api.keys import KeyScope
from service.api.limits import Account
from service.errors import Forbidden, RateLimited, Unauthorized
from service.metric_labels import NO_KEY
from service.metrics import Metrics

PROBES = frozenset({"/livez", "/readyz"})
DOCS = frozenset({"/docs", "/openapi.json"})
DOCS_FILES = "/static-offline-docs/"

_ADMIN: frozenset[KeyScope] = frozenset({"admin"})
_OTHERS: dict[str, frozenset[KeyScope]] = {
    "/metrics": frozenset({"metrics"}),
    "/v1/models": frozenset({"infer", "admin"}),
}


class Gate:
    """`tasks` are the paths where the model is asked."""

    def __init__(
        self, app: ASGIApp, ring: KeyRing, metrics: Metrics, tasks: Iterable[str], *, open_docs: bool = False
    ) -> None:
        self._app = app
        self._ring = ring
        self._metrics = metrics
        self._tasks = frozenset(tasks)
        self._needed = {**_OTHERS, **dict.fromkeys(self._tasks, frozenset[KeyScope]({"infer"}))}
        self._open_docs = open_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        account = self._account(scope)
        cast("Exchange", scope[SCOPE_KEY]).caller = account
        self._check_scope(account, scope["path"])
        if scope["path"] not in self._tasks:
            await self._app(scope, receive, send)
            return
        self._check_limits(account)
        account.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            account.leave()

    def _is_open(self, path: str) -> bool:
        return path in PROBES or (self._open_docs and (path in DOCS or path.startswith(DOCS_FILES)))

    def _account(self, scope: Scope) -> Account:
        secret = secret_of(scope["headers"])
        if secret and (account := self._ring.find(secret)):
            return account
        self._metrics.key_refused.labels(NO_KEY, "unauthorized").inc()
        if secret:
            raise Unauthorized("this API key is not known")
        raise Unauthorized("an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")

    def _check_scope(self, account: Account, path: str) -> None:
        needed = self._needed.get(path, _ADMIN)
        if needed.isdisjoint(account.rights.scopes):
            self._metrics.key_refused.labels(account.name, "forbidden").inc()
            raise Forbidden(f"this route needs a key with the scope {' or '.join(sorted(needed))}")

    def _check_limits(self, account: Account) -> None:
        if refusal := account.refusal():
            self._metrics.key_refused.labels(account.name, refusal.reason).inc()
            raise RateLimited(refusal.detail, retry_after_s=refusal.wait_s)


def secret_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What the caller brings; b"" for nothing. A bearer goes before X-API-Key, which may pass beside another proxy's
    Authorization."""
    found = b""
    for name, value in headers:
        if name == b"authorization":
            kind, _, secret = value.partition(b" ")
            if kind.lower() == b"bearer":
                return secret.strip()
        elif name == b"x-api-key":
            found = value.strip()
    return found
