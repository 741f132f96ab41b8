"""From a record of one data set to examples: which field is the text, how the labels are put in Chinese.

The wordings of questions and options are upstream's where upstream has published them (UniMC's FewCLUE prompts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from service.datasets.example import Example
from service.datasets.files import read_json, read_records
from service.tasks.inference import LABELS as NLI_LABELS

NEWS_QUESTION = "下面新闻属于哪一个类别？"
PAIR_LABELS = ("不相似", "相似")
REVIEW_LABELS = ("这是一条差评", "这是一条好评")
TNEWS_LABELS = {
    "news_story": "故事",
    "news_culture": "文化",
    "news_entertainment": "娱乐",
    "news_sports": "体育",
    "news_finance": "财经",
    "news_house": "房产",
    "news_car": "汽车",
    "news_edu": "教育",
    "news_tech": "科技",
    "news_military": "军事",
    "news_travel": "旅游",
    "news_world": "国际",
    "news_stock": "股票",
    "news_agriculture": "农业",
    "news_game": "电竞",
}
THUCNEWS_LABELS = ("财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐")


def records(convert: Callable[[Any, Path], Iterator[Example]], path: Path) -> Iterator[Any]:
    """C3 is one JSON document; every other file is read line by line."""
    return iter(read_json(path)) if convert is c3 else read_records(path)


def tnews(record: dict[str, Any], path: Path) -> Iterator[Example]:
    answer = list(TNEWS_LABELS).index(record["label_desc"])
    yield Example("classify", (record["sentence"],), tuple(TNEWS_LABELS.values()), answer, NEWS_QUESTION)


def thucnews(record: list[str], path: Path) -> Iterator[Example]:
    yield Example("classify", (record[0],), THUCNEWS_LABELS, int(record[1]), NEWS_QUESTION)


def sentiment(record: dict[str, Any], path: Path) -> Iterator[Example]:
    yield Example("classify", (record["sentence"],), REVIEW_LABELS, int(record["label"] == "Positive"))


def review(record: dict[str, str], path: Path) -> Iterator[Example]:
    if record["review"]:
        yield Example("classify", (record["review"],), REVIEW_LABELS, int(record["label"]))


def category(record: dict[str, str], path: Path) -> Iterator[Example]:
    labels = _column_values(path, "cat")
    if record["review"]:
        yield Example("classify", (record["review"],), labels, labels.index(record["cat"]), "这条评论说的是什么？")


def csldcp(record: dict[str, Any], path: Path) -> Iterator[Example]:
    labels = _lines(path.parent / "labels_all.txt")
    yield Example("classify", (record["content"],), labels, labels.index(record["label"]), "这篇论文属于哪一个学科？")


def iflytek(record: dict[str, Any], path: Path) -> Iterator[Example]:
    labels = _iflytek_labels(path.parent)
    answer = labels.index(record["label_des"])
    yield Example("classify", (record["sentence"],), labels, answer, "这个应用属于哪一个类别？")


def csl(record: dict[str, Any], path: Path) -> Iterator[Example]:
    keywords = "、".join(record["keyword"])
    options = (f"这些词不能概括文章：{keywords}", f"这些词可以概括文章：{keywords}")
    yield Example("classify", (record["abst"],), options, int(record["label"]))


def chid(record: dict[str, Any], path: Path) -> Iterator[Example]:
    text = record["content"].replace("#idiom#", "（）")
    yield Example("mrc", (text,), tuple(record["candidates"]), int(record["answer"]), "括号里应该填哪一个成语？")


def cluewsc(record: dict[str, Any], path: Path) -> Iterator[Example]:
    name, pronoun = record["target"]["span1_text"], record["target"]["span2_text"]
    options = (f"{pronoun}不是{name}", f"{pronoun}是{name}")
    yield Example("classify", (record["text"],), options, int(str(record["label"]).lower() == "true"))


def pair(record: Any, path: Path) -> Iterator[Example]:
    first, second, label = _columns(record)
    yield Example("similarity", (first, second), PAIR_LABELS, int(label))


def paws(record: list[str], path: Path) -> Iterator[Example]:
    if record[0] != "id" and len(record) == 4 and record[1] and record[2]:
        yield Example("similarity", (record[1], record[2]), PAIR_LABELS, int(record[3]))


def graded(record: list[str], path: Path) -> Iterator[Example]:
    """0 to 5: the middle grade is neither and is left out."""
    grade = float(record[2])
    if grade <= 2 or grade >= 4:
        yield Example("similarity", (record[0], record[1]), PAIR_LABELS, int(grade >= 4))


def nli(record: Any, path: Path) -> Iterator[Example]:
    """Pairs on which the annotators did not agree carry the label "-" and are left out."""
    first, second, label = _columns(record)
    if label in NLI_LABELS:
        yield Example("nli", (first, second), NLI_LABELS, NLI_LABELS.index(label))


def c3(record: list[Any], path: Path) -> Iterator[Example]:
    passages, questions, _ = record
    passage = "\n".join(passages)
    for item in questions:
        choices = tuple(item["choice"])
        yield Example("mrc", (passage,), choices, choices.index(item["answer"]), item["question"])


def _columns(record: Any) -> tuple[str, str, str]:
    if isinstance(record, dict):
        return record["sentence1"], record["sentence2"], str(record["label"])
    first, second, label = record[:3]
    return first, second, label


@lru_cache
def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


@lru_cache
def _column_values(path: Path, column: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(record[column] for record in read_records(path)))


@lru_cache
def _iflytek_labels(folder: Path) -> tuple[str, ...]:
    """The class names of all its labelled files, in the order of their numbers."""
    names = {
        int(record["label"]): str(record["label_des"])
        for path in sorted(folder.glob("*.json"))
        for record in read_records(path)
        if "label_des" in record
    }
    return tuple(names[number] for number in sorted(names))
