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

from service.domain import Terms


@dataclass(slots=True, eq=False)
class Share:
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

    def ahead_of(self, tokens: float) -> float:
        """Tokens of this account that are computed before a new request of so many: of each other request as many as
        it has itself, or a row, and at most all of them."""
        if not self.num_rows:
            return 0.0
        return min(self.num_tokens, self.num_requests * max(tokens, self.num_tokens / self.num_rows))


@dataclass(slots=True, eq=False)
class Claim:
    """One request on its account's share, for as long as rows of it wait."""

    share: Share
    priority: int = 0
    num_rows: int = 0

    def add(self, tokens: int) -> None:
        self.share.num_requests += not self.num_rows
        self._count(1, tokens)

    def drop(self, tokens: int) -> None:
        self._count(-1, -tokens)
        self.share.num_requests -= not self.num_rows

    def _count(self, rows: int, tokens: int) -> None:
        self.num_rows += rows
        self.share.num_rows += rows
        self.share.num_tokens += tokens


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. A tag only compares within its share."""

    claim: Claim
    tag: float

    @property
    def share(self) -> Share:
        return self.claim.share

    @property
    def priority(self) -> int:
        return self.claim.priority

    def is_before(self, other: Place) -> bool:
        """For places on different shares roughly so: as if each account had but this request."""
        return (-self.priority, self._due) < (-other.priority, other._due)

    @property
    def _due(self) -> float:
        return self.share.tag + (self.tag - self.share.virtual) / self.share.weight


NOWHERE = Place(Claim(Share()), float("inf"))


class Shares:
    """Every account that waits or did so since the queue was last empty, at each of its priorities."""

    def __init__(self) -> None:
        self._shares: dict[tuple[int, str], Share] = {}
        self._virtual: dict[int, float] = {}

    @property
    def num_tokens(self) -> int:
        return sum(share.num_tokens for share in self._shares.values())

    def claim(self, terms: Terms) -> Claim:
        """For one request. The newest weight that an account comes with counts."""
        share = self._shares.setdefault((terms.priority, terms.account), Share())
        share.weight = terms.weight
        if not share.num_rows:
            share.tag = max(share.tag, self._virtual.get(terms.priority, 0.0))
        return Claim(share, terms.priority)

    def charge(self, place: Place, tokens: int, *, in_order: bool) -> None:
        """A row of so many tokens was taken from its place. Unless that was in order, nobody else's place changes: what
        fills a gap, or goes for its age, may be far ahead of where the others are."""
        share = place.share
        if in_order:
            self._virtual[place.priority] = max(share.tag, self._virtual.get(place.priority, 0.0))
            share.virtual = max(share.virtual, place.tag + tokens)
        share.tag += tokens / share.weight

    def forget(self) -> None:
        """Nobody waits: who had how much does not matter to whoever comes."""
        self._shares.clear()
        self._virtual.clear()

    def ahead_of(self, terms: Terms, tokens: float) -> float:
        """Tokens that are computed before a new request of so many, about: all of higher priorities; those of its own
        account; and what other accounts are given, by weight, while its own is given these."""
        own = self._own(terms)
        ahead = own.ahead_of(tokens)
        per_weight = (ahead + tokens) / terms.weight
        for priority, share in self._others(terms):
            if priority > terms.priority:
                ahead += share.num_tokens
            elif priority == terms.priority:
                ahead += min(share.num_tokens, per_weight * share.weight)
        return ahead

    def is_above_its_part(self, terms: Terms, tokens: int, limit: int) -> bool:
        """Whether its account would have more waiting than its part, by weight among all that wait, of so many tokens.
        One request of each is always within it."""
        own = self._own(terms)
        others = sum(share.weight for _, share in self._others(terms) if share.num_rows)
        part = limit * terms.weight / (terms.weight + others)
        return own.num_rows > 0 and own.num_tokens + tokens > part

    def _own(self, terms: Terms) -> Share:
        return self._shares.get((terms.priority, terms.account)) or Share()

    def _others(self, terms: Terms) -> Iterator[tuple[int, Share]]:
        key = terms.priority, terms.account
        return ((found[0], share) for found, share in self._shares.items() if found != key)
