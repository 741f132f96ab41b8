"""What a protocol consists of: its calls, their access, and the shape of its errors.

A call is one operation: a method and a path below the protocol's prefix, and a handler. Calls of several protocols may
have the same path at the root of the server; there `claims` says which body belongs to which call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, KeysView, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel
from starlette.responses import Response

from service.api.accounts import KeyScope
from service.api.auth import INFER
from service.api.exchange import Exchange
from service.api.problems import ErrorBody
from service.settings import Server
from service.tasks.text_model import TextModel

Models = Mapping[str, TextModel]
Claims = Callable[[Any, Models], bool]
Handle = Callable[[Exchange, Any], Awaitable[Response]]

RAW: Final = "raw"
"""Of a call whose handler gets the bytes of the body. With None as `body`, the handler reads the body itself."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a protocol. A call with a `task` is admitted by the queue, and counted as that task.

    A key needs one of the `scopes`, and the call counts towards its limits unless it is a GET or `is_limited` is false.
    The path is served below the protocol's prefix, and at the `roots`; with None only there. `claims` is by default
    whether a body has all required fields of its model, which `wants` describes. A handler that `narrows` calls
    `Exchange.narrow` itself, with what the body says about deadline and priority. `summary` and `example` are for the
    OpenAPI document, and `content` for one whose handler reads the body: its schemas by media type.
    """

    method: Literal["GET", "POST", "DELETE", "PUT"]
    path: str | None
    handle: Handle
    body: type[BaseModel] | Literal["raw"] | None = None
    task: str | None = None
    scopes: frozenset[KeyScope] = INFER
    roots: tuple[str, ...] = ()
    claims: Claims | None = None
    wants: str = ""
    max_values: Callable[[Server], int] | None = None
    narrows: bool = False
    is_limited: bool = True
    summary: str = ""
    example: Mapping[str, Any] | None = None
    content: Mapping[str, Any] | None = None

    @property
    def counts(self) -> bool:
        """Whether it counts towards the limits of a key."""
        return self.is_limited and self.method != "GET" and self.scopes == INFER

    def claim(self) -> Claims:
        """Whether this call claims a body, a JSON value."""
        if self.claims is not None:
            return self.claims
        required = self._required()
        return lambda value, models: isinstance(value, dict) and required <= value.keys()

    def wanted(self) -> str:
        """The body that it claims, in words."""
        return self.wants or " and ".join(f"`{name}`" for name in self._required())

    def _required(self) -> KeysView[str]:
        """Names of the required fields, in their order."""
        fields = {} if self.body is None or isinstance(self.body, str) else self.body.model_fields
        return {field.alias or name: field for name, field in fields.items() if field.is_required()}.keys()


@dataclass(frozen=True, slots=True)
class Protocol:
    """One HTTP API. Its calls lie below `/NAME` if it `has_prefix`, and at the roots of each call, for clients that
    cannot be given a prefix."""

    name: str
    title: str
    calls: tuple[Call, ...]
    error_body: ErrorBody | None = None
    """None: application/problem+json."""
    has_prefix: bool = True

    @property
    def prefix(self) -> str:
        return f"/{self.name}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A call of a protocol at one path of the server, which it shares with other offers."""

    protocol: Protocol
    call: Call
    path: str
    claims: Claims
