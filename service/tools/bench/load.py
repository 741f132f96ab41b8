"""Load generation: the requests of each task, and the two ways to send them.

Closed loop: a fixed number of clients, each of which sends its next request when the last one is answered. Open loop:
requests are sent at random moments (Poisson) whatever the server does, and latency counts from the scheduled moment, so
that a stall shows in every request that it delays.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Generic, Literal, Protocol, TypeVar

from service.tasks.mrc import Reading
from service.tools.bench.client import Client
from service.tools.bench.report import Sample, Window
from service.tools.bench.texts import Corpus

NEWS = ["财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐"]
REVIEWS = ["这是一条差评", "这是一条好评"]


@dataclass(frozen=True, slots=True)
class Request:
    task: str
    path: str
    body: bytes
    num_inputs: int


T = TypeVar("T")


class Deck(Generic[T]):
    """Items in a random order, dealt again from the start when all have been dealt."""

    def __init__(self, items: Sequence[T], rng: random.Random) -> None:
        self._items = cycle(rng.sample(items, len(items)))

    def deal(self, num: int) -> list[T]:
        return list(islice(self._items, num))


@dataclass(frozen=True, slots=True)
class Material:
    """Texts and readings of the requests of one task."""

    texts: Deck[str]
    readings: Deck[Reading]
    rng: random.Random


def requests_of(corpus: Corpus, task: str, num_inputs: int, model: str | None, rng: random.Random) -> Iterator[Request]:
    """An endless stream of requests of one task."""
    path, body_of = BODIES[task]
    common = {} if model is None else {"model": model}
    material = Material(Deck(corpus.texts, rng), Deck(corpus.readings, rng), rng)

    def request() -> Request:
        body = body_of(material, num_inputs) | common
        return Request(task, path, json.dumps(body, ensure_ascii=False).encode(), num_inputs)

    return iter(request, None)


def mixed_requests(
    corpus: Corpus, mix: Mapping[str, float], num_inputs: int, model: str | None, seed: int
) -> Iterator[Request]:
    """An endless stream of requests, tasks drawn by weight. Texts are shuffled here, before the clock starts; a body is
    made when the stream reaches it, which takes a few microseconds."""
    rng = random.Random(seed)
    streams = {task: requests_of(corpus, task, num_inputs, model, random.Random(f"{seed} {task}")) for task in mix}
    tasks, weights = list(mix), list(mix.values())
    return iter(lambda: next(streams[rng.choices(tasks, weights)[0]]), None)


def parse_mix(text: str) -> dict[str, float]:
    """`TASK=WEIGHT,...`, a weight defaults to 1. ValueError for an unknown task, or without a weight above zero."""
    mix = {name: float(weight or 1) for name, _, weight in (part.partition("=") for part in text.split(","))}
    if not set(mix) <= set(BODIES) or min(mix.values()) < 0 or not sum(mix.values()):
        raise ValueError(f"{text!r}: wanted TASK=WEIGHT,... of {', '.join(BODIES)}")
    return {task: weight for task, weight in mix.items() if weight}


def _zero_shot(material: Material, num_inputs: int) -> dict[str, Any]:
    labels, question = material.rng.choice([(NEWS, "下面新闻属于哪一个类别？"), (REVIEWS, None)])
    body: dict[str, Any] = {"inputs": material.texts.deal(num_inputs), "labels": labels}
    return body if question is None else body | {"question": question}


def _texts(material: Material, num_inputs: int) -> dict[str, Any]:
    return {"inputs": material.texts.deal(num_inputs)}


def _pairs(material: Material, num_inputs: int) -> dict[str, Any]:
    return {"inputs": [material.texts.deal(2) for _ in range(num_inputs)]}


def _mrc(material: Material, num_inputs: int) -> dict[str, Any]:
    dealt = material.readings.deal(num_inputs)
    return {"inputs": [{"passage": r.passage, "question": r.question, "choices": r.choices} for r in dealt]}


def _masked(material: Material, num_inputs: int) -> dict[str, Any]:
    """Replaces one character of each text by [MASK], early enough to survive truncation."""
    texts = material.texts.deal(num_inputs)
    places = [material.rng.randrange(min(len(text), 256)) for text in texts]
    return {"inputs": [f"{text[:at]}[MASK]{text[at + 1 :]}" for text, at in zip(texts, places, strict=True)]}


Body = Callable[[Material, int], dict[str, Any]]
BODIES: Mapping[str, tuple[str, Body]] = {
    "zero-shot": ("/v1/classify", _zero_shot),
    "classify": ("/v1/classify", _texts),
    "similarity": ("/v1/similarity", _pairs),
    "mrc": ("/v1/mrc", _mrc),
    "nli": ("/v1/nli", _pairs),
    "fill-mask": ("/v1/fill-mask", _masked),
    "embed": ("/v1/embed", _texts),
}


Tick = Callable[[float, int], object]
"""Called with the seconds measured so far and the number of requests that have ended in them."""


@dataclass(frozen=True, slots=True)
class Load:
    """`level` is the number of clients (closed loop) or of requests per second (open loop)."""

    kind: Literal["concurrency", "rate"]
    level: float

    @property
    def name(self) -> str:
        return f"{self.kind} {self.level:g}"


class Observer(Protocol):
    """Called at the start and at the end of the measured window."""

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


class Run:
    """One measurement. `samples` has every request, also those of the warm-up and those that end after the window:
    `report.summarize` decides which of them count for what."""

    def __init__(
        self,
        client: Client,
        requests: Iterator[Request],
        timeout_s: float,
        tick: Tick,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._requests = requests
        self._timeout_s = timeout_s
        self._tick = tick
        self._clock = clock
        self._num_ended = 0
        self.samples: list[Sample] = []
        self.window = Window(0.0, math.inf)

    async def measure(
        self, load: Load, warm_up_s: float, duration_s: float, observer: Observer, rng: random.Random
    ) -> None:
        from_s = self._clock() + warm_up_s
        self.window = Window(from_s, from_s + duration_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._observe(observer))
            group.create_task(self.open(load.level, rng) if load.kind == "rate" else self.closed(int(load.level)))

    async def _observe(self, observer: Observer) -> None:
        await asyncio.sleep(self.window.from_s - self._clock())
        await observer.begin()
        await asyncio.sleep(self.window.until_s - self._clock())
        await observer.end()

    async def closed(self, concurrency: int) -> None:
        async def client() -> None:
            while (now := self._clock()) < self.window.until_s:
                await self.send(now)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open(self, rate: float, rng: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            due = self._clock()
            while due < self.window.until_s:
                await asyncio.sleep(max(0.0, due - self._clock()))
                group.create_task(self.send(due))
                due += rng.expovariate(rate)

    async def send(self, started: float) -> None:
        """`started` is the scheduled moment: a delay before this call counts as latency."""
        request = next(self._requests)
        outcome, num_tokens = await self._outcome(request)
        ended = self._clock()
        sample = Sample(request.task, started, ended - started, outcome, request.num_inputs, num_tokens)
        self.samples.append(sample)
        if self.window.holds(ended):
            self._num_ended += 1
            self._tick(ended - self.window.from_s, self._num_ended)

    async def _outcome(self, request: Request) -> tuple[str, int]:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send("POST", request.path, request.body)
        except TimeoutError:
            return "timeout", 0
        except OSError:
            return "connection", 0
        if response.status != 200:
            return str(response.status), 0
        return "200", json.loads(response.body)["usage"]["tokens"]
