"""Made-up texts: their lengths follow the distribution, and the seed is all that they depend on."""

from __future__ import annotations

import random
from statistics import median

import pytest

from service.bench.synthetic import COMMON, MAX_CHARACTERS, Lengths, make_corpus, make_text


@pytest.mark.parametrize("count", [96, 4096])
def test_lognormal_has_the_median_and_the_tail_it_was_asked_for(count: int) -> None:
    drawn = sorted(Lengths.parse("lognormal:31:152").draw(count, random.Random(1)))
    assert median(drawn) == pytest.approx(31, abs=1)
    assert drawn[round(0.95 * count)] == pytest.approx(152, rel=0.1)
    assert all(1 <= length <= MAX_CHARACTERS for length in drawn)


def test_two_draws_are_equally_long_in_all() -> None:
    """Else a run of a hundred requests would measure its luck."""
    lengths = Lengths.parse("lognormal:31:152")
    first, second = (sum(lengths.draw(96, random.Random(seed))) for seed in (1, 2))
    assert first == pytest.approx(second, rel=0.05)


def test_uniform_and_fixed() -> None:
    drawn = Lengths.parse("uniform:10:20").draw(100, random.Random(1))
    assert (min(drawn), max(drawn)) == (10, 20)
    assert set(Lengths.parse("fixed:32").draw(9, random.Random(1))) == {32}


@pytest.mark.parametrize("text", ["lognormal", "lognormal:31", "lognormal:9:3", "fixed:0", "fixed:x", "normal:1:2", ""])
def test_other_distributions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted lognormal:MEDIAN:P95"):
        Lengths.parse(text)


def test_a_text_is_that_many_chinese_characters() -> None:
    text = make_text(500, random.Random(1))
    assert len(text) == 500
    assert set(text) <= set(COMMON)
    assert all("\u4e00" <= character <= "\u9fff" for character in COMMON)


def test_a_corpus_is_that_of_its_seed() -> None:
    lengths = Lengths.parse("fixed:20")
    assert make_corpus(lengths, 1) == make_corpus(lengths, 1)
    assert make_corpus(lengths, 1).texts != make_corpus(lengths, 2).texts
    assert all(1 < len(reading.choices) <= 4 for reading in make_corpus(lengths, 1).readings)
