"""From a path of the server to the call that answers it: routes, the choice between protocols by the body, and access.

Most paths have one call. At the root several protocols may share a path, as `/rerank` or `/predict`: there the body
decides, and a body that fits two protocols is refused with the names of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from service.api.auth import Access
from service.api.calls import RAW, Call, Models, Offer, Protocol
from service.api.exchange import PRIORITIES, Exchange
from service.api.json_body import Body, is_quick, max_values, parse_json, text_memory, validate
from service.api.problems import ErrorBody
from service.api.request import Headers, PlainRoute, RequestContext, context_of, not_ready, read_body, unless_gone
from service.api.state import ServiceState
from service.errors import InvalidRequest
from service.settings import Server
from service.tasks.registry import names_of

Table = dict[tuple[str, str], tuple[Offer, ...]]
"""The offers by method and path."""


def table_of(protocols: Iterable[Protocol]) -> Table:
    """Every call under its prefix and at its roots. GETs, which have no body to choose by, share only one handler."""
    table: Table = {}
    for protocol in protocols:
        for call in protocol.calls:
            below = [protocol.prefix + call.path] if protocol.has_prefix and call.path is not None else []
            for path in dict.fromkeys((*below, *call.roots)):
                table[call.method, path] = (
                    *table.get((call.method, path), ()),
                    Offer(protocol, call, path, call.claim()),
                )
    for (method, path), offers in table.items():
        assert len({offer.call.scopes for offer in offers}) == 1, f"{method} {path} needs different scopes"
        tasks = [offer.call.task for offer in offers]
        assert tasks[0] or not any(tasks), f"{method} {path} is admitted only if its first call has a task"
        if len({offer.call.handle for offer in offers}) > 1:
            has_models = all(isinstance(offer.call.body, type) for offer in offers)
            assert has_models, f"{method} {path} has several calls, and no body to choose by"
    return table


def choose(offers: Sequence[Offer], value: Any, models: Models) -> Offer:
    """The offer that claims a body: of each protocol the first, and of only one protocol.

    Protocols that answer with the same handler are one. A body that no protocol claims is for the native one, if it has
    this path. Raises InvalidRequest if no protocol claims the body, or several do.
    """
    able = [offer for offer in offers if offer.claims(value, models)]
    if len(able) == 1:
        return able[0]
    found: dict[str, Offer] = {}
    for offer in able:
        found.setdefault(offer.protocol.name, offer)
    path = offers[0].path
    if len({offer.call.handle for offer in found.values()}) == 1:
        return able[0]
    if found:
        own = " or ".join(f"{one.protocol.prefix}{one.call.path}" for one in found.values() if one.protocol.has_prefix)
        raise InvalidRequest(f"the body fits {' and '.join(found)}, which share {path}; send it to {own}")
    if native := next((offer for offer in offers if not offer.protocol.has_prefix), None):
        return native
    wanted = "; ".join(dict.fromkeys(f"{offer.protocol.name}: {offer.call.wanted()}" for offer in offers))
    raise InvalidRequest(f"the body fits no protocol that shares {path}; wanted {wanted}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Answers the calls of one method and path; `clock` is that of the pipeline's deadlines.

    A body that has only fields of the first call's model, `own_fields`, is for it: the native protocol pays next to
    nothing for the paths that it shares.
    """

    state: ServiceState
    limits: Server
    clock: Callable[[], float]
    offers: tuple[Offer, ...]
    max_values: int
    own_fields: frozenset[str] = frozenset()

    async def __call__(self, request: Request) -> Response:
        started = self.clock()
        with self.in_progress():
            exchange = self.begin(request, context_of(request), started)
            first = self.offers[0].call
            if first.body is None:
                return await self._handle(exchange, first, 0, None)
            # No variable for the body: it would keep it in memory until the response is sent.
            respond = self._respond(exchange, await read_body(request, exchange.headers, self.limits.max_body_bytes))
            return await unless_gone(request, respond)

    def in_progress(self) -> AbstractContextManager[None]:
        """Counts a request as in progress."""
        task = self.offers[0].call.task
        return nullcontext() if task is None else self.state.metrics.in_progress(task)

    def begin(
        self, request: Request, context: RequestContext, started: float, headers: Headers | None = None
    ) -> Exchange:
        """What is known before the body is read; under overload a refusal here must cost next to nothing.

        Raises Unavailable, InvalidRequest for the headers of the request unless `headers` stand for them, and what
        `ServiceState.admit` raises.
        """
        context.task = task = self.offers[0].call.task
        if task is not None and (reason := self.state.why_not_accepting()):
            raise not_ready(reason)
        if headers is None:
            headers = Headers.read(request, self.limits)
        options = headers.options(context.account, started, self.limits)
        if task is not None:
            context.priority = PRIORITIES[options.priority]
            self.state.admit(options)
        return Exchange(self.state, self.limits, request, context, headers, options, started)

    async def respond(self, exchange: Exchange, value: Any, num_bytes: int, *, is_quick: bool) -> Response:
        """The response to a body that is parsed already, and had `num_bytes`."""
        exchange.context.received(num_bytes)
        if is_quick:
            return await self._handle(exchange, *self._choose(exchange, value, num_bytes))
        choosing = partial(self._choose, exchange, value, num_bytes)
        return await self._handle(exchange, *await self.state.pipeline.threads.run(exchange.options, choosing))

    async def _respond(self, exchange: Exchange, data: Body) -> Response:
        num_bytes = len(data)
        exchange.context.received(num_bytes)
        if self.offers[0].call.body == RAW:
            with self.state.memory.reserved(num_bytes):
                return await self._handle(exchange, self.offers[0].call, num_bytes, data)
        if is_quick(data):
            return await self._handle(exchange, *self._parse(exchange, data))
        with self.state.memory.reserved(text_memory(data)):
            parsing = partial(self._parse, exchange, data)
            del data
            parsed = await self.state.pipeline.threads.run(exchange.options, parsing)
            del parsing
            return await self._handle(exchange, *parsed)

    def _parse(self, exchange: Exchange, data: Body) -> tuple[Call, int, BaseModel]:
        return self._choose(exchange, parse_json(data, self.max_values), len(data))

    def _choose(self, exchange: Exchange, value: Any, num_bytes: int) -> tuple[Call, int, BaseModel]:
        """The call that a body is for, and its wire model."""
        offer = self.offers[0]
        is_own = self.own_fields and isinstance(value, dict) and value.keys() <= self.own_fields
        if len(self.offers) > 1 and not is_own:
            offer = choose(self.offers, value, _models_of(exchange))
            exchange.context.task = offer.call.task
            exchange.context.error_body = offer.protocol.error_body
        model = offer.call.body
        assert isinstance(model, type), "only a call with a model is parsed"
        return offer.call, num_bytes, validate(value, model, self.limits)

    async def _handle(self, exchange: Exchange, call: Call, num_bytes: int, body: Any) -> Response:
        exchange.num_bytes = num_bytes
        if not call.narrows:
            exchange.narrow()
        response = await call.handle(exchange, body)
        exchange.context.replied(len(getattr(response, "body", b"")))
        return response


def _models_of(exchange: Exchange) -> Models:
    """The served models, or the one that the path names."""
    models, named = exchange.state.pipeline.models, exchange.request.path_params.get("model")
    return models if named is None else {name: models[name] for name in names_of(models, named)}


Endpoints = dict[str, dict[str, Endpoint]]
"""The endpoints by path and method."""


def endpoints_of(
    table: Table, state: ServiceState, limits: Server, clock: Callable[[], float] = time.monotonic
) -> Endpoints:
    by_path: Endpoints = {}
    for (method, path), offers in table.items():
        largest = max((offer.call.max_values or max_values)(limits) for offer in offers)
        own = offers[0].call.body if not offers[0].protocol.has_prefix else None
        own_fields = frozenset(own.model_fields) if isinstance(own, type) else frozenset()
        by_path.setdefault(path, {})[method] = Endpoint(state, limits, clock, offers, largest, own_fields)
    return by_path


def routes(by_path: Endpoints) -> list[PlainRoute]:
    """One route per path, those without parameters first."""
    ordered = sorted(by_path.items(), key=lambda item: "{" in item[0])
    return [PlainRoute(path, _by_method(endpoints), methods=list(endpoints)) for path, endpoints in ordered]


def _by_method(endpoints: dict[str, Endpoint]) -> Any:
    if len(endpoints) == 1:
        [endpoint] = endpoints.values()
        return endpoint.__call__

    async def answer(request: Request) -> Response:
        return await endpoints[request.method](request)

    return answer


def accesses(table: Table) -> list[Access]:
    """What a key needs for each path."""
    return [
        Access(method, path, offers[0].call.scopes, is_limited=any(offer.call.counts for offer in offers))
        for (method, path), offers in table.items()
    ]


class ErrorBodies:
    """The shape of the errors of each path, for requests that fail before a protocol is chosen."""

    def __init__(self, table: Table) -> None:
        self._prefixes: dict[str, ErrorBody | None] = {}
        roots: dict[str, dict[str, ErrorBody | None]] = {}
        for (_, path), offers in table.items():
            for protocol in (offer.protocol for offer in offers):
                if protocol.has_prefix:
                    self._prefixes[protocol.name] = protocol.error_body
                roots.setdefault(path, {})[protocol.name] = protocol.error_body
        self._roots = [
            (compile_path(path)[0], next(iter(bodies.values()))) for path, bodies in roots.items() if len(bodies) == 1
        ]

    def find(self, path: str) -> ErrorBody | None:
        """None: application/problem+json, also of a root path that several protocols share."""
        prefix = path.split("/", 2)[1] if path.startswith("/") else ""
        if prefix in self._prefixes:
            return self._prefixes[prefix]
        return next((body for pattern, body in self._roots if pattern.match(path)), None)
