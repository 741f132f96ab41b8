"""How the examples of a data set are put to a served model: by its labels, as its classifier reads them, or worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.tools.data.converters import Example
from service.tools.evaluation import Answer
from service.tools.training.wordings import Wording, as_head, with_options


@dataclass(frozen=True, slots=True)
class Asked:
    """An example as it is sent. `names` are the options of the data set in the order of the options that are sent."""

    original: Example
    sent: Example
    names: tuple[str, ...]

    def index(self, answer: Answer) -> int | None:
        """The chosen option, as the data set orders them; None if the input was refused."""
        if answer.chosen is None:
            return None
        return self.original.options.index(self.names[self.sent.options.index(answer.chosen)])


def put(examples: Sequence[Example], info: dict[str, Any] | None, wording: Wording) -> tuple[list[Asked], bool]:
    """The examples as this model is asked, and whether it answers with its own labels.

    `info` is the entry of /v1/models of a model with labels of its own, else None.
    """
    labels = tuple(info["labels"]) if info is not None else ()
    first = examples[0]
    if labels and set(labels) == set(first.forms.labels):
        return [Asked(one, as_head(one), one.options) for one in examples], True
    if first.grade is not None and returns_number(info):
        return [Asked(one, replace(one, task="classify"), ()) for one in examples], True
    is_zero_shot = info is None or bool(info.get("zero_shot"))
    if first.task == "classify" and labels and (set(first.options) & set(labels) or not is_zero_shot):
        all_labels = tuple(dict.fromkeys((*labels, *first.options)))
        own = [with_options(one, all_labels) for one in examples]
        return [Asked(one, each, each.options) for one, each in zip(examples, own, strict=True)], True
    arranged = [wording.arrange(one) for one in examples]
    asked = [
        Asked(one, sendable(wording.word(each)), each.options) for one, each in zip(examples, arranged, strict=True)
    ]
    return asked, first.task == "classify" and not is_zero_shot


def returns_number(info: dict[str, Any] | None) -> bool:
    """Whether a model grades texts: its head has one output, whose label, if it has one, is the name of the grade."""
    return info is not None and (info.get("head") or {}).get("num_classes") == 1


def sendable(example: Example) -> Example:
    """The example in a form that the API takes: no empty text, and a choice without a question is a classification.

    A row of upstream has a second [SEP] in the place of an empty text; here the text is left out.
    """
    if example.task not in ("classify", "mrc"):
        return example
    texts = tuple(text for text in example.texts if text.strip()) or (example.options[0],)
    is_reading = example.task == "mrc" and bool(example.question) and len(texts) == 1
    return replace(example, texts=texts, task="mrc" if is_reading else "classify")
