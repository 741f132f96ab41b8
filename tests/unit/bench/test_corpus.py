"""Real texts: what is taken out of which file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.bench.corpus import Corpus

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


def test_texts_are_the_longest_chinese_strings_and_c3_gives_readings(data: Path) -> None:
    corpus = Corpus.read(data)
    assert set(TITLES) | {"今天天气怎么样啊"} <= set(corpus.texts)
    assert "no Chinese here" not in corpus.texts
    (reading,) = corpus.readings
    assert reading.passage == "男：去哪儿？\n女：去图书馆看一会儿书。"
    assert reading.choices == ("图书馆", "超市")


def test_a_line_separator_inside_a_text_does_not_end_the_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "今天天气\u2028非常好"}\n{"text": "明天下不下雨"}\n', encoding="utf-8")
    assert Corpus.read(tmp_path).texts == ["今天天气\u2028非常好", "明天下不下雨"]


def test_a_file_that_is_not_what_it_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}\n{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json: neither JSON nor JSON lines"):
        Corpus.read(tmp_path / "a.json")


def test_texts_without_chinese_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="no Chinese text"):
        Corpus.read(data / "english.csv")
