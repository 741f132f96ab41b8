"""Converters of each data set's records to examples: the field of the text, the Chinese wording of the labels.

A converter gets a record and the path of its file: some data sets keep the names of their classes in another file of
its folder. It raises RecordError for a record that it cannot read. The wordings of questions and options are upstream's
where upstream has published them (UniMC's FewCLUE prompts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tasks import similarity
from service.tasks.nli import LABELS as NLI_LABELS
from service.tasks.nli import as_choice as nli_as_choice
from service.tasks.unimc import Choice
from service.tools.data.files import RecordError, read_records, read_text, take_each

UNLABELLED = -1
"""The answer of an example of a test file."""


@dataclass(frozen=True, slots=True)
class Forms:
    """What other encodings of an example need, where its options hold a part of the input.

    `head` are the texts of a classifier and `labels` its classes, as CLUE's baselines encode them; `upstream` are the
    texts of the authors' choice.
    """

    head: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task with its answer, an index into `options`.

    `task` is "classify", "mrc", "similarity" or "nli". For the last two `options` are the names of the classes, in the
    order of the options of `as_choice`, and `texts` is the pair.

    With several answers (multi-label), `answers` are the indices of all that hold, none or more, and `answer` is the
    first of them or -1. A graded example has a number, `grade`, instead of options. `line` is the place of the example
    in its file, from 1, where that is known.

    `id` is what the publisher calls the example, and `group` is equal for examples that are decided together: the
    blanks of one line, the keywords of one abstract. `answer` is UNLABELLED in files without answers.
    """

    task: str
    texts: tuple[str, ...]
    options: tuple[str, ...]
    answer: int
    question: str | None = None
    answers: tuple[int, ...] | None = None
    grade: float | None = None
    line: int | None = field(default=None, compare=False)
    id: str | int | None = field(default=None, compare=False)
    group: str | int | None = field(default=None, compare=False)
    forms: Forms = field(default=Forms(), compare=False)

    @property
    def is_labelled(self) -> bool:
        return self.answer >= 0 or self.grade is not None or self.answers is not None

    def as_choice(self) -> Choice:
        """The UniMC form, worded as the service does."""
        if self.task == "similarity":
            return similarity.as_choice(*self.texts)
        if self.task == "nli":
            return nli_as_choice(*self.texts)
        return Choice(self.options, self.texts, self.question)


MAX_SHOWN = 40


def value_of(record: Any, key: str | int) -> Any:
    """A field of an object by its name, or a column of a line by its index, from 0."""
    try:
        return record[key]
    except (KeyError, IndexError, TypeError):
        raise RecordError(f"has no {_name(key)}") from None


def text_of(record: Any, key: str | int) -> str:
    value = value_of(record, key)
    if not isinstance(value, str):
        raise RecordError(f"{_name(key)} is not text")
    return value


def list_of(record: Any, key: str | int) -> list[Any]:
    value = value_of(record, key)
    if not isinstance(value, list):
        raise RecordError(f"{_name(key)} is not a list")
    return value


def texts_of(record: Any, key: str | int) -> tuple[str, ...]:
    values = list_of(record, key)
    if not all(isinstance(each, str) for each in values):
        raise RecordError(f"{_name(key)} is not a list of texts")
    return tuple(values)


def index_of(record: Any, key: str | int, names: Sequence[str]) -> int:
    """The index in `names` of the field's value; a number or boolean is compared in JSON's spelling, "1" or "true"."""
    value = value_of(record, key)
    name = value if isinstance(value, str) else str(value).lower()
    if name not in names:
        shown = ", ".join(names) if len(names) <= MAX_SHOWN else f"{names[0]}, ... {names[-1]}"
        raise RecordError(f"{_name(key)} is {name[:MAX_SHOWN]!r}, which is none of {shown}")
    return names.index(name)


def answer_of(record: Any, key: str | int, names: Sequence[str]) -> int:
    """As `index_of`; UNLABELLED where a test file leaves the field out."""
    if isinstance(record, dict) and key not in record:
        return UNLABELLED
    return index_of(record, key, names)


def number_of(record: Any, key: str | int) -> float:
    value = value_of(record, key)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RecordError(f"{_name(key)} is not a number") from None


def _name(key: str | int) -> str:
    return f"field {key!r}" if isinstance(key, str) else f"column {key + 1}"


NEWS_QUESTION = "下面新闻属于哪一个类别？"
BLANK = "（）"
MARK = "#idiom#"
"""The blank in FewCLUE's files, which no text contains otherwise."""
OTHER_BLANK = "____"
_IDIOMS = re.compile(r"#idiom\d+#")
IDIOM_QUESTION = "括号里应该填哪一个成语？"
RELEVANCE_LABELS = ("不相关", "部分相关", "相关")
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
BINARY = ("0", "1")
PAWS_HEADER = "id"


def tnews(record: Any, path: Path) -> Iterator[Example]:
    answer = answer_of(record, "label_desc", tuple(TNEWS_LABELS))
    yield Example("classify", (text_of(record, "sentence"),), tuple(TNEWS_LABELS.values()), answer, NEWS_QUESTION)


def thucnews(record: Any, path: Path) -> Iterator[Example]:
    answer = index_of(record, 1, _numbers(len(THUCNEWS_LABELS)))
    yield Example("classify", (text_of(record, 0),), THUCNEWS_LABELS, answer, NEWS_QUESTION)


def sentiment(record: Any, path: Path) -> Iterator[Example]:
    answer = answer_of(record, "label", ("Negative", "Positive"))
    yield Example("classify", (text_of(record, "sentence"),), REVIEW_LABELS, answer)


def review(record: Any, path: Path) -> Iterator[Example]:
    """Skips the few empty reviews."""
    if text := text_of(record, "review"):
        yield Example("classify", (text,), REVIEW_LABELS, index_of(record, "label", BINARY))


def category(record: Any, path: Path) -> Iterator[Example]:
    labels = _column_values(path, "cat")
    if text := text_of(record, "review"):
        yield Example("classify", (text,), labels, index_of(record, "cat", labels), "这条评论说的是什么？")


def csldcp(record: Any, path: Path) -> Iterator[Example]:
    labels = _lines(path.parent / "labels_all.txt")
    answer = answer_of(record, "label", labels)
    yield Example("classify", (text_of(record, "content"),), labels, answer, "这篇论文属于哪一个学科？")


def iflytek(record: Any, path: Path) -> Iterator[Example]:
    labels = _iflytek_labels(path.parent)
    answer = answer_of(record, "label_des", labels)
    yield Example("classify", (text_of(record, "sentence"),), labels, answer, "这个应用属于哪一个类别？")


def csl(record: Any, path: Path) -> Iterator[Example]:
    words, text = texts_of(record, "keyword"), text_of(record, "abst")
    keywords = "、".join(words)
    options = (f"这些词不能概括文章：{keywords}", f"这些词可以概括文章：{keywords}")
    answer = answer_of(record, "label", BINARY)
    forms = Forms((" ".join(words), text), ("不能概括", "可以概括"), (text,))
    yield Example("classify", (text,), options, answer, group=text, forms=forms)


def chid(record: Any, path: Path) -> Iterator[Example]:
    """FewCLUE's records have one text with one blank; CLUE's a list of texts, whose answers are in another file."""
    candidates = texts_of(record, "candidates")
    if isinstance(value_of(record, "content"), list):
        yield from _chid_of_clue(record, candidates, path)
        return
    text = text_of(record, "content")
    answer = answer_of(record, "answer", _numbers(len(candidates)))
    forms = Forms(upstream=(text,))
    yield Example("mrc", (text.replace(MARK, BLANK),), candidates, answer, IDIOM_QUESTION, forms=forms)


def _chid_of_clue(record: Any, candidates: tuple[str, ...], path: Path) -> Iterator[Example]:
    """One example for each blank. The other blanks of its text stay blank, as their answers are asked, too; the
    authors' texts have the right idioms there, where they are known."""
    file = path.with_name(f"{path.stem}_answer.json")
    answers = {} if path.stem.startswith("test") and not file.is_file() else _chid_answers(file)
    contents = texts_of(record, "content")
    for content in contents:
        blanks = _IDIOMS.findall(content)
        found = {blank: answer_of(answers, blank, _numbers(len(candidates))) for blank in blanks}
        if not path.stem.startswith("test") and UNLABELLED in found.values():
            raise RecordError(f"has a blank that {file.name} has no answer for")
        gold = {blank: candidates[answer] if answer >= 0 else OTHER_BLANK for blank, answer in found.items()}
        for blank in blanks:
            text = _fill(content, dict.fromkeys(blanks, OTHER_BLANK) | {blank: BLANK})
            forms = Forms(upstream=(_fill(content, gold | {blank: MARK}),))
            group = "".join(contents)
            yield Example("mrc", (text,), candidates, found[blank], IDIOM_QUESTION, id=blank, group=group, forms=forms)


def _fill(content: str, words: Mapping[str, str]) -> str:
    """The text with a word in the place of each blank."""
    return _IDIOMS.sub(lambda blank: words[blank[0]], content)


def cluewsc(record: Any, path: Path) -> Iterator[Example]:
    target, text = value_of(record, "target"), text_of(record, "text")
    name, pronoun = text_of(target, "span1_text"), text_of(target, "span2_text")
    options = (f"{pronoun}不是{name}", f"{pronoun}是{name}")
    spans = [(int(number_of(target, f"span{n}_index")), each) for n, each in ((1, name), (2, pronoun))]
    underlined, bracketed = ("_", "_"), ("[", "]")
    clue, authors = (_mark(text, spans, marks) for marks in ((underlined, bracketed), (bracketed, underlined)))
    forms = Forms((clue,), ("不是", "是"), (authors,))
    yield Example("classify", (text,), options, answer_of(record, "label", ("false", "true")), forms=forms)


def _mark(text: str, spans: Sequence[tuple[int, str]], marks: Sequence[tuple[str, str]]) -> str:
    """The text with a pair of marks around each (start, text) of the spans."""
    for (start, span), (before, after) in sorted(zip(spans, marks, strict=True), reverse=True):
        end = start + len(span)
        text = f"{text[:start]}{before}{text[start:end]}{after}{text[end:]}"
    return text


def pair(record: Any, path: Path) -> Iterator[Example]:
    yield Example("similarity", _texts(record), PAIR_LABELS, answer_of(record, _label(record), BINARY))


def paws(record: Any, path: Path) -> Iterator[Example]:
    """Skips the header, which is the first line, and the few pairs that lack a text."""
    first, second = text_of(record, 1), text_of(record, 2)
    if record[0] != PAWS_HEADER and first and second:
        yield Example("similarity", (first, second), PAIR_LABELS, index_of(record, 3, BINARY))


def graded(record: Any, path: Path) -> Iterator[Example]:
    """Grades from 0 to 5; those between 2 and 4 mean neither and are skipped."""
    grade = number_of(record, _label(record))
    if grade <= 2 or grade >= 4:
        yield Example("similarity", _texts(record), PAIR_LABELS, int(grade >= 4))


def grade(record: Any, path: Path) -> Iterator[Example]:
    yield Example("similarity", _texts(record), (), -1, grade=number_of(record, _label(record)))


def qbqtc(record: Any, path: Path) -> Iterator[Example]:
    """The names of the classes are ours: upstream has numbers only."""
    texts = (text_of(record, "query"), text_of(record, "title"))
    yield Example("classify", texts, RELEVANCE_LABELS, answer_of(record, "label", _numbers(len(RELEVANCE_LABELS))))


def nli(record: Any, path: Path) -> Iterator[Example]:
    """Skips pairs with the label "-": their annotators did not agree."""
    answer = answer_of(record, _label(record), (*NLI_LABELS, "-"))
    if answer < len(NLI_LABELS):
        yield Example("nli", _texts(record), NLI_LABELS, answer)


def c3(record: Any, path: Path) -> Iterator[Example]:
    passage = "\n".join(texts_of(record, 0))
    for question in list_of(record, 1):
        choices = texts_of(question, "choice")
        answer = answer_of(question, "answer", choices)
        name = question.get("id") if isinstance(question, dict) else None
        yield Example("mrc", (passage,), choices, answer, text_of(question, "question"), id=name)


def _texts(record: Any) -> tuple[str, str]:
    """The two texts of a pair: named fields of CLUE's JSON lines, the first columns of tab-separated lines."""
    first, second = ("sentence1", "sentence2") if isinstance(record, dict) else (0, 1)
    return text_of(record, first), text_of(record, second)


def _label(record: Any) -> str | int:
    """CLUE's own baselines read CMNLI's labels from `gold_label`."""
    if not isinstance(record, dict):
        return 2
    return "gold_label" if "label" not in record and "gold_label" in record else "label"


@cache
def _chid_answers(path: Path) -> dict[str, Any]:
    """The answer of each blank, an index into its candidates."""
    try:
        answers = json.loads(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None
    if not isinstance(answers, dict):
        raise DatasetError(f"{path}: wanted a JSON object of blanks and answers")
    return answers


@cache
def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@cache
def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())


@cache
def _column_values(path: Path, column: str) -> tuple[str, ...]:
    """The distinct values of a column, in order of appearance."""
    return tuple(dict.fromkeys(take_each(path, read_records(path), lambda record: [text_of(record, column)])))


@cache
def _iflytek_labels(folder: Path) -> tuple[str, ...]:
    """The class names in all labelled files of the folder, in the order of their numbers."""
    names: dict[float, str] = {}
    for path in sorted(folder.glob("*.json")):
        names.update(take_each(path, read_records(path), _iflytek_class))
    return tuple(names[number] for number in sorted(names))


def _iflytek_class(record: Any) -> Iterator[tuple[float, str]]:
    """Number and name of a record's class; nothing for a record of the unlabelled files in the same folder."""
    if isinstance(record, dict) and "label_des" in record:
        yield number_of(record, "label"), text_of(record, "label_des")
