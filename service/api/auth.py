"""Authentication middleware: requires an API key with the scope of the route, and enforces the limits of the key.

Pure ASGI, ahead of routing. A path that is not listed here needs the scope `admin`, so a new route, or a path written
to evade the list, is denied by default.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.accounts import Account, Key, Keys, KeyScope, digest_of, read_keys
from service.api.request import CONTEXT_KEY, RequestContext
from service.errors import Forbidden, RateLimited, SettingError, Unauthorized
from service.metric_labels import NO_KEY
from service.metrics import Metrics

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Shortest time between two checks whether the keys file has changed."""

Stamp = tuple[int, int, int, int] | None


class KeyStore:
    """The accounts by secret. `fixed` are the keys in the settings; the keys in `file` are added, and reloaded when it
    changes."""

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
        self._last_failure = ""
        self._checked_at = clock()
        self._load()

    def find(self, secret: bytes) -> Account | None:
        """The account of a secret. Compares with every key, in a time that does not depend on which one matches."""
        self._reload_if_changed()
        digest, found = digest_of(secret), None
        for known, account in self._digests:
            if hmac.compare_digest(known, digest):
                found = account
        return found

    def reload(self) -> None:
        """Reads the keys file again. If it has an error, the error is logged and the previous keys stay in use."""
        self._last_failure = ""
        self._try_to_load()

    def _try_to_load(self) -> None:
        try:
            self._load()
        except SettingError as error:
            if error.detail != self._last_failure:  # once, though it is tried every second
                logger.error("keys not reloaded: the previous keys stay in use", extra={"reason": error.detail})
            self._last_failure = error.detail
        else:
            logger.info("keys reloaded", extra={"keys": ", ".join(self._accounts)})

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if self._file is None or now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        if _read_stamp(self._file) != self._stamp:
            self._try_to_load()

    def _load(self) -> None:
        """Raises SettingError. A file that could not be read counts as changed: it is read again at the next check."""
        keys, stamp = dict(self._fixed), None
        if self._file is not None:
            stamp = _read_stamp(self._file)
            for name, key in read_keys(self._file).items():
                if keys.setdefault(name, key) is not key:
                    raise SettingError(f"keys file {self._file}: {name} is in security.keys as well; rename one")
        if len({key.hash for key in keys.values()}) < len(keys):
            raise SettingError("two API keys have the same hash")
        self._accounts = {name: self._account(name, key) for name, key in keys.items()}
        self._digests = [(key.digest, self._accounts[name]) for name, key in keys.items()]
        self._metrics.declare_keys(keys)
        self._stamp = stamp
        self._last_failure = ""

    def _account(self, name: str, key: Key) -> Account:
        """The account of a key. An existing account keeps the state of its limits."""
        account = self._accounts.get(name)
        if account is None:
            return Account(name, key, self._clock)
        account.grant(key)
        return account


def _read_stamp(file: Path) -> Stamp:
    """Times of modification and of change, inode and size: they change when a file is written, replaced, or gets other
    permissions; None if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


PROBES = frozenset({"/livez", "/readyz"})
DOCS = frozenset({"/docs", "/openapi.json"})
DOCS_FILES = "/static-offline-docs/"

_ADMIN: frozenset[KeyScope] = frozenset({"admin"})
_READERS: frozenset[KeyScope] = frozenset({"infer", "admin"})
_OTHERS: dict[str, frozenset[KeyScope]] = {
    "/metrics": frozenset({"metrics"}),
    "/v1/models": _READERS,
}
_STORED = "/v1/label-sets"
"""Stored label sets. GET needs one of the scopes of a reader, PUT and DELETE need `admin`."""


class AuthMiddleware:
    """`tasks` are the paths of the tasks: they need the scope `infer`, and only they count towards the limits."""

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
        self._check_scope(account, scope["method"], scope["path"])
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
        secret = _read_secret(scope["headers"])
        if secret and (account := self._key_store.find(secret)):
            return account
        self._metrics.key_denied(NO_KEY, "unauthorized")
        if secret:
            raise Unauthorized("this API key is unknown")
        raise Unauthorized("an API key is required: Authorization: Bearer KEY, or X-API-Key: KEY")

    def _check_scope(self, account: Account, method: str, path: str) -> None:
        needed = self._needed.get(path, _ADMIN)
        if method == "GET" and (path == _STORED or path.startswith(f"{_STORED}/")):
            needed = _READERS
        if needed.isdisjoint(account.permissions.scopes):
            self._metrics.key_denied(account.name, "forbidden")
            raise Forbidden(f"this route needs a key with the scope {' or '.join(sorted(needed))}")

    def _check_limits(self, account: Account) -> None:
        if refusal := account.refusal():
            self._metrics.key_denied(account.name, refusal.reason)
            raise RateLimited(refusal.detail, retry_after_s=refusal.wait_s)


def _read_secret(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The secret in the headers; b"" for none. A bearer token takes precedence over X-API-Key, which can be sent
    together with an Authorization header of another scheme, for a proxy."""
    api_key = b""
    for name, value in headers:
        if name == b"authorization":
            kind, _, secret = value.partition(b" ")
            if kind.lower() == b"bearer":
                return secret.strip()
        elif name == b"x-api-key":
            api_key = value.strip()
    return api_key
