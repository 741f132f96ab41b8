"""The fields of a user's table: which column is the text, the label, ...; named by the user, or guessed from the names
of the columns, else from what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import DatasetError

Row = Mapping[str, Any]

PAIRS = (
    ("text", "textpair"),
    ("sentence", "sentence2"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("q1", "q2"),
    ("query", "title"),
    ("句子1", "句子2"),
    ("文本1", "文本2"),
    ("问题1", "问题2"),
    ("句子一", "句子二"),
    ("文本一", "文本二"),
    ("前提", "假设"),
)
"""Names of the columns of a pair, without spaces, `-` and `_`, in lower case, as all names here."""
TEXT = (
    *("text", "sentence", "content", "review", "comment", "passage", "context", "abst", "abstract", "article"),
    *("document", "title", "headline", "message", "utterance", "description", "desc", "input", "query", "reviewbody"),
    *(
        "文本",
        "句子",
        "评论",
        "评论内容",
        "评价",
        "评价内容",
        "内容",
        "正文",
        "原文",
        "文章",
        "段落",
        "留言",
        "反馈",
        "标题",
    ),
    *("摘要", "描述", "语句", "新闻"),
)
LABEL = (
    *("labeldesc", "labeldes", "label", "labels", "goldlabel", "answer", "category", "cat", "class", "tag", "tags"),
    *("sentiment", "intent", "target", "y", "标签", "标注", "类别", "分类", "情感", "情感倾向", "意图", "类型", "答案"),
    *("正确答案", "结果"),
)
CHOICES = ("choices", "choice", "options", "candidates", "选项", "候选", "候选项")
SEPARATORS = ("|", ";", "；", "、", "\n")
"""Tried between the choices in one cell."""
QUESTION = ("question", "问题", "题目", "提问")
SCORE = ("score", "similarity", "grade", "rating", "分数", "评分", "得分", "相似度")
ANSWER = ("answer", "答案", "正确答案", "label", "标签")
"""The label of a question with choices."""
LETTERS = re.compile(r"(?:option|choice|选项|候选)?([a-h])")
"""Columns with one choice each: A, B, C, D; 选项A, 选项B."""
KNOWN = {*TEXT, *LABEL, *CHOICES, *QUESTION, *SCORE, *(name for pair in PAIRS for name in pair), "id", "序号", "编号"}
FLAGS = {
    "text": "--text",
    "text_pair": "--text-pair",
    "label": "--label",
    "choices": "--choices",
    "question": "--question-field",
    "score": "--score",
}
LABEL_CLASSES = 200
"""A column with more distinct values is not guessed to be the label by what is in it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of columns; None where there is none, or where it is to be guessed.

    `choices` may name several columns, separated by commas. `separator` splits a cell with several labels, or choices.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    choices: str | None = None
    question: str | None = None
    score: str | None = None
    separator: str | None = None

    def choice_columns(self, columns: Sequence[str]) -> list[str]:
        if self.choices is None or self.choices in columns:
            return [self.choices] if self.choices is not None else []
        return [name.strip() for name in self.choices.split(",")]


def guess_fields(
    columns: Sequence[str], sample: Sequence[Row], named: Fields, *, needs_label: bool = True
) -> tuple[Fields, list[str]]:
    """The fields, and a sentence for each one that was guessed.

    Raises:
        DatasetError: a named column is not there, or the text or the label cannot be found.
    """
    _check_named(columns, named)
    free = [column for column in columns if column not in _used(named, columns)]
    found = _by_names(free, sample, named, needs_label=needs_label)
    found = _by_content(free, sample, found, columns, needs_label=needs_label)
    shown = ", ".join(columns)
    if found.text is None:
        raise DatasetError(f"no column of the text was found; name it with --text: the columns are {shown}")
    if needs_label and found.label is None and found.score is None:
        raise DatasetError(f"no column of the label was found; name it with --label: the columns are {shown}")
    return found, _sentences(named, found, columns)


def looks_like_header(rows: Sequence[Sequence[str]], named: Fields) -> bool:
    """Whether the first of `rows` names the columns: one is known or named, or it is unlike the rows below."""
    first, below = rows[0], rows[1:]
    wanted = {name for name in (named.text, named.text_pair, named.label, named.score, named.question) if name}
    cells = [cell.strip() for cell in first]
    if wanted & set(cells) or any(normal(cell) in KNOWN for cell in cells):
        return True
    if (
        not below
        or len(set(cells)) < len(cells)
        or any(not cell or _is_number(cell) or len(cell) > 20 for cell in cells)
    ):
        return False
    for index, cell in enumerate(cells):
        values = [row[index].strip() for row in below if index < len(row)]
        are_numbers, are_longer = all(map(_is_number, values)), sum(map(len, values)) > 3 * len(cell) * len(values)
        if len(values) > 1 and cell not in values and (are_numbers or are_longer):
            return True
    return False


def unnamed(index: int) -> str:
    """The name of a column that the file does not name; `index` counts from 0."""
    return f"column {index + 1}"


def is_unnamed(name: str) -> bool:
    return re.fullmatch(r"column \d+", name) is not None


def normal(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).lower()


def _check_named(columns: Sequence[str], named: Fields) -> None:
    for field, flag in FLAGS.items():
        name = getattr(named, field)
        if field != "choices" and name is not None and name not in columns:
            raise DatasetError(f"{flag} {name}: no such column; the columns are {', '.join(columns)}")
    for name in named.choice_columns(columns):
        if name not in columns:
            raise DatasetError(f"--choices {name}: no such column; the columns are {', '.join(columns)}")


def _used(found: Fields, columns: Sequence[str]) -> set[str | None]:
    named = {found.text, found.text_pair, found.label, found.question, found.score}
    return {*named, *found.choice_columns(columns)}


def _by_names(free: Sequence[str], sample: Sequence[Row], found: Fields, *, needs_label: bool) -> Fields:
    by_name = {normal(column): column for column in reversed(free)}

    def first(names: Sequence[str]) -> str | None:
        return next((by_name[name] for name in names if name in by_name), None)

    if found.choices is None:
        found = replace(found, choices=_choices(free, sample))
    if found.text_pair is None and found.choices is None:
        found = _pair(by_name, found)
    if found.choices is not None and found.question is None:
        found = replace(found, question=first(QUESTION))
    if found.text is None:
        found = replace(found, text=first(TEXT))
    if needs_label and found.label is None and found.score is None:
        found = replace(found, label=first(ANSWER if found.choices else LABEL))
        if found.label is None and found.choices is None:
            found = replace(found, score=first(SCORE))
    return found


def _pair(by_name: Mapping[str, str], found: Fields) -> Fields:
    """The first of PAIRS that is there, and whose first column is the text, if that is named."""
    for one, other in PAIRS:
        is_first = normal(found.text) == one if found.text else one in by_name
        if is_first and other in by_name:
            return replace(found, text=found.text or by_name[one], text_pair=by_name[other])
    return found


def _choices(free: Sequence[str], sample: Sequence[Row]) -> str | None:
    """One column of lists, or those of A, B, ... as one name."""
    holding = {normal(column): column for column in free if _holds_choices([row.get(column) for row in sample])}
    return next((holding[name] for name in CHOICES if name in holding), None) or _lettered(free)


def _holds_choices(cells: Sequence[Any]) -> bool:
    """Whether the cells are lists, or texts with a separator: a column called `choice` may hold the label."""
    given = [cell for cell in cells if cell not in (None, "")]
    return any(isinstance(cell, list) or any(one in str(cell) for one in ("[", *SEPARATORS)) for cell in given)


def _lettered(free: Sequence[str]) -> str | None:
    """The columns A, B, ... of choices, as one name."""
    letters = {match[1]: column for column in free if (match := LETTERS.fullmatch(normal(column)))}
    if len(letters) < 2 or sorted(letters) != list("abcdefgh")[: len(letters)]:
        return None
    return ",".join(letters[letter] for letter in sorted(letters))


def _by_content(
    free: Sequence[str], sample: Sequence[Row], found: Fields, columns: Sequence[str], *, needs_label: bool
) -> Fields:
    left = [column for column in free if column not in _used(found, columns)]
    cells = {column: [cell for row in sample if (cell := row.get(column)) not in (None, "")] for column in left}
    if needs_label and found.label is None and found.score is None:
        # One column at least is left for the text.
        if found.text is not None or len(left) > 1:
            found = replace(found, label=_label_by_content(cells))
        cells.pop(found.label or "", None)
    if found.text is None:
        found = _text_by_content(cells, found, columns)
    return found


def _label_by_content(cells: Mapping[str, Sequence[Any]]) -> str | None:
    """The column that repeats the fewest values, several if possible."""
    few: dict[str, int] = {}
    for column, values in cells.items():
        count = len({str(value) for value in values})
        if len(values) > 1 and count <= min(LABEL_CLASSES, max(2, len(values) // 2)):
            few[column] = count
    return min(few, key=lambda column: (few[column] == 1, few[column])) if few else None


def _text_by_content(cells: Mapping[str, Sequence[Any]], found: Fields, columns: Sequence[str]) -> Fields:
    """The column of the longest texts. Where no column has a name, two of similar length are a pair."""
    lengths: dict[str, float] = {}
    for column, values in cells.items():
        texts = [value for value in values if isinstance(value, str)]
        if texts and not all(map(_is_number, texts)):
            lengths[column] = sum(map(len, texts)) / len(texts)
    if not lengths:
        return found
    text, *others = sorted(lengths, key=lengths.__getitem__, reverse=True)
    if len(others) == 1 and lengths[others[0]] * 3 > lengths[text] and all(map(is_unnamed, columns)):
        first, second = sorted((text, others[0]), key=columns.index)
        return replace(found, text=first, text_pair=second)
    return replace(found, text=text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?", text.strip()) is not None


def _sentences(named: Fields, found: Fields, columns: Sequence[str]) -> list[str]:
    guessed = [
        f"{field.replace('_', ' ')}: column {getattr(found, field)!r}"
        for field in FLAGS
        if getattr(found, field) is not None and getattr(named, field) is None
    ]
    if not guessed:
        return []
    unused = [column for column in columns if column not in _used(found, columns)]
    rest = f"; not used: {', '.join(unused)}" if unused else ""
    return [f"guessed {', '.join(guessed)}{rest}"]
