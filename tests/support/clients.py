"""Clients in a closed loop that compare every answer with the first one to the same question.

`learn` sends every question once while the server is healthy; later answers are compared with those.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from types import TracebackType
from typing import Any

import httpx

from service.tools.bench.load import BODIES, requests_of
from service.tools.bench.texts import Lengths, make_corpus

MIX = ("zero-shot", "similarity", "mrc", "nli", "embed")
LENGTHS = "uniform:8:80"
"""Characters of a text, fewer than in the rows that are meant to fail."""

TOLERANCE = 0.05
"""Relative to the largest number of an answer: rounding differs with the rows that share a batch."""

GRACE_S = 2.0
"""An answer that comes later than this after its deadline counts as late."""

PAUSE_S = 1.0
"""Wait after a refusal."""

RIGHT, WRONG, LATE, NONE = "200", "200 wrong", "late", "no answer"
LOST = (WRONG, LATE, NONE)
"""Outcomes that must not happen to a request that was accepted."""

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Question:
    task: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its outcome: 200, `200 wrong`, `late`, `no answer`, or status and code of an error."""

    task: str
    sent_s: float
    ended_s: float
    outcome: str

    @property
    def is_lost(self) -> bool:
        return self.outcome in LOST


def questions(num_of_each: int, mix: Sequence[str] = MIX, seed: int = 1) -> list[Question]:
    """Distinct questions, the tasks in turn; the same seed makes the same questions."""
    rng = random.Random(seed)
    corpus = make_corpus(Lengths.parse(LENGTHS), seed)
    assert set(mix) <= set(BODIES)
    made = [islice(requests_of(corpus, task, 1, None, rng), num_of_each) for task in mix]
    return [Question(each.task, each.path, each.body) for turn in zip(*made, strict=True) for each in turn]


class Clients:
    """Use as a context. `exchanges` are those since the last `taken`, in the order in which they ended."""

    def __init__(self, url: str, questions: Sequence[Question], num_clients: int, deadline_s: float = 30.0) -> None:
        self.num = num_clients
        self.exchanges: list[Exchange] = []
        self._questions = questions
        self._right: dict[Question, Numbers] = {}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"X-Request-Timeout-Ms": str(round(1000 * deadline_s))},
            limits=httpx.Limits(max_connections=None),  # no queue in the client
            timeout=deadline_s + GRACE_S,
            trust_env=False,
        )

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def learn(self) -> None:
        """Sends each question once to a healthy server; httpx.HTTPError for any answer but 200."""
        for question in self._questions:
            reply = await self._http.post(question.path, content=question.body)
            self._right[question] = numbers(reply.raise_for_status().json())

    async def ask_until(self, is_over: asyncio.Event) -> None:
        """Runs all clients concurrently; returns when each has received its last answer."""
        source = cycle(self._questions)

        async def client() -> None:
            while not is_over.is_set():
                exchange = await self.ask(next(source))
                if exchange.outcome.startswith(("429", "503")):
                    await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(client() for _ in range(self.num)))

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """The clients send requests inside the block; at its end each has received its last answer."""
        is_over = asyncio.Event()
        asking = asyncio.create_task(self.ask_until(is_over))
        try:
            yield
        finally:
            is_over.set()
            await asking

    def taken(self) -> list[Exchange]:
        """The exchanges since the last call."""
        taken, self.exchanges = self.exchanges, []
        return taken

    async def ask(self, question: Question) -> Exchange:
        sent_s = time.monotonic()
        outcome = await self._outcome(question)
        exchange = Exchange(question.task, sent_s, time.monotonic(), outcome)
        self.exchanges.append(exchange)
        return exchange

    async def _outcome(self, question: Question) -> str:
        try:
            reply = await self._http.post(question.path, content=question.body)
        except httpx.TimeoutException:
            return LATE
        except httpx.TransportError:
            return NONE
        if reply.status_code != 200:
            return _refusal(reply)
        expected = self._right.get(question)
        return RIGHT if expected is None or agree(numbers(reply.json()), expected) else WRONG


def _refusal(reply: httpx.Response) -> str:
    """Status and code; a 429 or 503 without Retry-After is marked."""
    try:
        code = reply.json()["code"]
    except (json.JSONDecodeError, KeyError):
        code = "of a proxy"
    lacks = reply.status_code in (429, 503) and "retry-after" not in reply.headers
    return f"{reply.status_code} {code}" + (", no Retry-After" if lacks else "")


def numbers(reply: Mapping[str, Any]) -> Numbers:
    """The numbers of a reply by name; the scores of ranked labels are named by their label."""
    return dict(_named("", reply["results"]))


def _named(name: str, value: Any) -> Iterator[tuple[str, float]]:
    match value:
        case {"label": str(label), "score": float(score), **rest} if not rest:
            yield f"{name}.{label}", score
        case {"scores": scores}:
            for index, each in enumerate(scores):
                yield from _named(name if isinstance(each, dict) else f"{name}.{index}", each)
        case {"score": float(score)}:
            yield name, score
        case {"embedding": vector}:
            yield from _named(name, vector)
        case list():
            for index, each in enumerate(value):
                yield from _named(f"{name}.{index}", each)
        case float():
            yield name, value


def agree(found: Numbers, expected: Numbers) -> bool:
    """The same names, and numbers that differ by rounding only."""
    if found.keys() != expected.keys():
        return False
    most = TOLERANCE * max(map(abs, expected.values()))
    return all(abs(found[name] - value) <= most for name, value in expected.items())


def counted(exchanges: Iterable[Exchange]) -> dict[str, int]:
    """The number of exchanges by outcome."""
    return dict(sorted(Counter(each.outcome for each in exchanges).items()))
