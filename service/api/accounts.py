"""API keys as they are written down: a name, the hash of a secret, and what its bearer may do.

Knows no request. A secret is 256 random bits, so one SHA-256 of it is as good as kept nowhere: nobody can try 2^256 of
them. The slow and salted hashes are for passwords, which people choose and attackers guess, and would cost every
request what they cost an attacker.
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
"""By it a secret that lies about is known for what it is."""
HASH_PREFIX = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = HASH_PREFIX + r"[0-9a-f]{64}"


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == NO_KEY:
        raise ValueError(f"wanted a name of up to 64 letters, digits and ._- other than {NO_KEY}")
    return name


class KeyPermissions(BaseModel):
    """What a caller may do. A limit of 0 is none; `priority` is the highest that its requests get."""

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


def keys_of_file(path: Path) -> Keys:
    """The keys of a TOML file, each a table [keys.NAME]; SettingError says what is wrong, and shows no value."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"keys file {path}: {error.strerror}") from None
    except ValueError:
        raise SettingError(f"keys file {path}: it is not TOML") from None
    if tables.keys() != {"keys"} or not tables["keys"]:
        raise SettingError(f"keys file {path}: wanted a table [keys.NAME] for each key, and nothing else")
    return _checked(tables["keys"], f"keys file {path}: keys")


def keys_of_setting(table: Mapping[str, Iterable[str]]) -> Keys:
    """The keys of `security.keys`: name -> hash and scopes."""
    return _checked({name: _spread(words) for name, words in table.items()}, "security.keys")


def _spread(words: Iterable[str]) -> dict[str, Any]:
    first, *scopes = words
    return {"hash": first, **({"scopes": scopes} if scopes else {})}


def _checked(tables: Any, where: str) -> Keys:
    try:
        return _KEYS.validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = ".".join([where, *(str(part) for part in first["loc"] if part != "[key]")])
        raise SettingError(f"{path}: {_problem(first)}") from None


def _problem(one: Any) -> str:
    """Without what was found: it may be a secret where its hash was wanted."""
    if one["type"] == "string_pattern_mismatch":
        return f"wanted {HASH_PREFIX} and 64 hexadecimal digits, as `python -m service key` prints them"
    return str(one["msg"]).removeprefix("Value error, ").removeprefix("Input ")


CONCURRENCY_RETRY_S = 1.0
"""When one of the running requests ends, nobody knows."""
_ROUNDING = 1e-6


class Bucket:
    """A token bucket that holds what one second brings, and at least 1. It may be drawn below zero: then it is closed
    for as long as that takes to come back. `rate` is per second; 0 never closes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate = 0.0
        self._level = 0.0
        self._at = clock()

    def set_rate(self, rate: float) -> None:
        """A new bucket is full; one in use keeps its level."""
        is_new = not self._rate
        self._fill()
        self._rate = rate
        self._level = self._size() if is_new else min(self._level, self._size())

    def wait_s(self) -> float:
        """Seconds until there is 1 in it; 0.0: there is."""
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
        self._level = min(self._size(), self._level + (now - self._at) * self._rate)
        self._at = now

    def _size(self) -> float:
        return max(1.0, self._rate)


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: KeyRefusal
    detail: str
    wait_s: float


class Account:
    """A caller by name, across changes of its rights."""

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
        """Why a request would have to come back later, and when; None: it may `enter`."""
        permissions = self.permissions
        if 0 < permissions.concurrency <= self._num_running:
            return Refusal(
                "concurrency", f"{permissions.concurrency} requests of this key run already", CONCURRENCY_RETRY_S
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
        """After the text was encoded: only then are they known."""
        self._tokens.draw(tokens)

    def priority(self, asked: Priority) -> Priority:
        return "bulk" if self.permissions.priority == "bulk" else asked


ANYONE = Account("", KeyPermissions())
"""Whoever asks where there are no keys."""
