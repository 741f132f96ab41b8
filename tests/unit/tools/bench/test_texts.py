"""Texts read from files, and generated texts with a distribution of lengths."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median

import pytest

from service.errors import DatasetError
from service.tools.bench.texts import COMMON, MAX_CHARACTERS, Corpus, Lengths, make_corpus, make_text

TITLES = ["国足今晚出战世预赛", "央行宣布下调存款利率", "新款手机今日正式发布"]
C3 = [
    [
        ["男：去哪儿？", "女：去图书馆看一会儿书。"],
        [{"question": "女的去哪儿？", "choice": ["图书馆", "超市", "超市"], "answer": "图书馆"}],
        "1",
    ]
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = (json.dumps({"id": 1, "sentence": title, "label": "新闻"}, ensure_ascii=False) for title in TITLES)
    (tmp_path / "titles.json").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "c3.json").write_text(json.dumps(C3, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("短\t今天天气怎么样啊\t1\n", encoding="utf-8")
    (tmp_path / "english.csv").write_text("a,b\nno Chinese here,1\n", encoding="utf-8")
    return tmp_path


def test_read_takes_the_longest_chinese_strings_and_readings_of_c3(data: Path) -> None:
    corpus = Corpus.read(data)
    assert set(TITLES) | {"今天天气怎么样啊"} <= set(corpus.texts)
    assert "no Chinese here" not in corpus.texts
    (reading,) = corpus.readings
    assert reading.passage == "男：去哪儿？\n女：去图书馆看一会儿书。"
    assert reading.choices == ("图书馆", "超市")


def test_a_line_separator_inside_a_text_does_not_end_the_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "今天天气\u2028非常好"}\n{"text": "明天下不下雨"}\n', encoding="utf-8")
    assert Corpus.read(tmp_path).texts == ["今天天气\u2028非常好", "明天下不下雨"]


def test_the_error_of_a_malformed_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}\n{", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.json:2: neither JSON nor JSON lines"):
        Corpus.read(tmp_path / "a.json")


def test_texts_without_chinese_are_refused(data: Path) -> None:
    with pytest.raises(DatasetError, match="no Chinese text"):
        Corpus.read(data / "english.csv")


@pytest.mark.parametrize("count", [96, 4096])
def test_lognormal_has_the_specified_median_and_tail(count: int) -> None:
    drawn = sorted(Lengths.parse("lognormal:31:152").draw(count, random.Random(1)))
    assert median(drawn) == pytest.approx(31, abs=1)
    assert drawn[round(0.95 * count)] == pytest.approx(152, rel=0.1)
    assert all(1 <= length <= MAX_CHARACTERS for length in drawn)


def test_two_draws_have_nearly_the_same_total_length() -> None:
    """Otherwise the result of a run of a hundred requests would depend on its seed."""
    lengths = Lengths.parse("lognormal:31:152")
    first, second = (sum(lengths.draw(96, random.Random(seed))) for seed in (1, 2))
    assert first == pytest.approx(second, rel=0.05)


def test_uniform_and_fixed_draw_lengths_in_range() -> None:
    drawn = Lengths.parse("uniform:10:20").draw(100, random.Random(1))
    assert (min(drawn), max(drawn)) == (10, 20)
    assert set(Lengths.parse("fixed:32").draw(9, random.Random(1))) == {32}


@pytest.mark.parametrize("text", ["lognormal", "lognormal:31", "lognormal:9:3", "fixed:0", "fixed:x", "normal:1:2", ""])
def test_other_distributions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted lognormal:MEDIAN:P95"):
        Lengths.parse(text)


def test_make_text_gives_the_number_of_chinese_characters() -> None:
    text = make_text(500, random.Random(1))
    assert len(text) == 500
    assert set(text) <= set(COMMON)
    assert all("\u4e00" <= character <= "\u9fff" for character in COMMON)


def test_a_corpus_is_determined_by_its_seed() -> None:
    lengths = Lengths.parse("fixed:20")
    assert make_corpus(lengths, 1) == make_corpus(lengths, 1)
    assert make_corpus(lengths, 1).texts != make_corpus(lengths, 2).texts
    assert all(1 < len(reading.choices) <= 4 for reading in make_corpus(lengths, 1).readings)
