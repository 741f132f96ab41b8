"""Request bodies made of a corpus, task by task, and an endless mix of them.

Texts are dealt: none comes again before all have been sent. The same row twice in flight would be computed once, and a
result cache would answer what it has seen.

Knows the paths and fields of the native API; opens no connection.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Generic, TypeVar

from service.bench.corpus import Corpus
from service.tasks.mrc import Reading

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
    """Cards in a random order, dealt round and round."""

    def __init__(self, cards: Sequence[T], rng: random.Random) -> None:
        self._cards = cycle(rng.sample(cards, len(cards)))

    def deal(self, num: int) -> list[T]:
        return list(islice(self._cards, num))


@dataclass(frozen=True, slots=True)
class Table:
    """What the requests of one task are made of."""

    texts: Deck[str]
    readings: Deck[Reading]
    rng: random.Random


def requests_of(corpus: Corpus, task: str, num_inputs: int, model: str | None, rng: random.Random) -> Iterator[Request]:
    """Requests of one task, for ever."""
    path, body_of = BODIES[task]
    common = {} if model is None else {"model": model}
    table = Table(Deck(corpus.texts, rng), Deck(corpus.readings, rng), rng)

    def request() -> Request:
        body = body_of(table, num_inputs) | common
        return Request(task, path, json.dumps(body, ensure_ascii=False).encode(), num_inputs)

    return iter(request, None)


def endless(
    corpus: Corpus, mix: Mapping[str, float], num_inputs: int, model: str | None, seed: int
) -> Iterator[Request]:
    """Requests for ever, task by weight. Texts are shuffled here, before the clock runs; a body is made when it is
    asked for, which takes some microseconds."""
    rng = random.Random(seed)
    tables = {task: requests_of(corpus, task, num_inputs, model, random.Random(f"{seed} {task}")) for task in mix}
    tasks, weights = list(mix), list(mix.values())
    return iter(lambda: next(tables[rng.choices(tasks, weights)[0]]), None)


def parse_mix(text: str) -> dict[str, float]:
    """`TASK=WEIGHT,...`; a weight may be left out. ValueError for an unknown task or weights that make no mix."""
    mix = {name: float(weight or 1) for name, _, weight in (part.partition("=") for part in text.split(","))}
    if not set(mix) <= set(BODIES) or min(mix.values()) < 0 or not sum(mix.values()):
        raise ValueError(f"{text!r}: wanted TASK=WEIGHT,... of {', '.join(BODIES)}")
    return {task: weight for task, weight in mix.items() if weight}


def _zero_shot(table: Table, num_inputs: int) -> dict[str, Any]:
    labels, question = table.rng.choice([(NEWS, "下面新闻属于哪一个类别？"), (REVIEWS, None)])
    body: dict[str, Any] = {"inputs": table.texts.deal(num_inputs), "labels": labels}
    return body if question is None else body | {"question": question}


def _texts(table: Table, num_inputs: int) -> dict[str, Any]:
    return {"inputs": table.texts.deal(num_inputs)}


def _pairs(table: Table, num_inputs: int) -> dict[str, Any]:
    return {"inputs": [table.texts.deal(2) for _ in range(num_inputs)]}


def _mrc(table: Table, num_inputs: int) -> dict[str, Any]:
    dealt = table.readings.deal(num_inputs)
    return {"inputs": [{"passage": r.passage, "question": r.question, "choices": r.choices} for r in dealt]}


def _masked(table: Table, num_inputs: int) -> dict[str, Any]:
    """One character of each text is hidden, early enough to be read of a long one too."""
    texts = table.texts.deal(num_inputs)
    places = [table.rng.randrange(min(len(text), 256)) for text in texts]
    return {"inputs": [f"{text[:at]}[MASK]{text[at + 1 :]}" for text, at in zip(texts, places, strict=True)]}


Body = Callable[[Table, int], dict[str, Any]]
BODIES: Mapping[str, tuple[str, Body]] = {
    "zero-shot": ("/v1/classify", _zero_shot),
    "classify": ("/v1/classify", _texts),
    "similarity": ("/v1/similarity", _pairs),
    "mrc": ("/v1/mrc", _mrc),
    "nli": ("/v1/nli", _pairs),
    "fill-mask": ("/v1/fill-mask", _masked),
    "embed": ("/v1/embed", _texts),
}
