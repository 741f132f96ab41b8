"""The keys in force: finds whose secret this is, and takes up what has changed in the keys file.

Knows no HTTP.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.api.keys import Key, Keys, digest_of, keys_of_file
from service.api.limits import Account
from service.errors import SettingError
from service.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int] | None


class KeyRing:
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
