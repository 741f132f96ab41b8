"""A user's own labelled file as examples: what kind of task it is, its classes, and a report of what is in it.

The kind follows from the fields and the labels:

- choices: "mrc"; with a question the reading-comprehension task, without one a classification with labels of its own
- a score, or labels that are fractions: "graded"
- several labels in a cell: "multi-label"
- a pair with labels of yes and no: "similarity"; with those of inference: "nli"
- anything else: "classify", of one text or of a pair
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from service.errors import DatasetError
from service.tasks.nli import LABELS as NLI_LABELS
from service.tasks.nli import NAMES as NLI_NAMES
from service.tools.data.converters import PAIR_LABELS, Example
from service.tools.data.fields import SEPARATORS, Fields, guess_fields
from service.tools.data.files import RecordError
from service.tools.data.report import DataReport, make_report
from service.tools.data.rows import Row, is_list, number_of, text_of, texts_of
from service.tools.data.tables import Layout, Table, open_table

T = TypeVar("T")
Kind = Literal["classify", "multi-label", "graded", "similarity", "nli", "mrc"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SAME: dict[str, int] = {
    **dict.fromkeys(("0", "false", "no", "n", "否", "不相似", "不同", "不是", "different", "dissimilar"), 0),
    **dict.fromkeys(("1", "true", "yes", "y", "是", "相似", "相同", "same", "similar"), 1),
}
"""Spellings of the labels of a pair, as indices of PAIR_LABELS."""
INFERENCE: dict[str, int] = {
    **{name: index for index, name in enumerate(NLI_LABELS)},
    **{name: index for index, name in enumerate(NLI_NAMES)},
    "自然": NLI_LABELS.index("neutral"),
}
MAX_CLASSES = 1000
"""A head or a request with more is not what was meant: the wrong column was taken for the label."""
MIN_GRADES = 5
"""A pair whose labels are that many numbers or more is graded."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """`labels` are the classes that all examples share: none if they are graded, or each has options of its own.

    `files` are those that were read, `task` is that of the examples, `fields` are the columns that were used, `guesses`
    are sentences for the user.
    """

    source: str
    files: tuple[Path, ...]
    kind: Kind
    task: str
    labels: tuple[str, ...]
    examples: list[Example]
    fields: Fields
    guesses: tuple[str, ...]
    report: DataReport


def read_own(
    path: Path,
    fields: Fields = Fields(),  # noqa: B008 - frozen
    *,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    question: str | None = None,
) -> OwnData:
    """The examples of a file, in file order.

    Args:
        labels: the classes, in order; rows of other classes are not used. Default: those of the file, numbers in their
            order, others in order of appearance.
        names: what to call the labels of the file.
        question: the question that the labels answer.

    Raises:
        DatasetError: the file cannot be read, a field cannot be found, no row can be used, or there is only one class.
    """
    table = open_table(path, layout, fields)
    if fields.label is None and fields.score is None and fields.choices is None:
        fields = replace(fields, label=table.label)
    try:
        found, guesses = guess_fields(table.columns, [row.values for row in table.sample()], fields)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error.detail}") from None
    rows = _Rows(path, table)
    reader = _Reader(rows, found, dict(names or {}), labels, question)
    used_kind = kind or reader.guess_kind()
    if kind is None:
        guesses.append(f"guessed kind: {used_kind} (--kind)")
    examples = reader.read(used_kind)
    if not examples:
        line, reason = rows.refused[0] if rows.refused else (1, "there are no rows")
        raise DatasetError(f"{path}: no row can be used; line {line}: {reason}")
    shared = _shared_labels(examples)
    _check_classes(path, used_kind, examples, found, are_given=labels is not None)
    report = make_report(examples, sorted(rows.refused), shared, rows.num_records)
    notes = (*table.notes, *guesses, *reader.notes)
    return OwnData(str(path), (path,), used_kind, examples[0].task, shared, examples, found, notes, report)


def check_kind(text: str) -> Kind:
    """Raises ValueError."""
    for kind in KINDS:
        if text == kind:
            return kind
    raise ValueError(f"{text}: wanted one of {', '.join(KINDS)}")


class _Rows:
    """The rows of a table that can be read, and (line, reason) of each one that cannot be used."""

    def __init__(self, path: Path, table: Table) -> None:
        self.refused: list[tuple[int, str]] = []
        self.num_records = 0
        self.rows: list[Row] = []
        for row in table.rows():
            self.num_records += 1
            if row.problem:
                self.refused.append((row.line, row.problem))
            else:
                self.rows.append(row)

    def take(self, convert: Callable[[Row], T]) -> list[T]:
        """What `convert` makes of each row. A row for which it raises RecordError is not used, now and later."""
        taken, kept = [], []
        for row in self.rows:
            try:
                taken.append(convert(row))
            except RecordError as error:
                self.refused.append((row.line, str(error)))
            else:
                kept.append(row)
        self.rows = kept
        return taken


class _Reader:
    def __init__(
        self,
        rows: _Rows,
        fields: Fields,
        names: Mapping[str, str],
        labels: Sequence[str] | None,
        question: str | None,
    ) -> None:
        self.notes: list[str] = []
        self._rows = rows
        self._fields = fields
        self._names = names
        self._labels = labels
        self._question = question
        assert fields.text is not None
        self._columns = [fields.text, *([fields.text_pair] if fields.text_pair else [])]
        self._texts = rows.take(lambda row: tuple(text_of(row.values, column) for column in self._columns))

    # guessing

    def guess_kind(self) -> Kind:
        if self._fields.choices is not None:
            return "mrc"
        if self._fields.label is None:
            return "graded"
        column = self._fields.label
        values = [row.values.get(column) for row in self._rows.rows]
        if self._fields.separator is not None or any(
            is_list(value) and len(self._cell(value)) != 1 for value in values
        ):
            return "multi-label"
        given = {label for value in values for label in self._cell(value)}
        if self._are_grades(given):
            return "graded"
        if self._fields.text_pair is not None and not self._names:
            known = {label.lower() for label in given}
            if known <= SAME.keys():
                return "similarity"
            if known <= INFERENCE.keys() | {"-"}:
                return "nli"
        return "classify"

    def _cell(self, value: object) -> tuple[str, ...]:
        """The labels of a cell; none if it cannot be read, which is reported when it is."""
        try:
            return texts_of({"": value}, "", self._fields.separator)
        except RecordError:
            return ()

    def _are_grades(self, labels: Iterable[str]) -> bool:
        given = set(labels)
        if not given or not all(map(_is_number, given)):
            return False
        has_fractions = any(not float(one).is_integer() for one in given)
        return has_fractions or (self._fields.text_pair is not None and len(given) >= MIN_GRADES)

    # reading

    def read(self, kind: Kind) -> list[Example]:
        if kind in ("similarity", "nli") and self._fields.text_pair is None:
            raise DatasetError(f"{kind} compares two texts; name the column of the second with --text-pair")
        if kind == "mrc" and self._fields.choices is None:
            raise DatasetError("mrc chooses among the choices of each row; name their column with --choices")
        match kind:
            case "mrc":
                return self._read_choices()
            case "graded":
                return self._rows.take(self._graded)
            case "multi-label":
                return self._read_several()
            case "similarity":
                return self._rows.take(partial(self._of_pair, "similarity", PAIR_LABELS, SAME))
            case "nli":
                return self._rows.take(partial(self._of_pair, "nli", NLI_LABELS, INFERENCE))
            case _:
                return self._read_classes()

    def _row_texts(self, row: Row) -> tuple[str, ...]:
        return tuple(text_of(row.values, column) for column in self._columns)

    def _label_column(self) -> str:
        if self._fields.label is None:
            raise DatasetError("there is no column of the label; name it with --label")
        return self._fields.label

    def _label(self, row: Row) -> str:
        column = self._label_column()
        found = texts_of(row.values, column, self._fields.separator)
        if len(found) != 1:
            raise RecordError(f"{column} has {len(found)} labels instead of one" if found else f"{column} is empty")
        return self._names.get(found[0], found[0])

    def _several(self, row: Row) -> tuple[str, ...]:
        column = self._label_column()
        if column not in row.values:
            raise RecordError(f"has no {column}")
        return tuple(self._names.get(one, one) for one in texts_of(row.values, column, self._fields.separator))

    def _read_classes(self) -> list[Example]:
        labels = self._classes(self._rows.take(lambda row: (self._label(row),)))
        index_of = {label: index for index, label in enumerate(labels)}

        def convert(row: Row) -> Example:
            answer = self._index(self._label(row), index_of)
            return Example("classify", self._row_texts(row), labels, answer, self._question, line=row.line)

        return self._rows.take(convert)

    def _read_several(self) -> list[Example]:
        labels = self._classes(self._rows.take(self._several))
        index_of = {label: index for index, label in enumerate(labels)}

        def convert(row: Row) -> Example:
            answers = tuple(sorted({self._index(label, index_of) for label in self._several(row)}))
            first = answers[0] if answers else -1
            texts = self._row_texts(row)
            return Example("classify", texts, labels, first, self._question, answers=answers, line=row.line)

        return self._rows.take(convert)

    def _classes(self, given: Iterable[Sequence[str]]) -> tuple[str, ...]:
        if self._labels is not None:
            return tuple(self._labels)
        found = dict.fromkeys(label for labels in given for label in labels)
        if all(map(_is_number, found)):
            return tuple(sorted(found, key=lambda label: (float(label), label)))
        named = [name for name in dict.fromkeys(self._names.values()) if name in found]
        return tuple(dict.fromkeys([*named, *found]))

    def _index(self, label: str, index_of: Mapping[str, int]) -> int:
        if label not in index_of:
            raise RecordError(f"{self._label_column()} is none of the {len(index_of)} classes")
        return index_of[label]

    def _of_pair(self, task: str, labels: tuple[str, ...], spellings: Mapping[str, int], row: Row) -> Example:
        answer = spellings.get(self._label(row).lower())
        if answer is None:
            raise RecordError(f"{self._label_column()} is none of {', '.join(labels)}, nor another spelling of them")
        return Example(task, self._row_texts(row), labels, answer, line=row.line)

    def _graded(self, row: Row) -> Example:
        column = self._fields.score or self._label_column()
        task = "classify" if self._fields.text_pair is None else "similarity"
        return Example(task, self._row_texts(row), (), -1, grade=number_of(row.values, column), line=row.line)

    def _read_choices(self) -> list[Example]:
        rows = [row.values for row in self._rows.rows]
        choices_of, notes = choices_reader(self._fields, list(rows[0]) if rows else [], rows)
        self.notes += notes
        pairs = self._rows.take(lambda row: (choices_of(row.values), self._label(row)))
        find = _answer_finder(pairs, self.notes)

        def convert(row: Row) -> Example:
            choices = choices_of(row.values)
            answer = find(choices, self._label(row))
            if answer is None:
                raise RecordError(f"{self._label_column()} is none of its choices")
            question = self._question
            if self._fields.question is not None:
                question = text_of(row.values, self._fields.question)
            task = "classify" if question is None else "mrc"
            return Example(task, self._row_texts(row), choices, answer, question, line=row.line)

        return self._rows.take(convert)


def choices_reader(
    fields: Fields, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[Callable[[Mapping[str, Any]], tuple[str, ...]], list[str]]:
    """What reads the choices of a row, and a sentence if their separator was guessed from `rows`."""
    names, separator, notes = fields.choice_columns(columns), fields.separator, []
    if len(names) == 1 and separator is None:
        cells = [row.get(names[0]) for row in rows]
        if not any(map(is_list, cells)):
            counts = {one: sum(one in str(cell) for cell in cells) for one in SEPARATORS}
            separator = max(SEPARATORS, key=counts.__getitem__)
            notes.append(f"guessed choices are separated by {separator!r} (--separator)")

    def read(values: Mapping[str, Any]) -> tuple[str, ...]:
        found = [choice for name in names for choice in texts_of(values, name, separator)]
        if len(set(found)) < 2:
            raise RecordError("has fewer than two different choices")
        return tuple(found)

    return read, notes


def _answer_finder(
    pairs: Sequence[tuple[tuple[str, ...], str]], notes: list[str]
) -> Callable[[tuple[str, ...], str], int | None]:
    """How the answers are given: as the text of a choice, as a letter, or as a number from 0 or from 1."""

    def by_text(choices: tuple[str, ...], answer: str) -> int | None:
        return choices.index(answer) if answer in choices else None

    def by_letter(choices: tuple[str, ...], answer: str) -> int | None:
        index = "ABCDEFGH".find(answer.upper()) if len(answer) == 1 else -1
        return index if 0 <= index < len(choices) else None

    def by_number(start: int, choices: tuple[str, ...], answer: str) -> int | None:
        index = int(answer) - start if answer.isdecimal() else -1
        return index if 0 <= index < len(choices) else None

    ways: dict[str, Callable[[tuple[str, ...], str], int | None]] = {
        "the text of a choice": by_text,
        "a letter": by_letter,
        "a number from 0": partial(by_number, 0),
        "a number from 1": partial(by_number, 1),
    }
    fits = {name: sum(way(*pair) is not None for pair in pairs) for name, way in ways.items()}
    best = max(ways, key=fits.__getitem__)
    if best != "the text of a choice":
        notes.append(f"guessed the answer is {best}")
    return ways[best]


def _shared_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    first = examples[0].options
    return first if all(example.options == first for example in examples) else ()


def _check_classes(path: Path, kind: Kind, examples: Sequence[Example], fields: Fields, *, are_given: bool) -> None:
    if kind not in ("classify", "multi-label") or are_given:
        return
    labels = examples[0].options
    if len(labels) < 2:
        found = repr(labels[0]) if labels else "empty"
        raise DatasetError(f"{path}: every label is {found}; at least two classes are needed")
    if len(labels) > MAX_CLASSES or (len(examples) > 20 and len(labels) * 2 > len(examples)):
        raise DatasetError(
            f"{path}: column {fields.label!r} has {len(labels)} different values in {len(examples)} rows, which are no "
            "classes; name another column with --label"
        )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,15}(\.\d+)?", text) is not None
