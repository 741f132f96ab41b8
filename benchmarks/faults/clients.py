"""Clients that know the right answers: each asks its next question when its last is answered, and notes what came.

They ask everything once while nothing is wrong, and compare later answers with those. Know the native HTTP API by what
its replies hold, and nothing of what is done to the server meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from types import TracebackType
from typing import Any

import httpx

from service.tools.bench.load import BODIES, requests_of
from service.tools.bench.texts import Lengths, make_corpus

MIX = ("zero-shot", "similarity", "mrc", "nli", "embed")
LENGTHS = "uniform:8:80"
"""Characters of a text: longer rows are left to those that are to fail."""

TOLERANCE = 0.05
"""Of the largest number in an answer: what a number may differ by when its row was computed in other company."""

GRACE_S = 2.0
"""An answer that comes later than so long after its deadline is none."""

PAUSE_S = 1.0
"""After a refusal; who heeds Retry-After waits longer."""

RIGHT, WRONG, LATE, NONE = "200", "200 wrong", "late", "no answer"
LOST = (WRONG, LATE, NONE)
"""What the service promises never to do to a request that it accepted."""

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Question:
    task: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One question and what came of it: 200, `200 wrong`, `late`, `no answer`, or status and code of an error."""

    task: str
    sent_s: float
    ended_s: float
    outcome: str

    @property
    def is_lost(self) -> bool:
        return self.outcome in LOST


def questions(num_of_each: int, mix: Sequence[str] = MIX, seed: int = 1) -> list[Question]:
    """Different ones, the tasks in turn; the same seed makes the same questions."""
    rng = random.Random(seed)
    corpus = make_corpus(Lengths.parse(LENGTHS), seed)
    assert set(mix) <= set(BODIES)
    made = [islice(requests_of(corpus, task, 1, None, rng), num_of_each) for task in mix]
    return [Question(each.task, each.path, each.body) for turn in zip(*made, strict=True) for each in turn]


class Clients:
    """Use as a context. `exchanges` are those that were not taken yet, in the order of their ends."""

    def __init__(self, url: str, asked: Sequence[Question], num_clients: int, deadline_s: float = 30.0) -> None:
        self.num = num_clients
        self.exchanges: list[RequestContext] = []
        self._asked = asked
        self._deadline_s = deadline_s
        self._right: dict[Question, Numbers] = {}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"X-Request-Timeout-Ms": str(round(1000 * deadline_s))},
            limits=httpx.Limits(max_connections=None),  # nobody waits here
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
        """Asks each question once, when nothing is wrong; httpx.HTTPError when a right answer does not come."""
        for question in self._asked:
            reply = await self._http.post(question.path, content=question.body)
            self._right[question] = numbers(reply.raise_for_status().json())

    async def ask_until(self, is_over: asyncio.Event) -> None:
        """All clients at once; each has its last question answered before this returns."""
        source = cycle(self._asked)

        async def client() -> None:
            while not is_over.is_set():
                context = await self.ask(next(source))
                if context.outcome.startswith(("429", "503")):
                    await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(client() for _ in range(self.num)))

    def taken(self) -> list[RequestContext]:
        """The exchanges so far, which are not counted again."""
        fits, self.exchanges = self.exchanges, []
        return fits

    async def ask(self, question: Question) -> RequestContext:
        sent_s = time.monotonic()
        outcome = await self._outcome(question)
        context = RequestContext(question.task, sent_s, time.monotonic(), outcome)
        self.exchanges.append(context)
        return context

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
    """A refusal that may be retried has to say when."""
    try:
        code = reply.json()["code"]
    except (json.JSONDecodeError, KeyError):
        code = "of a proxy"
    lacks = reply.status_code in (429, 503) and "retry-after" not in reply.headers
    return f"{reply.status_code} {code}" + (", no Retry-After" if lacks else "")


def numbers(reply: Mapping[str, Any]) -> Numbers:
    """What a reply says in numbers, each under a name; what is told best first is named by its label."""
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
    """The same names, and numbers that differ by no more than arithmetic makes them."""
    if found.keys() != expected.keys():
        return False
    most = TOLERANCE * max(map(abs, expected.values()))
    return all(abs(found[name] - value) <= most for name, value in expected.items())


def counted(exchanges: Iterable[RequestContext]) -> dict[str, int]:
    """How often each outcome, by outcome."""
    return dict(sorted(Counter(each.outcome for each in exchanges).items()))
