"""Guesses of fields: by the names of the columns, and by what is in them."""

from __future__ import annotations

import pytest

from service.errors import DatasetError
from service.tools.data.fields import Fields, guess_fields

NAMED: dict[str, tuple[str, Fields]] = {
    "review,label": ("好,1", Fields("review", label="label")),
    "cat,label,review": ("书,1,好", Fields("review", label="label")),
    "标题,类别": ("国足出战,体育", Fields("标题", label="类别")),
    "评论内容,情感": ("好,正面", Fields("评论内容", label="情感")),
    "id,content,tag": ("7,好,正面", Fields("content", label="tag")),
    "sentence,label,label_desc": ("好,101,news_car", Fields("sentence", label="label_desc")),
    "sentence1,sentence2,label": ("甲,乙,1", Fields("sentence1", "sentence2", "label")),
    "Text_A,Text_B,Label": ("甲,乙,1", Fields("Text_A", "Text_B", "Label")),
    "premise,hypothesis,gold_label": ("甲,乙,neutral", Fields("premise", "hypothesis", "gold_label")),
    "query,title,label": ("甲,乙,2", Fields("query", "title", "label")),
    "句子1,句子2,相似度": ("甲,乙,2.5", Fields("句子1", "句子2", score="相似度")),
    "passage,question,choices,answer": (
        "他去了北京。,去哪？,北京|上海,北京",
        Fields("passage", label="answer", choices="choices", question="question"),
    ),
    "文章,问题,A,B,C,答案": (
        "他去了北京。,去哪？,北京,上海,广州,A",
        Fields("文章", label="答案", choices="A,B,C", question="问题"),
    ),
    "题目,正文,选项A,选项B,正确答案": (
        "去哪？,他去了北京。,北京,上海,A",
        Fields("正文", label="正确答案", choices="选项A,选项B", question="题目"),
    ),
}

CONTENT: dict[str, tuple[list[str], Fields]] = {
    "feedback_zh,flag,when": (
        ["送得太慢了，下次不买了,N,1", "味道很好,P,2", "一般般吧,N,3", "不错不错,P,4"],
        Fields("feedback_zh", label="flag"),
    ),
    "column 1,column 2": (
        ["今天的比赛真精彩,体育", "股市又跌了,财经", "国足输了,体育", "油价涨了,财经"],
        Fields("column 1", label="column 2"),
    ),
    "column 1,column 2,column 3": (
        ["怎么还款,如何还钱,1", "怎么开户,在哪销户,0", "额度多少,有多少额度,1", "如何提额,怎么降息,0"],
        Fields("column 1", "column 2", "column 3"),
    ),
}


def guess(header: str, *lines: str, named: Fields = Fields(), needs_label: bool = True) -> Fields:  # noqa: B008
    columns = header.split(",")
    sample = [dict(zip(columns, line.split(","), strict=True)) for line in lines]
    return guess_fields(columns, sample, named, needs_label=needs_label)[0]


@pytest.mark.parametrize("header", NAMED)
def test_fields_are_guessed_by_the_names_of_the_columns(header: str) -> None:
    line, fields = NAMED[header]
    assert guess(header, line) == fields


@pytest.mark.parametrize("header", CONTENT)
def test_fields_of_unknown_names_are_guessed_by_content(header: str) -> None:
    lines, fields = CONTENT[header]
    assert guess(header, *lines) == fields


def test_named_fields_are_kept_and_the_others_guessed() -> None:
    found = guess("cat,label,review", "书,1,好", named=Fields(label="cat"))
    assert found == Fields("review", label="cat")


def test_without_labels_only_the_text_is_needed() -> None:
    assert guess("编号,客户留言", "1,东西坏了", "2,很好", needs_label=False) == Fields("客户留言")
    assert guess("review,label", "东西坏了,差", needs_label=False) == Fields("review")


def test_what_was_guessed_is_said_with_the_columns_that_are_not_used() -> None:
    columns = ["cat", "label", "review"]
    assert guess_fields(columns, [], Fields(label="cat"))[1] == ["guessed text: column 'review'; not used: label"]
    assert guess_fields(columns, [], Fields("review", label="cat"))[1] == []


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (Fields(text="文本"), "--text 文本: no such column; the columns are cat, review"),
        (Fields(label="x"), "--label x: no such column"),
        (Fields(question="x"), "--question-field x: no such column"),
        (Fields(choices="cat,x"), "--choices x: no such column"),
    ],
)
def test_a_named_column_that_is_not_there_is_refused(named: Fields, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        guess("cat,review", "书,好", named=named)


def test_fields_that_cannot_be_found_are_asked_for() -> None:
    with pytest.raises(
        DatasetError, match="no column of the text was found; name it with --text: the columns are a, b"
    ):
        guess("a,b", "1,2", "3,4")
    with pytest.raises(DatasetError, match="no column of the label was found; name it with --label"):
        guess("text,b", "好,1", "坏,2", "中,3")
