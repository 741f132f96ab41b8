"""Start-time fair queueing: by priority, then between accounts by weight, then between the requests of an account.

Source: Goyal, Vin and Cheng, "Start-time Fair Queueing", 1996; applied once between accounts and once within each. A
flow is an account at one priority.

Between flows: the start tag of a flow is the tokens it was given over its weight; the flow with the smallest tag is
next. A flow that comes back after it had nothing waiting starts at the virtual time of the others: it can neither save
up nor owe.

Within a flow: the start tag of a row is the virtual time of the flow when its request came, plus the tokens of the rows
of that request before it. The virtual time is the finish tag of the furthest row that was taken in this order. So a
request of many rows stands next to those that come later, not before them: it holds a small request back by no more
than any other request does, however many rows it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.domain import RequestOptions


@dataclass(slots=True, eq=False)
class Flow:
    """One account at one priority, and what of it waits.

    `passed_over` are tokens of rows that did not fit into the batch that is being made; while it is made the flow is
    ordered as if it had been given them.
    """

    weight: float = 1.0
    start_tag: float = 0.0
    virtual_time: float = 0.0
    passed_over: int = 0
    num_tokens: int = 0
    num_rows: int = 0
    num_requests: int = 0

    def tokens_ahead(self, tokens: float) -> float:
        """Tokens of this flow that are computed before a new request of `tokens`: of each of its requests as many as
        the new one has, at least one row, and at most all of them."""
        if not self.num_rows:
            return 0.0
        return min(self.num_tokens, self.num_requests * max(tokens, self.num_tokens / self.num_rows))


@dataclass(slots=True, eq=False)
class FlowEntry:
    """One request in its flow, for as long as rows of it wait."""

    flow: Flow
    priority: int = 0
    num_rows: int = 0

    def add(self, tokens: int) -> None:
        """A row of the request waits."""
        self.flow.num_requests += not self.num_rows
        self.num_rows += 1
        self.flow.num_rows += 1
        self.flow.num_tokens += tokens

    def drop(self, tokens: int) -> None:
        """A row of the request waits no longer."""
        self.num_rows -= 1
        self.flow.num_rows -= 1
        self.flow.num_tokens -= tokens
        self.flow.num_requests -= not self.num_rows


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Where a row stands. Start tags compare within one flow only."""

    entry: FlowEntry
    start_tag: float

    def is_before(self, other: QueuePosition) -> bool:
        """Exact within one flow; between two flows an estimate, as if each had this request only."""
        return (-self.entry.priority, self._due) < (-other.entry.priority, other._due)

    @property
    def _due(self) -> float:
        flow = self.entry.flow
        return flow.start_tag + (self.start_tag - flow.virtual_time) / flow.weight


NOT_QUEUED = QueuePosition(FlowEntry(Flow()), float("inf"))


class FairShare:
    """The flows of all accounts that wait, or did so since the queue was last empty."""

    def __init__(self) -> None:
        self._flows: dict[tuple[int, str], Flow] = {}
        self._virtual_time: dict[int, float] = {}

    @property
    def num_tokens(self) -> int:
        return sum(flow.num_tokens for flow in self._flows.values())

    def enter(self, options: RequestOptions) -> FlowEntry:
        """An entry for one request. The weight of the newest request of an account applies to the whole flow."""
        flow = self._flows.setdefault((options.priority, options.account), Flow())
        flow.weight = options.weight
        if not flow.num_rows:
            flow.start_tag = max(flow.start_tag, self._virtual_time.get(options.priority, 0.0))
        return FlowEntry(flow, options.priority)

    def take(self, position: QueuePosition, tokens: int, *, in_order: bool) -> None:
        """Charges the flow for a row that is taken from its position, and waits no longer.

        Unless it was taken in order, virtual times stay as they are: a row that fills a gap, or is taken for its age,
        may be far ahead of the rows of other flows.
        """
        flow, priority = position.entry.flow, position.entry.priority
        if in_order:
            self._virtual_time[priority] = max(flow.start_tag, self._virtual_time.get(priority, 0.0))
            flow.virtual_time = max(flow.virtual_time, position.start_tag + tokens)
        flow.start_tag += tokens / flow.weight
        position.entry.drop(tokens)

    def forget(self) -> None:
        """The queue is empty: what each flow was given does not count any more."""
        self._flows.clear()
        self._virtual_time.clear()

    def tokens_ahead(self, options: RequestOptions, tokens: float) -> float:
        """About how many tokens are computed before a new request of `tokens`.

        All of higher priorities; those of its own flow; and what other flows of its priority are given, by weight,
        while its own flow is given these.
        """
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
        """Whether the account would have more tokens waiting than its share of `limit`, by weight among all flows that
        wait. A flow with nothing waiting never exceeds its share."""
        own = self._own(options)
        others = sum(flow.weight for _, flow in self._others(options) if flow.num_rows)
        share = limit * options.weight / (options.weight + others)
        return own.num_rows > 0 and own.num_tokens + tokens > share

    def _own(self, options: RequestOptions) -> Flow:
        return self._flows.get((options.priority, options.account)) or Flow()

    def _others(self, options: RequestOptions) -> Iterator[tuple[int, Flow]]:
        key = options.priority, options.account
        return ((found[0], flow) for found, flow in self._flows.items() if found != key)
