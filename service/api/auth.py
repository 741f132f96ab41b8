"""The gate: where there are keys, nobody comes past it without one that reaches the route; and its limits.

Pure ASGI, before any route is looked for. What is not listed here is for `admin` only, so a route that somebody adds,
or a path that somebody twists, is closed until it is opened. Knows no keys file and no task but its path.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.accounts import Account, Key, Keys, KeyScope, digest_of, keys_of_file
from service.api.request import CONTEXT_KEY, RequestContext
from service.errors import Forbidden, RateLimited, SettingError, Unauthorized
from service.metric_labels import NO_KEY
from service.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int] | None


class KeyStore:
    """`fixed` are the keys of the settings; those of `file` come on top, and are read again when it changes."""

    def __init__(
        self, fixed: Keys, file: Path | None, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = fixed
        self._file = file
        self._metrics = metrics
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._digests: list[tuple[bytes, Account]] = []
        self._stamp: Stamp = None
        self._looked_at = clock()
        self._load()

    def find(self, secret: bytes) -> Account | None:
        """Compares with every key, in a time that tells nothing of any."""
        self._look()
        digest, found = digest_of(secret), None
        for known, account in self._digests:
            if hmac.compare_digest(known, digest):
                found = account
        return found

    def reload(self) -> None:
        """Takes up what the file says now; where that is no good, the keys stay as they are."""
        try:
            self._load()
        except SettingError as error:
            logger.error("keys not read again: those of before stay in force", extra={"reason": error.detail})
        else:
            logger.info("keys read again", extra={"keys": ", ".join(self._accounts)})

    def _look(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        if _stamp_of(self._file) != self._stamp:
            self.reload()

    def _load(self) -> None:
        """Raises SettingError."""
        keys = dict(self._fixed)
        if self._file is not None:
            self._stamp = _stamp_of(self._file)
            for name, key in keys_of_file(self._file).items():
                if keys.setdefault(name, key) is not key:
                    raise SettingError(f"keys file {self._file}: {name} is in security.keys, too")
        if len({key.hash for key in keys.values()}) < len(keys):
            raise SettingError("two API keys have the same hash")
        self._accounts = {name: self._account(name, key) for name, key in keys.items()}
        self._digests = [(key.digest, self._accounts[name]) for name, key in keys.items()]
        self._metrics.declare_keys(keys)

    def _account(self, name: str, key: Key) -> Account:
        """A caller that was there before is still where it was in its limits."""
        account = self._accounts.get(name)
        if account is None:
            return Account(name, key, self._clock)
        account.grant(key)
        return account


def _stamp_of(file: Path) -> Stamp:
    """What changes when a file is written or another is put in its place; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


PROBES = frozenset({"/livez", "/readyz"})
DOCS = frozenset({"/docs", "/openapi.json"})
DOCS_FILES = "/static-offline-docs/"

_ADMIN: frozenset[KeyScope] = frozenset({"admin"})
_OTHERS: dict[str, frozenset[KeyScope]] = {
    "/metrics": frozenset({"metrics"}),
    "/v1/models": frozenset({"infer", "admin"}),
}


class AuthMiddleware:
    """`tasks` are the paths where the model is asked."""

    def __init__(
        self, app: ASGIApp, key_store: KeyStore, metrics: Metrics, tasks: Iterable[str], *, open_docs: bool = False
    ) -> None:
        self._app = app
        self._key_store = key_store
        self._metrics = metrics
        self._tasks = frozenset(tasks)
        self._needed = {**_OTHERS, **dict.fromkeys(self._tasks, frozenset[KeyScope]({"infer"}))}
        self._open_docs = open_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        account = self._account(scope)
        cast("RequestContext", scope[CONTEXT_KEY]).account = account
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
        if secret and (account := self._key_store.find(secret)):
            return account
        self._metrics.key_denied(NO_KEY, "unauthorized")
        if secret:
            raise Unauthorized("this API key is not known")
        raise Unauthorized("an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")

    def _check_scope(self, account: Account, path: str) -> None:
        needed = self._needed.get(path, _ADMIN)
        if needed.isdisjoint(account.permissions.scopes):
            self._metrics.key_denied(account.name, "forbidden")
            raise Forbidden(f"this route needs a key with the scope {' or '.join(sorted(needed))}")

    def _check_limits(self, account: Account) -> None:
        if refusal := account.refusal():
            self._metrics.key_denied(account.name, refusal.reason)
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
