"""Text models with a small vocabulary, so that tests can write rows by hand, and outputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from service.checkpoints.heads import Activation, Head
from service.checkpoints.sentence_modules import EmbeddingSpec
from service.checkpoints.shape import Kind
from service.domain import Encoding, Output
from service.tasks.blend import Blend, Logistic, Logistics
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import SPECIAL, build_tokenizer

BLEND = Blend(
    model="e",
    templates=("{}", "为{}"),
    temperature=0.5,
    choice_weight=1.0,
    choice_power=0.0,
    prior_weight=1.0,
    same_cosine=1.1,
    multi_label=Logistics(Logistic(0.0, 1.0, 1.0), Logistic(1.0, 2.0)),
    similarity=Logistics(Logistic(-1.0, 3.0, 2.0), Logistic(-2.0, 5.0)),
    background=np.asarray([0.0, 0.5], dtype=np.float32),
)
PAD, UNK, CLS, SEP, MASK = range(5)
YES, NO = 5, 6
LETTERS = "甲乙丙丁戊己庚辛壬癸"
"""The letters have ids 7 to 16."""

WORDS = (
    "[",
    "]",
    "mask",
    "sep",
    "cls",
    "word",
    "##s",
    "不",
    "可",
    "能",
    "以",
    "理",
    "解",
    "为",
    "很",
    "难",
    "推",
    "断",
    "出",
    "：",
)
VOCAB = {token: index for index, token in enumerate((*SPECIAL, "是", "非", *LETTERS, *WORDS))}


def text_model(
    kind: Kind = "masked-lm",
    *,
    name: str = "m",
    labels: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    max_length: int = 512,
    yes: int | None = YES,
    head: Head | None = None,
    embedding: EmbeddingSpec | None = None,
    source: str = "",
) -> TextModel:
    return TextModel(
        name,
        kind,
        labels,
        tasks,
        max_length,
        build_tokenizer(VOCAB, {}),
        cls=CLS,
        sep=SEP,
        mask=MASK,
        yes=yes,
        no=NO,
        hidden_size=8,
        head=head,
        embedding=embedding,
        source=source,
    )


def head(
    *labels: str,
    name: str = "m",
    tasks: tuple[str, ...] = (),
    max_length: int = 512,
    num_classes: int = 2,
    activation: Activation = "softmax",
) -> TextModel:
    """A classifier; without labels one of `num_classes` classes without names."""
    return text_model(
        "sequence-classification",
        name=name,
        labels=labels,
        tasks=tasks,
        max_length=max_length,
        head=Head(len(labels) or num_classes, activation=activation),
    )


def embedder(name: str = "m", kind: Kind = "encoder", **changes: Any) -> TextModel:
    """An embedding model, which pools the first token of texts of up to 512 tokens unless `changes` say otherwise."""
    spec = EmbeddingSpec(("cls",), normalize=False, dimensions=8, max_length=512)
    return text_model(kind, name=name, tasks=("embed",), embedding=replace(spec, **changes))


def matcher(name: str = "e", kind: Kind = "encoder", *, blend: Blend = BLEND, **changes: Any) -> TextModel:
    """An embedding model that can match texts with labels."""
    return replace(embedder(name, kind, **changes), blend=blend)


def ids(text: str) -> list[int]:
    """The ids of a text of single characters."""
    return [VOCAB[character] for character in text]


def letters(count: int) -> str:
    """A text of `count` tokens in which neighbouring tokens differ, so that every cut is visible."""
    return (LETTERS * (count // len(LETTERS) + 1))[:count]


def lists(row: Encoding) -> tuple[list[int], list[int], list[int]]:
    """Ids, segment ids and positions."""
    return row.ids.tolist(), row.segment_ids.tolist(), row.positions.tolist()


def logits(*values: float) -> Output:
    """The output of a classification head: [1, num_labels]."""
    return Output(np.asarray([values], dtype=np.float32))


def yes_no(*pairs: tuple[float, float]) -> Output:
    """The output for UniMC: the logits of yes and no at each option, [num_options, 2]."""
    return Output(np.asarray(pairs, dtype=np.float32))


def log(*probabilities: float) -> list[float]:
    """Logits whose softmax equals `probabilities`."""
    return np.log(probabilities).tolist()


def yes_of(probabilities: Sequence[float]) -> Output:
    """A UniMC output whose softmax over the options equals `probabilities`; the logits of no must not matter."""
    return yes_no(*((value, 7.0 * index) for index, value in enumerate(log(*probabilities))))
