"""Requests: the same for the same seed, and a mix in its weights."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest

from service.bench.corpus import Corpus
from service.bench.requests import BODIES, endless, make_requests, parse_mix
from service.bench.synthetic import Lengths, make_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(Lengths.parse("fixed:20"), 1)


@pytest.mark.parametrize("task", BODIES)
def test_requests_are_the_same_for_the_same_seed(corpus: Corpus, task: str) -> None:
    first, again, other = (make_requests(corpus, task, 5, 3, "mini", random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    body = json.loads(first[0].body)
    assert (len(body["inputs"]), body["model"]) == (3, "mini")


def test_a_mix_comes_in_its_weights(corpus: Corpus) -> None:
    drawn = islice(endless(corpus, {"embed": 3.0, "mrc": 1.0}, 1, None, seed=1), 4000)
    counts = Counter(request.task for request in drawn)
    assert counts["embed"] / counts["mrc"] == pytest.approx(3, rel=0.15)


def test_a_request_comes_again_only_when_all_have_been_sent(corpus: Corpus) -> None:
    bodies = [request.body for request in islice(endless(corpus, {"similarity": 1.0}, 1, None, seed=1), 2000)]
    assert bodies[:1000] == bodies[1000:]
    assert len(set(bodies)) == 1000


def test_every_masked_text_has_its_mask(corpus: Corpus) -> None:
    requests = make_requests(corpus, "fill-mask", 20, 1, None, random.Random(1))
    assert all(request.body.count(b"[MASK]") == 1 for request in requests)


def test_a_mix_is_weights_of_known_tasks() -> None:
    assert parse_mix("mrc,similarity=0,zero-shot=2.5") == {"mrc": 1.0, "zero-shot": 2.5}
    for wrong in ("nothing=1", "mrc=0", "mrc=-1"):
        with pytest.raises(ValueError, match="wanted TASK=WEIGHT"):
            parse_mix(wrong)
