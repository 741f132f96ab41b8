"""Wordings of a choice (UniMC): the question, and how a class becomes an option."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingError
from service.host import install_command
from service.tasks.unimc import Choice
from service.tools.data.converters import Example
from service.tools.data.registry import base_name, is_known

Profile = Literal["mini", "upstream"]
SLOT = "{label}"
MINI = ("mini", "e5-small")
"""Models that are asked as `mini` was trained; others are asked as upstream asks."""
WORDED_BY_SERVICE = ("similarity", "nli")
_CLAUSE_ENDS = re.compile(r"[。！？?,，]")
_COMMAS = re.compile(r"[,，]")
MAX_CLAUSES = 400
"""Characters of the options, joined by dots, above which upstream takes the bare idioms."""
MAX_CONTEXT = 512
"""Characters of options and text together, which upstream cuts around the blank."""


class Wording(BaseModel):
    """How the examples of one data set are worded; see wordings.toml for the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str | None = None
    template: str = SLOT
    words: dict[str, str] = {}
    rewrite: tuple[tuple[str, str], ...] = ()
    clause: str = Field("", description="the mark of a blank, whose clause becomes the options")
    texts: Literal["", "upstream"] = Field("", description="upstream: the texts as the authors mark or fill them")
    order: Literal["", "reversed", "words"] = Field("", description="of the options: that of `words`, or reversed")
    keywords: int = Field(0, ge=0, description="words of the text, the most typical ones, that stand before it")
    halve: bool = Field(False, description="halve all options of a row until they fit, as upstream does")

    def option_of(self, label: str) -> str:
        option = self.template.replace(SLOT, self.words.get(label, label))
        for pattern, replacement in self.rewrite:
            option = re.sub(pattern, replacement, option)
        return option

    def options_of(self, labels: Sequence[str]) -> tuple[str, ...]:
        """
        Raises:
            SettingError: two classes become the same option.
        """
        options = tuple(map(self.option_of, labels))
        if len(set(options)) < len(set(labels)):
            first = next(option for option in options if options.count(option) > 1)
            raise SettingError(f"label words: two classes become the option {first!r}; give each a word of its own")
        return options

    def question_of(self, example: Example) -> str | None:
        """The question of this wording, else the one of the example; an empty one means none."""
        return (example.question if self.question is None else self.question) or None

    def arrange(self, example: Example) -> Example:
        """The example with its options in the order of this wording; apply it once."""
        if not self.order or example.task in WORDED_BY_SERVICE:
            return example
        places = list(range(len(example.options)))
        if self.order == "reversed":
            places.reverse()
        else:
            rank = {label: index for index, label in enumerate(self.words)}
            places.sort(key=lambda place: rank.get(example.options[place], len(rank)))
        return with_options(example, tuple(example.options[place] for place in places))

    def word(self, example: Example) -> Example:
        """An arranged example with the options, texts and question of this wording."""
        if example.task in WORDED_BY_SERVICE:
            return example
        texts = example.texts
        if self.texts == "upstream" and example.forms.upstream:
            texts = example.forms.upstream
        if self.keywords:
            texts = (f"{'、'.join(typical_words(texts[0], self.keywords))}。{texts[0]}", *texts[1:])
        if self.clause and self.clause in texts[0]:
            options, texts = _fill_clause(texts[0], self.clause, example.options)
        else:
            options = self.options_of(example.options)
        return replace(example, options=options, texts=texts, question=self.question_of(example))

    def choice_of(self, example: Example) -> Choice:
        """The choice of an arranged example."""
        if example.task in WORDED_BY_SERVICE:
            return example.as_choice()
        worded = self.word(example)
        return Choice(worded.options, worded.texts, worded.question)


def with_options(example: Example, options: tuple[str, ...]) -> Example:
    """The example with the same options in another order, or with more of them."""
    index = [options.index(option) for option in example.options]
    answers = None if example.answers is None else tuple(index[answer] for answer in example.answers)
    answer = index[example.answer] if example.answer >= 0 else example.answer
    return replace(example, options=options, answer=answer, answers=answers)


def as_head(example: Example) -> Example:
    """The example as a classifier reads it: its classes, and texts that hold what the options do."""
    if not example.forms.labels:
        return example
    return replace(example, texts=example.forms.head, options=example.forms.labels)


def typical_words(text: str, count: int) -> list[str]:
    """The words of a text with the highest TF-IDF, as upstream takes them from jieba.

    Raises:
        SettingError: jieba is not installed.
    """
    try:
        analyse = import_module("jieba.analyse")
    except ImportError:
        raise SettingError(
            "the authors' wording of CSL puts jieba's keywords before the abstract: "
            f"{install_command('-r requirements/tuning.txt')}, or choose --wording mini"
        ) from None
    return list(analyse.extract_tags(text, topK=count))


def halve(options: Sequence[str], count: Callable[[Sequence[str]], int], limit: int) -> tuple[str, ...]:
    """The options, all cut to half their characters until they take at most `limit` tokens, as upstream does.

    Options that are cut to nothing do not fit, and are returned as they are.
    """
    shorter = tuple(options)
    while count(shorter) > limit:
        shorter = tuple(option[: len(option) // 2] for option in shorter)
        if not any(shorter):
            return tuple(options)
    return shorter


def _fill_clause(text: str, mark: str, candidates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The clause around the mark with each candidate, and the text before and after it.

    Source: upstream's examples/clue1.1/data_preprocessing/chid_preprocessing.py, with its lengths in characters.
    """
    clauses = _clauses(text)
    at = next(index for index, clause in enumerate(clauses) if mark in clause)
    before, clause, after = "".join(clauses[:at]), clauses[at], "".join(clauses[at + 1 :])
    options = tuple(clause.replace(mark, each, 1) for each in candidates)
    if len(".".join(options)) > MAX_CLAUSES:
        options = tuple(candidates)
        first, _, second = clause.partition(mark)
        before, after = before + first, second + after
    room = MAX_CONTEXT - len(".".join(options))
    if len(before) + len(after) > room:
        before, after = _around(before, after, room)
    return options, (before, after) if after else (before,)


def _clauses(text: str) -> list[str]:
    """A text of one sentence at most is cut at its commas only."""
    ends = [end.end() for end in _CLAUSE_ENDS.finditer(text)]
    if len(ends) <= 1:
        ends = [end.end() for end in _COMMAS.finditer(text)]
    return [text[start:end] for start, end in pairwise((0, *ends, len(text))) if end > start]


def _around(before: str, after: str, room: int) -> tuple[str, str]:
    """The end of one text and the start of the other, alike long where both are long enough."""
    first = second = 0
    while first + second < room:
        first, second = min(first + 1, len(before)), min(second + 1, len(after))
    return before[len(before) - first :], after[:second]


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("wordings.toml").read_text(encoding="utf-8")
    return {profile: dict(tasks) for profile, tasks in tomllib.loads(text).items()}


def wording_of(task: str, profile: Profile) -> Wording:
    """The wording of a data set in a profile; that of the converter where the table has none. A file is worded by its
    own labels in any profile."""
    if not is_known(task):
        return Wording()
    return Wording.model_validate({"halve": profile == "upstream"} | _table()[profile].get(base_name(task), {}))


def profile_of(*names: str) -> Profile:
    """mini reads the wordings that it was trained with, other models those of the authors."""
    return "mini" if any(name.lower() in MINI for name in names) else "upstream"


def make_wording(base: Wording, *, question: str | None, template: str | None, words: Path | None) -> Wording:
    """The wording with what the flags set.

    Raises:
        SettingError: the template has no {label}, or the file of words is not one.
    """
    if template is not None and SLOT not in template:
        raise SettingError(f"--template {template}: wanted a text with {SLOT} where the class stands")
    changes: dict[str, Any] = {}
    if question is not None:
        changes["question"] = question
    if template is not None:
        changes |= {"template": template, "rewrite": (), "clause": "", "texts": "", "keywords": 0}
    if words is not None:
        changes["words"] = read_words(words)
    return base.model_copy(update=changes)


def read_words(path: Path) -> dict[str, str]:
    """The words of the classes: a JSON object, or lines of CLASS=WORD.

    Raises:
        SettingError: the file cannot be read or has another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--label-words {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    try:
        if text.lstrip().startswith("{"):
            return Wording.model_validate({"words": json.loads(text)}).words
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {key.strip(): word.strip() for key, word in (line.split("=", 1) for line in lines)}
    except (ValueError, ValidationError):
        raise SettingError(f"--label-words {path}: wanted a JSON object, or lines of CLASS=WORD") from None
