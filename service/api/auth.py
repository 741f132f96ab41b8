"""Authentication middleware: requires an API key with the scope of the route, and enforces the limits of the key.

Pure ASGI, ahead of routing. A path that is not listed needs the scope `admin`, so a new route, or a path written to
evade the list, is denied by default. The protocols list their routes themselves (`calls`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from starlette.routing import compile_path
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

    def named(self, name: str) -> Account | None:
        """The account of that name, for work that outlives the process which checked its key."""
        self._reload_if_changed()
        return self._accounts.get(name)

    def check(self, account: Account) -> None:
        """For work that outlives the check of its request: raises Unauthorized once the key is revoked, and Forbidden
        once it may not infer."""
        self._reload_if_changed()
        if self._accounts.get(account.name) is not account:
            raise Unauthorized("this API key was revoked")
        if "infer" not in account.permissions.scopes:
            raise Forbidden("this API key has lost the scope infer")

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
        if read_stamp(self._file) != self._stamp:
            self._try_to_load()

    def _load(self) -> None:
        """Raises SettingError. A file that could not be read counts as changed: it is read again at the next check."""
        keys, stamp = dict(self._fixed), None
        if self._file is not None:
            stamp = read_stamp(self._file)
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


def read_stamp(file: Path) -> Stamp:
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

OPEN: Final[frozenset[KeyScope]] = frozenset()
"""No key is needed, as for a probe: for answers that say nothing but whether the server is ready."""
INFER: Final[frozenset[KeyScope]] = frozenset({"infer"})
READERS: Final[frozenset[KeyScope]] = frozenset({"infer", "admin"})
ADMIN: Final[frozenset[KeyScope]] = frozenset({"admin"})
METRICS: Final[frozenset[KeyScope]] = frozenset({"metrics"})


@dataclass(frozen=True, slots=True)
class Access:
    """What a key needs for one route: one of the `scopes`; and whether the route counts towards its limits.

    `path` may have parameters, as in `/v1/label-sets/{name}`.
    """

    method: str
    path: str
    scopes: frozenset[KeyScope]
    is_limited: bool = False


STORED = "/v1/label-sets"
BULK = "/v1/bulk"
OPERATIONS = (
    *(Access("GET", path, OPEN) for path in sorted(PROBES)),
    Access("GET", "/metrics", METRICS),
    Access("GET", "/v1/models", READERS),
    Access("GET", "/v1/load", READERS),
    Access("GET", STORED, READERS),
    Access("GET", f"{STORED}/{{name}}", READERS),
    Access("PUT", f"{STORED}/{{name}}", ADMIN),
    Access("DELETE", f"{STORED}/{{name}}", ADMIN),
    Access("POST", BULK, INFER),  # its lines count towards the limits, one by one
    *(Access("GET", path, ADMIN) for path in sorted(DOCS)),
    Access("GET", f"{DOCS_FILES}{{name}}", ADMIN),
)
"""The routes that belong to no protocol."""
_NOT_LISTED = Access("", "", ADMIN)


class AccessTable:
    """Finds the access of a request. One that is not listed needs `admin`."""

    def __init__(self, accesses: Iterable[Access]) -> None:
        self._exact: dict[str, dict[str, Access]] = {}
        self._patterns: list[tuple[re.Pattern[str], Access]] = []
        for access in accesses:
            if "{" in access.path:
                self._patterns.append((compile_path(access.path)[0], access))
            else:
                self._exact.setdefault(access.path, {})[access.method] = access

    def find(self, method: str, path: str) -> Access:
        """A method that the path does not have needs what its first one needs: the answer is 405."""
        if by_method := self._exact.get(path):
            return by_method.get(method) or next(iter(by_method.values()))
        found = [access for pattern, access in self._patterns if pattern.match(path)]
        return next((access for access in found if access.method == method), found[0] if found else _NOT_LISTED)


class AuthMiddleware:
    """Checks the key of every request. Only routes that are limited count towards the limits of a key."""

    def __init__(
        self, app: ASGIApp, key_store: KeyStore, metrics: Metrics, table: AccessTable, *, open_docs: bool = False
    ) -> None:
        self._app = app
        self._key_store = key_store
        self._metrics = metrics
        self._table = table
        self._open_docs = open_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (self._open_docs and _is_of_docs(scope["path"])):
            await self._app(scope, receive, send)
            return
        access = self._table.find(scope["method"], scope["path"])
        if not access.scopes:
            await self._app(scope, receive, send)
            return
        account = self._account(scope)
        cast("RequestContext", scope[CONTEXT_KEY]).account = account
        self._check_scope(account, access)
        if not access.is_limited:
            await self._app(scope, receive, send)
            return
        self._check_limits(account)
        account.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            account.leave()

    def _account(self, scope: Scope) -> Account:
        secret = _read_secret(scope["headers"])
        if secret and (account := self._key_store.find(secret)):
            return account
        self._metrics.key_denied(NO_KEY, "unauthorized")
        if secret:
            raise Unauthorized("this API key is unknown")
        raise Unauthorized("an API key is required: Authorization: Bearer KEY, or X-API-Key: KEY")

    def _check_scope(self, account: Account, access: Access) -> None:
        if access.scopes.isdisjoint(account.permissions.scopes):
            self._metrics.key_denied(account.name, "forbidden")
            raise Forbidden(f"this route needs a key with the scope {' or '.join(sorted(access.scopes))}")

    def _check_limits(self, account: Account) -> None:
        if refusal := account.refusal():
            self._metrics.key_denied(account.name, refusal.reason)
            raise RateLimited(refusal.detail, retry_after_s=refusal.wait_s)


def _is_of_docs(path: str) -> bool:
    return path in DOCS or path.startswith(DOCS_FILES)


def _read_secret(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The secret in the headers; b"" for none. A bearer token takes precedence over X-API-Key, which can be sent
    together with an Authorization header of another scheme, for a proxy. The password of Basic comes last: it is all
    that some clients can be configured for, as Label Studio."""
    api_key = password = b""
    for name, value in headers:
        if name == b"authorization":
            kind, _, secret = value.partition(b" ")
            if kind.lower() == b"bearer":
                return secret.strip()
            if kind.lower() == b"basic":
                password = _password(secret.strip())
        elif name == b"x-api-key":
            api_key = value.strip()
    return api_key or password


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
