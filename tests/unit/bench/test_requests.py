"""Requests: the same for the same seed, and a mix in its weights."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest

from service.bench.corpus import Corpus
from service.bench.requests import BODIES, Request, endless, parse_mix, requests_of
from service.bench.synthetic import Lengths, make_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(Lengths.parse("fixed:20"), 1)


def first_of(corpus: Corpus, task: str, num: int, num_inputs: int, seed: int = 1) -> list[Request]:
    return list(islice(requests_of(corpus, task, num_inputs, "mini", random.Random(seed)), num))


@pytest.mark.parametrize("task", BODIES)
def test_requests_are_the_same_for_the_same_seed(corpus: Corpus, task: str) -> None:
    first, again, other = (first_of(corpus, task, 5, 3, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    body = json.loads(first[0].body)
    assert (len(body["inputs"]), body["model"]) == (3, "mini")


def test_a_mix_comes_in_its_weights(corpus: Corpus) -> None:
    drawn = islice(endless(corpus, {"embed": 3.0, "mrc": 1.0}, 1, None, seed=1), 4000)
    counts = Counter(request.task for request in drawn)
    assert counts["embed"] / counts["mrc"] == pytest.approx(3, rel=0.15)


def test_a_text_comes_again_only_when_all_have_been_sent() -> None:
    corpus = Corpus("", [f"第{number}条" for number in range(100)], [])
    drawn = islice(endless(corpus, {"embed": 1.0}, 5, None, seed=1), 40)
    texts = [text for request in drawn for text in json.loads(request.body)["inputs"]]
    assert sorted(texts[:100]) == sorted(corpus.texts)
    assert texts[:100] != corpus.texts
    assert texts[100:] == texts[:100]


def test_rows_in_flight_at_a_high_load_are_all_different() -> None:
    corpus = make_corpus(Lengths.parse("lognormal:31:152"), 1)
    drawn = islice(endless(corpus, {"similarity": 1.0}, 8, None, seed=1), 256)
    pairs = [tuple(pair) for request in drawn for pair in json.loads(request.body)["inputs"]]
    assert len(set(pairs)) == len(pairs) == 256 * 8


def test_every_masked_text_has_its_mask(corpus: Corpus) -> None:
    requests = first_of(corpus, "fill-mask", 20, 1)
    assert all(request.body.count(b"[MASK]") == 1 for request in requests)


def test_a_mix_is_weights_of_known_tasks() -> None:
    assert parse_mix("mrc,similarity=0,zero-shot=2.5") == {"mrc": 1.0, "zero-shot": 2.5}
    for wrong in ("nothing=1", "mrc=0", "mrc=-1"):
        with pytest.raises(ValueError, match="wanted TASK=WEIGHT"):
            parse_mix(wrong)
