"""How the device is shared out: by priority, then between accounts by weight, then between the requests of an account.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), once between accounts and once within each. Knows no model, no
budget and no time.

Between accounts: a share's tag is what its account was given, in tokens over its weight; the account with the least tag
is next. One that comes back after it had nothing waiting begins where the others are: it can neither save up nor owe.

Within an account: a row's tag is the virtual time at which its request came, plus the tokens of the request's rows
before it. Virtual time is where the furthest row that was taken in this order ends. So a request of many rows stands
beside those that come later, not before them: what it holds a small one back by is no more than any other request does,
however many rows it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.domain import RequestOptions


@dataclass(slots=True, eq=False)
class Flow:
    """One account at one priority, and what of it waits. `passed_over` are tokens that had no room in the batch that is
    being made, where the account is treated as if it had been given them."""

    weight: float = 1.0
    tag: float = 0.0
    virtual: float = 0.0
    passed_over: int = 0
    num_tokens: int = 0
    num_rows: int = 0
    num_requests: int = 0

    @property
    def turn(self) -> float:
        """The least of all is next."""
        return self.tag + self.passed_over / self.weight

    def tokens_ahead(self, tokens: float) -> float:
        """Tokens of this account that are computed before a new request of so many: of each other request as many as
        it has itself, or a row, and at most all of them."""
        if not self.num_rows:
            return 0.0
        return min(self.num_tokens, self.num_requests * max(tokens, self.num_tokens / self.num_rows))


@dataclass(slots=True, eq=False)
class FlowEntry:
    """One request on its account's share, for as long as rows of it wait."""

    flow: Flow
    priority: int = 0
    num_rows: int = 0

    def add(self, tokens: int) -> None:
        self.flow.num_requests += not self.num_rows
        self._count(1, tokens)

    def drop(self, tokens: int) -> None:
        self._count(-1, -tokens)
        self.flow.num_requests -= not self.num_rows

    def _count(self, rows: int, tokens: int) -> None:
        self.num_rows += rows
        self.flow.num_rows += rows
        self.flow.num_tokens += tokens


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Where a row stands. A tag only compares within its share."""

    entry: FlowEntry
    tag: float

    @property
    def flow(self) -> Flow:
        return self.entry.flow

    @property
    def priority(self) -> int:
        return self.entry.priority

    def is_before(self, other: QueuePosition) -> bool:
        """For places on different shares roughly so: as if each account had but this request."""
        return (-self.priority, self._due) < (-other.priority, other._due)

    @property
    def _due(self) -> float:
        return self.flow.tag + (self.tag - self.flow.virtual) / self.flow.weight


NOT_QUEUED = QueuePosition(FlowEntry(Flow()), float("inf"))


class FairShare:
    """Every account that waits or did so since the queue was last empty, at each of its priorities."""

    def __init__(self) -> None:
        self._fair_share: dict[tuple[int, str], Flow] = {}
        self._virtual: dict[int, float] = {}

    @property
    def num_tokens(self) -> int:
        return sum(flow.num_tokens for flow in self._fair_share.values())

    def entry(self, options: RequestOptions) -> FlowEntry:
        """For one request. The newest weight that an account comes with counts."""
        flow = self._fair_share.setdefault((options.priority, options.account), Flow())
        flow.weight = options.weight
        if not flow.num_rows:
            flow.tag = max(flow.tag, self._virtual.get(options.priority, 0.0))
        return FlowEntry(flow, options.priority)

    def charge(self, position: QueuePosition, tokens: int, *, in_order: bool) -> None:
        """A row of so many tokens was taken from its place. Unless that was in order, nobody else's place changes: what
        fills a gap, or goes for its age, may be far ahead of where the others are."""
        flow = position.flow
        if in_order:
            self._virtual[position.priority] = max(flow.tag, self._virtual.get(position.priority, 0.0))
            flow.virtual = max(flow.virtual, position.tag + tokens)
        flow.tag += tokens / flow.weight

    def forget(self) -> None:
        """Nobody waits: who had how much does not matter to whoever comes."""
        self._fair_share.clear()
        self._virtual.clear()

    def tokens_ahead(self, options: RequestOptions, tokens: float) -> float:
        """Tokens that are computed before a new request of so many, about: all of higher priorities; those of its own
        account; and what other accounts are given, by weight, while its own is given these."""
        own = self._own(options)
        ahead = own.tokens_ahead(tokens)
        per_weight = (ahead + tokens) / options.weight
        for priority, flow in self._others(options):
            if priority > options.priority:
                ahead += flow.num_tokens
            elif priority == options.priority:
                ahead += min(flow.num_tokens, per_weight * flow.weight)
        return ahead

    def exceeds_share(self, options: RequestOptions, tokens: int, limit: int) -> bool:
        """Whether its account would have more waiting than its part, by weight among all that wait, of so many tokens.
        One request of each is always within it."""
        own = self._own(options)
        others = sum(flow.weight for _, flow in self._others(options) if flow.num_rows)
        part = limit * options.weight / (options.weight + others)
        return own.num_rows > 0 and own.num_tokens + tokens > part

    def _own(self, options: RequestOptions) -> Flow:
        return self._fair_share.get((options.priority, options.account)) or Flow()

    def _others(self, options: RequestOptions) -> Iterator[tuple[int, Flow]]:
        key = options.priority, options.account
        return ((found[0], flow) for found, flow in self._fair_share.items() if found != key)
