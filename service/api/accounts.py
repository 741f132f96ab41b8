"""API keys and their accounts: reads keys from a file or a setting, and enforces the limits of each account.

Keys are stored as a plain SHA-256 of the secret. A secret is 256 random bits, so it cannot be found by trying hashes.
Slow, salted hashes protect passwords, which can be guessed; here they would only make every request slower.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.domain import Priority
from service.errors import SettingError
from service.metric_labels import NO_KEY, KeyRefusal

KeyScope = Literal["infer", "metrics", "admin"]

SECRET_PREFIX = "erl_"
"""Prefix of every secret, so that a leaked one can be recognised, by a secret scanner for example."""
HASH_PREFIX = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = HASH_PREFIX + r"[0-9a-f]{64}"


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == NO_KEY:
        raise ValueError(f"wanted a name of up to 64 letters, digits and ._- other than {NO_KEY}")
    return name


class KeyPermissions(BaseModel):
    """Scopes and limits of a key. A limit of 0 means no limit; `priority` is the highest priority of its requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scopes: frozenset[KeyScope] = frozenset({"infer"})
    requests_per_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    tokens_per_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    concurrency: int = Field(0, ge=0)
    priority: Priority = "interactive"
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class Key(KeyPermissions):
    hash: str = Field(pattern=f"^{_HASH}$")

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.hash.removeprefix(HASH_PREFIX))


Name = Annotated[str, AfterValidator(_check_name)]
Keys = dict[Name, Key]
_KEYS = TypeAdapter(Keys)


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def hash_of(secret: str) -> str:
    return HASH_PREFIX + digest_of(secret.encode()).hex()


def read_keys(path: Path) -> Keys:
    """The keys in a TOML file; each is a table [keys.NAME].

    Raises:
        SettingError: names the problem, and never shows a value of the file.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"keys file {path}: {error.strerror}") from None
    except ValueError:
        raise SettingError(f"keys file {path}: not valid TOML") from None
    if tables.keys() != {"keys"} or not tables["keys"]:
        raise SettingError(f"keys file {path}: wanted a table [keys.NAME] for each key, and nothing else")
    return _validate(tables["keys"], f"keys file {path}: keys")


def parse_keys(table: Mapping[str, Iterable[str]]) -> Keys:
    """The keys in the setting `security.keys`, which maps a name to a hash and any number of scopes.

    Raises:
        SettingError: names the problem, and never shows a value.
    """
    tables: dict[str, dict[str, Any]] = {}
    for name, (hash, *scopes) in table.items():
        tables[name] = {"hash": hash, "scopes": scopes} if scopes else {"hash": hash}
    return _validate(tables, "security.keys")


def _validate(tables: Any, where: str) -> Keys:
    try:
        return _KEYS.validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = ".".join([where, *(str(part) for part in first["loc"] if part != "[key]")])
        raise SettingError(f"{path}: {_describe(first)}") from None


def _describe(error: Any) -> str:
    """The message for one of pydantic's errors. Without the value found: it may be a secret in place of its hash."""
    if error["type"] == "string_pattern_mismatch":
        return f"wanted {HASH_PREFIX} and 64 hexadecimal digits, as `python -m service key` prints them"
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")


CONCURRENCY_RETRY_S = 1.0
"""Retry-After at the concurrency limit: the end of a running request cannot be predicted."""
_ROUNDING = 1e-6
"""Tolerance for rounding errors in the level of a bucket."""


class Bucket:
    """A token bucket with the capacity of one second of its rate, at least 1.

    The level may become negative; the bucket then refuses until it has refilled. `rate` is per second; 0 means no
    limit.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate = 0.0
        self._level = 0.0
        self._at = clock()

    def set_rate(self, rate: float) -> None:
        """Changes the rate. A bucket that had no rate starts full; otherwise the level is kept."""
        is_new = not self._rate
        self._fill()
        self._rate = rate
        self._level = self._capacity() if is_new else min(self._level, self._capacity())

    def wait_s(self) -> float:
        """Seconds until the level is at least 1; 0.0 if it is now."""
        if not self._rate:
            return 0.0
        self._fill()
        return max(0.0, 1 - _ROUNDING - self._level) / self._rate

    def draw(self, amount: float) -> None:
        if self._rate:
            self._fill()
            self._level -= amount

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity(), self._level + (now - self._at) * self._rate)
        self._at = now

    def _capacity(self) -> float:
        return max(1.0, self._rate)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused, and the seconds after which it may be sent again."""

    reason: KeyRefusal
    detail: str
    wait_s: float


class Account:
    """A caller: the name of its key, its permissions, and the state of its limits, which survives a reload of keys."""

    def __init__(self, name: str, permissions: KeyPermissions, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._num_running = 0
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)
        self.grant(permissions)

    def grant(self, permissions: KeyPermissions) -> None:
        self.permissions = permissions
        self._requests.set_rate(permissions.requests_per_s)
        self._tokens.set_rate(permissions.tokens_per_s)

    def refusal(self) -> Refusal | None:
        """The limit that a new request would exceed; None if it may `enter`."""
        permissions = self.permissions
        if 0 < permissions.concurrency <= self._num_running:
            return Refusal(
                "concurrency", f"the concurrency limit of this key is {permissions.concurrency}", CONCURRENCY_RETRY_S
            )
        if wait_s := self._tokens.wait_s():
            return Refusal("tokens", f"this key may use {permissions.tokens_per_s:g} tokens a second", wait_s)
        if wait_s := self._requests.wait_s():
            return Refusal("requests", f"this key may send {permissions.requests_per_s:g} requests a second", wait_s)
        return None

    def enter(self) -> None:
        self._num_running += 1
        self._requests.draw(1)

    def leave(self) -> None:
        self._num_running -= 1

    def spend(self, tokens: int) -> None:
        """Charges tokens, once they are known: after the text was encoded."""
        self._tokens.draw(tokens)

    def priority(self, requested: Priority) -> Priority:
        return "bulk" if self.permissions.priority == "bulk" else requested


ANYONE = Account("", KeyPermissions())
"""The account of every request if no keys are configured."""
