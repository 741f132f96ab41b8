"""Wordings of a choice (UniMC): the question, and how a class becomes an option."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingError
from service.tasks.unimc import Choice
from service.tools.data.converters import Example

Profile = Literal["mini", "upstream"]
SLOT = "{label}"
WORDED_BY_SERVICE = ("similarity", "nli")
_CLAUSE_ENDS = re.compile(r"[。！？?,，]")


class Wording(BaseModel):
    """How the examples of one data set are worded; see wordings.toml for the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str | None = None
    template: str = SLOT
    words: dict[str, str] = {}
    rewrite: tuple[tuple[str, str], ...] = ()
    clause: str = Field("", description="the mark of a blank, whose clause becomes the options")

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

    def choice_of(self, example: Example) -> Choice:
        if example.task in WORDED_BY_SERVICE:
            return example.as_choice()
        question = self.question_of(example)
        if self.clause and len(example.texts) == 1 and self.clause in example.texts[0]:
            options, texts = _fill_clause(example.texts[0], self.clause, example.options)
            return Choice(options, texts, question)
        return Choice(self.options_of(example.options), example.texts, question)


def _fill_clause(text: str, mark: str, candidates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The clause around the mark with each candidate, and the text before and after it. Source: upstream's CHID."""
    at = text.index(mark)
    before = [end.end() for end in _CLAUSE_ENDS.finditer(text, 0, at)]
    start = before[-1] if before else 0
    after = _CLAUSE_ENDS.search(text, at)
    end = after.end() if after else len(text)
    clause = text[start:end]
    rest = tuple(part for part in (text[:start], text[end:]) if part.strip())
    # A row needs a text: of a text that is one clause, the clause with its blank remains.
    return tuple(clause.replace(mark, each, 1) for each in candidates), rest or (text,)


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("wordings.toml").read_text(encoding="utf-8")
    return {profile: dict(tasks) for profile, tasks in tomllib.loads(text).items()}


def wording_of(task: str, profile: Profile) -> Wording:
    """The wording of a data set in a profile; that of the converter where the table has none."""
    return Wording.model_validate(_table()[profile].get(task.rpartition("/")[2], {}))


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
        changes |= {"template": template, "rewrite": (), "clause": ""}
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
