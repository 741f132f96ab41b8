"""Errors for missing data sets, and for mistakes in a file with the number of the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import DatasetError
from service.tools.data.registry import load
from tests.unit.tools.data.layouts import Make, c3, json_document, json_lines, lines, tabs, text, write


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^no data set 'news'; known: tnews, thucnews, eprstmt, "):
        load("news", tmp_path)


def test_an_unknown_half_of_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^split 'dev\.third': wanted even or odd after the dot$"):
        load("tnews", tmp_path, "dev.third")


def test_the_error_of_a_missing_split_lists_the_paths(tmp_path: Path) -> None:
    json_lines(tmp_path / "tnews/dev.json", GOOD_NEWS)
    with pytest.raises(
        DatasetError, match=r"^no such data file: .*/test_public\.json or .* or .*/tnews/test\.json or "
    ):
        load("tnews", tmp_path, "test")


def test_c3_needs_both_of_its_parts(tmp_path: Path) -> None:
    json_document(tmp_path / "c3/c3-m-dev.json", [])
    with pytest.raises(DatasetError, match=r"no such data file: .*c3-d-dev\.json$"):
        load("c3", tmp_path)


GOOD_PAIR = {"sentence1": "甲", "sentence2": "乙", "label": "1"}
PAIR_WITHOUT_LABEL = {"sentence1": "甲", "sentence2": "乙"}
GOOD_NEWS = {"sentence": "标题", "label_desc": "news_car"}
CHID = {"content": "#idiom#", "candidates": ["甲", "乙"]}

MISTAKES: dict[str, tuple[str, Make, str]] = {
    "no label": ("bustm", lines("bustm/dev.json", GOOD_PAIR, PAIR_WITHOUT_LABEL), "2: has no field 'label'"),
    "no text": ("bustm", lines("bustm/dev.json", {"sentence1": "甲", "label": 1}), "1: has no field 'sentence2'"),
    "text is null": (
        "bustm",
        lines("bustm/dev.json", GOOD_PAIR | {"sentence1": None}),
        "1: field 'sentence1' is not text",
    ),
    "no record": ("tnews", lines("tnews/dev.json", GOOD_NEWS, "标题"), "2: has no field 'label_desc'"),
    "unknown class": (
        "tnews",
        lines("tnews/dev.json", GOOD_NEWS, GOOD_NEWS | {"label_desc": "news_food"}),
        "2: field 'label_desc' is 'news_food', which is none of news_story, ",
    ),
    "a class out of range": (
        "thucnews",
        tabs("thucnews/dev.txt", ("标题", "9"), ("标题", "10")),
        "2: column 2 is '10', which is none of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ),
    "a class below zero": ("thucnews", tabs("thucnews/dev.txt", ("标题", "-1")), "1: column 2 is '-1', "),
    "a missing column": ("afqmc", tabs("afqmc/dev.txt", ("甲", "乙")), "1: has no column 3"),
    "unknown sentiment": (
        "eprstmt",
        lines("eprstmt/dev.json", {"sentence": "好", "label": "Neutral"}),
        "1: field 'label' is 'Neutral', which is none of Negative, Positive",
    ),
    "an empty cell": (
        "hotel",
        text("sentiment/ChnSentiCorp_htl_all.csv", "label,review\n1,好\n,差\n"),
        "2: field 'label' is '', which is none of 0, 1",
    ),
    "a short line of CSV": (
        "hotel",
        text("sentiment/ChnSentiCorp_htl_all.csv", "label,review\n1,好\n1\n"),
        "2: field 'review' is not text",
    ),
    "no such column": (
        "shopping-category",
        text("sentiment/online_shopping_10_cats.csv", "label,review\n1,好\n"),
        "1: has no field 'cat'",
    ),
    "a short line after others": (
        "shopping-category",
        text("sentiment/online_shopping_10_cats.csv", "review,label,cat\n好,1,书籍\n好,1,书籍\n好,1\n"),
        "3: field 'cat' is not text",
    ),
    "an invalid grade": ("sts-b", tabs("sts-b/dev.txt", ("甲", "乙", "?")), "1: column 3 is not a number"),
    "unknown inference": (
        "ocnli",
        lines("ocnli/dev.json", GOOD_PAIR),
        "1: field 'label' is '1', which is none of contradiction, neutral, entailment, -",
    ),
    "an answer beyond the candidates": (
        "chid",
        lines("chid/dev.json", CHID | {"answer": 0}, CHID | {"answer": 2}),
        "2: field 'answer' is '2', which is none of 0, 1",
    ),
    "keywords that are not a list": (
        "csl",
        lines("csl/dev.json", {"abst": "摘要", "keyword": "词", "label": "1"}),
        "1: field 'keyword' is not a list",
    ),
    "no target": ("cluewsc", lines("cluewsc/dev.json", {"text": "它", "label": "true"}), "1: has no field 'target'"),
    "an answer that is not a choice": (
        "c3-m",
        c3("m", (["春天。"], []), (["春天。"], [("什么？", ["春天", "冬天"], "秋天")])),
        "2: field 'answer' is '秋天', which is none of 春天, 冬天",
    ),
    "missing questions": (
        "c3-m",
        lambda data: json_document(data / "c3/c3-m-dev.json", [[["春天。"]]]),
        "1: has no column 2",
    ),
    "questions that are not a list": (
        "c3-m",
        lambda data: json_document(data / "c3/c3-m-dev.json", [[["春天。"], None, "1"]]),
        "1: column 2 is not a list",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_by_file_and_record(tmp_path: Path, mistake: str) -> None:
    name, make, problem = MISTAKES[mistake]
    path = make(tmp_path)
    with pytest.raises(DatasetError) as caught:
        load(name, tmp_path, "dev")
    assert str(caught.value).startswith(f"{path}, record {problem}")


def test_a_mistake_in_a_neighbouring_file_is_reported_with_its_name(tmp_path: Path) -> None:
    json_lines(tmp_path / "fewclue/iflytek/dev_few_all.json", {"label": 9, "label_des": "办公", "sentence": "打卡"})
    broken = json_lines(tmp_path / "fewclue/iflytek/train_few_all.json", {"label": "?", "label_des": "地图"})
    with pytest.raises(DatasetError) as caught:
        load("iflytek", tmp_path)
    assert str(caught.value) == f"{broken}, record 1: field 'label' is not a number"


def test_a_missing_file_of_class_names_is_an_error(tmp_path: Path) -> None:
    json_lines(tmp_path / "csldcp/dev.json", {"content": "论法", "label": "法学"})
    with pytest.raises(DatasetError, match=r"csldcp/labels_all\.txt: No such file or directory$"):
        load("csldcp", tmp_path)


def test_the_error_of_a_line_that_is_not_json_has_its_number(tmp_path: Path) -> None:
    write(tmp_path / "tnews/dev.json", '{"label_desc": "news_car", "sentence": "新车"}\n{"label_desc"\n')
    with pytest.raises(DatasetError, match=r"tnews/dev\.json:2: not JSON: "):
        load("tnews", tmp_path)
