"""A user's own file as examples: kinds, classes, answers, and the rows that are not used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import DatasetError
from service.tools.data.converters import PAIR_LABELS, Example
from service.tools.data.fields import Fields
from service.tools.data.own import OwnData, read_own
from service.tools.data.rows import MAX_TEXT
from tests.unit.tools.data.layouts import json_lines, write

NLI_LABELS = ("contradiction", "neutral", "entailment")


def lines_of(folder: Path, *lines: str, **more: Any) -> OwnData:
    """The data of a CSV file."""
    return read_own(write(folder / "a.csv", "\n".join(lines)), **more)


def records_of(folder: Path, *records: object, **more: Any) -> OwnData:
    return read_own(json_lines(folder / "a.jsonl", *records), **more)


def test_texts_and_labels_are_a_classification(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "review,label", "好吃,好评", "太慢,差评")
    assert (data.kind, data.task, data.labels) == ("classify", "classify", ("好评", "差评"))
    assert data.examples == [
        Example("classify", ("好吃",), ("好评", "差评"), 0),
        Example("classify", ("太慢",), ("好评", "差评"), 1),
    ]
    assert [example.line for example in data.examples] == [2, 3]


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    assert lines_of(tmp_path, "text,label", "甲,10", "乙,2", "丙,-1").labels == ("-1", "2", "10")


def test_labels_are_called_by_the_names_that_are_given(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,label", "好,1", "坏,0", names={"0": "差评", "1": "好评"})
    assert data.labels == ("差评", "好评")
    assert [example.answer for example in data.examples] == [1, 0]


def test_given_labels_are_the_classes_and_others_are_not_used(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,label", "好,好评", "坏,差评", "中,中评", labels=("差评", "好评"))
    assert data.labels == ("差评", "好评")
    assert [example.answer for example in data.examples] == [1, 0]
    assert data.report.refused == {"label is none of the 2 classes": 1}


@pytest.mark.parametrize("spellings", [("1", "0"), ("是", "否"), ("True", "False"), ("相似", "不相似")])
def test_pairs_with_yes_and_no_are_similarity(tmp_path: Path, spellings: tuple[str, str]) -> None:
    data = lines_of(tmp_path, "text,text_pair,label", f"甲,乙,{spellings[0]}", f"丙,丁,{spellings[1]}")
    assert (data.kind, data.labels) == ("similarity", PAIR_LABELS)
    assert [(example.texts, example.answer) for example in data.examples] == [(("甲", "乙"), 1), (("丙", "丁"), 0)]


@pytest.mark.parametrize("spellings", [NLI_LABELS, ("矛盾", "中立", "蕴含"), ("矛盾", "自然", "蕴含")])
def test_pairs_with_labels_of_inference_are_nli(tmp_path: Path, spellings: tuple[str, ...]) -> None:
    data = lines_of(tmp_path, "premise,hypothesis,label", *(f"甲,乙{label},{label}" for label in spellings), "丙,丁,-")
    assert (data.kind, data.labels) == ("nli", NLI_LABELS)
    assert [example.answer for example in data.examples] == [0, 1, 2]
    assert list(data.report.refused.values()) == [1]


def test_pairs_with_other_labels_are_a_classification(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "query,title,label", "甲,乙,0", "丙,丁,1", "戊,己,2")
    assert (data.kind, data.labels, data.examples[0].texts) == ("classify", ("0", "1", "2"), ("甲", "乙"))


def test_the_kind_can_be_named(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,text_pair,label", "甲,乙,1", "丙,丁,0", kind="classify")
    assert (data.kind, data.labels) == ("classify", ("0", "1"))


@pytest.mark.parametrize("header", ["text,text_pair,score", "text,text_pair,label"])
def test_pairs_with_numbers_are_graded(tmp_path: Path, header: str) -> None:
    data = lines_of(tmp_path, header, "甲,乙,2.5", "丙,丁,0", "戊,己,x")
    assert (data.kind, data.labels) == ("graded", ()) if "score" in header else ("classify", data.labels)
    if "score" in header:
        assert [example.grade for example in data.examples] == [2.5, 0.0]
        assert data.report.first_refused == ((4, "score is not a number"),)


def test_labels_that_are_fractions_are_grades(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,text_pair,label", "甲,乙,2.5", "丙,丁,0")
    assert (data.kind, [example.grade for example in data.examples]) == ("graded", [2.5, 0.0])


@pytest.mark.parametrize(
    ("cells", "fields"),
    [
        ((["物流", "质量"], [], ["质量"]), Fields()),
        (("物流|质量", "", "质量"), Fields(separator="|")),
        (("['物流', '质量']", "[]", '["质量"]'), Fields()),
        (({"choices": ["物流", "质量"]}, None, "质量"), Fields(separator="|")),
    ],
)
def test_several_labels_in_a_cell_are_multi_label(tmp_path: Path, cells: tuple[Any, ...], fields: Fields) -> None:
    records = [{"text": f"文{index}", "label": cell} for index, cell in enumerate(cells)]
    data = records_of(tmp_path, *records, fields=fields)
    assert (data.kind, data.labels) == ("multi-label", ("物流", "质量"))
    assert [(example.answers, example.answer) for example in data.examples] == [((0, 1), 0), ((), -1), ((1,), 1)]
    assert data.report.class_counts == {"物流": 1, "质量": 2}


def test_lists_of_one_label_are_a_classification(tmp_path: Path) -> None:
    data = records_of(tmp_path, {"text": "甲", "label": ["a"]}, {"text": "乙", "label": ["b"]})
    assert (data.kind, data.labels) == ("classify", ("a", "b"))


@pytest.mark.parametrize(
    ("answers", "note"),
    [
        (("上海", "广州"), None),
        (("B", "C"), "guessed the answer is a letter"),
        (("1", "2"), "guessed the answer is a number from 0"),
        (("2", "3"), "guessed the answer is a number from 1"),
    ],
)
def test_the_answer_is_a_choice_a_letter_or_a_number(
    tmp_path: Path, answers: tuple[str, str], note: str | None
) -> None:
    lines = [f"他在那里{answer},在哪？,北京,上海,广州,{answer}" for answer in answers]
    data = lines_of(tmp_path, "passage,question,A,B,C,answer", *lines)
    assert (data.kind, data.task) == ("mrc", "mrc")
    assert [example.answer for example in data.examples] == [1, 2]
    assert data.examples[0].options == ("北京", "上海", "广州")
    assert (note in data.guesses) == (note is not None)


def test_choices_without_a_question_are_labels_of_each_text(tmp_path: Path) -> None:
    data = records_of(tmp_path, {"text": "他去了（）", "choices": ["北京", "上海"], "answer": "上海"})
    assert (data.kind, data.labels) == ("mrc", ("北京", "上海"))
    assert data.examples == [Example("classify", ("他去了（）",), ("北京", "上海"), 1)]


def test_choices_in_one_cell_are_split_where_they_are_separated(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "passage,question,choices,answer", "甲,乙？,丙；丁,丁", "甲,戊？,丙；己,丙")
    assert [example.options for example in data.examples] == [("丙", "丁"), ("丙", "己")]
    assert "guessed choices are separated by '；' (--separator)" in data.guesses


def test_a_question_for_all_labels_is_in_every_example(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,label", "甲,a", "乙,b", question="什么？")
    assert [example.question for example in data.examples] == ["什么？", "什么？"]


def test_rows_that_cannot_be_used_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    records = [
        {"text": "好", "label": "a"},
        {"text": "坏", "label": "b"},
        {"text": "", "label": "a"},
        {"text": "无标签"},
        {"text": {"内": "容"}, "label": "a"},
        {"text": "长" * (MAX_TEXT + 1), "label": "a"},
        {"text": "空\0字节", "label": "a"},
        {"text": "\udcff", "label": "a"},
        {"text": 7, "label": 7.0},
        {"text": "两个", "label": ["a", "b"]},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))  # with the surrogate as an escape
    data = read_own(file, kind="classify", labels=("a", "b", "7"))
    assert [example.texts[0] for example in data.examples] == ["好", "坏", "7"]
    assert data.report.refused == {
        "text is empty": 1,
        "label is empty": 1,
        "text is not a text": 1,
        f"text has more than {MAX_TEXT} characters": 1,
        "text has a NUL, or bytes of another encoding": 2,
        "label has 2 labels instead of one": 1,
    }
    assert [line for line, _ in data.report.first_refused] == [3, 4, 5, 6, 7]
    assert data.report.records == data.report.used + 7


def test_bytes_of_another_encoding_are_refused_by_line(tmp_path: Path) -> None:
    lines = [f"第{index}行,{'ab'[index % 2]}".encode() for index in range(9)]
    lines[4] = "坏掉的,a".encode("gbk")
    data = read_own(write(tmp_path / "a.csv", b"text,label\n" + b"\n".join(lines)))
    assert data.report.first_refused == ((6, "text has a NUL, or bytes of another encoding"),)


def test_a_reason_never_contains_the_text(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,label", "好,a", "坏,b", "秘密,秘密", "秘密,秘密,秘密", labels=("a", "b"))
    assert len(data.report.first_refused) == 2
    assert "秘密" not in str(data.report.to_json()) + str(data.report.lines()) + str(data.guesses)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("text,label", "好,a", "坏,a"), "every label is 'a'; at least two classes are needed"),
        (("text,label", ",a", ",b"), "no row can be used; line 2: text is empty"),
        (("text,label",), "no row can be used; line 1: there are no rows"),
        (("text,label", *(f"文{index},第{index}类" for index in range(30))), "has 30 different values in 30 rows"),
        (("text,kind", "好,a", "坏,b", "差,c", "中,d"), "no column of the label was found"),
    ],
)
def test_data_without_classes_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        lines_of(tmp_path, *lines)


def test_a_kind_that_the_fields_do_not_allow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="name the column of the second with --text-pair"):
        lines_of(tmp_path, "text,label", "好,1", "坏,0", kind="similarity")
    with pytest.raises(DatasetError, match="name their column with --choices"):
        lines_of(tmp_path, "text,label", "好,1", "坏,0", kind="mrc")


def test_the_report_counts_classes_lengths_duplicates_and_contradictions(tmp_path: Path) -> None:
    lines = ["一二三,a", "一二三,a", "一二三,b", *(f"文{index},a" for index in range(9))]
    report = lines_of(tmp_path, "text,label", *lines).report
    assert report.class_counts == {"a": 11, "b": 1}
    assert (report.duplicates, report.contradictions) == (2, 1)
    assert (report.lengths.min, report.lengths.median, report.lengths.max) == (2, 2, 3)
    assert report.imbalance == 11.0
    assert "the largest class is 11.0 times the smallest: read macro-F1, not accuracy" in report.lines()


@pytest.mark.parametrize("control", ["choice", "我的控件", "text2"])
def test_the_control_of_a_label_studio_export_is_the_label(tmp_path: Path, control: str) -> None:
    results = {label: [{"from_name": control, "value": {"choices": [label]}}] for label in "ab"}
    tasks = [{"data": {"text": f"文{one}"}, "annotations": [{"result": result}]} for one, result in results.items()]
    data = read_own(write(tmp_path / "a.json", json.dumps(tasks)))
    assert (data.kind, data.labels, data.fields.label) == ("classify", ("a", "b"), control)


def test_a_column_called_choice_may_be_the_label(tmp_path: Path) -> None:
    data = lines_of(tmp_path, "text,choice", "好吃,好评", "难吃,差评", "一般,差评", "喜欢,好评")
    assert (data.kind, data.fields) == ("classify", Fields("text", label="choice"))


def test_an_unlabelled_export_of_label_studio_has_nothing_to_learn_from(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '[{"id": 1, "data": {"text": "好", "label": "x"}, "annotations": []}]')
    with pytest.raises(DatasetError, match="line 1: has no annotation"):
        read_own(file)
