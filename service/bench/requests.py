"""Request bodies made of a corpus, task by task, and an endless mix of them.

Knows the paths and fields of the native API; opens no connection.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from service.bench.corpus import Corpus

REQUESTS_PER_TASK = 1000
NEWS = ["财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐"]
REVIEWS = ["这是一条差评", "这是一条好评"]


@dataclass(frozen=True, slots=True)
class Request:
    task: str
    path: str
    body: bytes
    num_inputs: int


def make_requests(
    corpus: Corpus, task: str, num: int, num_inputs: int, model: str | None, rng: random.Random
) -> list[Request]:
    """`num` requests of one task, to be sent round and round."""
    path, body_of = BODIES[task]
    common = {} if model is None else {"model": model}
    bodies = (body_of(corpus, num_inputs, rng) | common for _ in range(num))
    return [Request(task, path, json.dumps(body, ensure_ascii=False).encode(), num_inputs) for body in bodies]


def endless(
    corpus: Corpus, mix: Mapping[str, float], num_inputs: int, model: str | None, seed: int
) -> Iterator[Request]:
    """Requests for ever, task by weight; bodies are made at once, before the clock runs. A request comes again when all
    of its task have been sent: the same one twice in flight would be computed once."""
    rng = random.Random(seed)
    pools = {task: cycle(make_requests(corpus, task, REQUESTS_PER_TASK, num_inputs, model, rng)) for task in mix}
    tasks, weights = list(mix), list(mix.values())

    def draw() -> Iterator[Request]:
        while True:
            yield next(pools[rng.choices(tasks, weights)[0]])

    return draw()


def parse_mix(text: str) -> dict[str, float]:
    """`TASK=WEIGHT,...`; a weight may be left out. ValueError for an unknown task or weights that make no mix."""
    mix = {name: float(weight or 1) for name, _, weight in (part.partition("=") for part in text.split(","))}
    if not set(mix) <= set(BODIES) or min(mix.values()) < 0 or not sum(mix.values()):
        raise ValueError(f"{text!r}: wanted TASK=WEIGHT,... of {', '.join(BODIES)}")
    return {task: weight for task, weight in mix.items() if weight}


def _zero_shot(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    labels, question = rng.choice([(NEWS, "下面新闻属于哪一个类别？"), (REVIEWS, None)])
    body: dict[str, Any] = {"inputs": rng.choices(corpus.texts, k=num_inputs), "labels": labels}
    return body if question is None else body | {"question": question}


def _texts(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    return {"inputs": rng.choices(corpus.texts, k=num_inputs)}


def _pairs(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    return {"inputs": [rng.choices(corpus.texts, k=2) for _ in range(num_inputs)]}


def _mrc(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    chosen = rng.choices(corpus.readings, k=num_inputs)
    return {"inputs": [{"passage": r.passage, "question": r.question, "choices": r.choices} for r in chosen]}


def _masked(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    """One character of each text is hidden, early enough to be read of a long one too."""
    texts = rng.choices(corpus.texts, k=num_inputs)
    places = [rng.randrange(min(len(text), 256)) for text in texts]
    return {"inputs": [f"{text[:at]}[MASK]{text[at + 1 :]}" for text, at in zip(texts, places, strict=True)]}


Body = Callable[[Corpus, int, random.Random], dict[str, Any]]
BODIES: Mapping[str, tuple[str, Body]] = {
    "zero-shot": ("/v1/classify", _zero_shot),
    "classify": ("/v1/classify", _texts),
    "similarity": ("/v1/similarity", _pairs),
    "mrc": ("/v1/mrc", _mrc),
    "nli": ("/v1/nli", _pairs),
    "fill-mask": ("/v1/fill-mask", _masked),
    "embed": ("/v1/embed", _texts),
}
