"""The rows of labels for an embedding model: their texts, and what is made of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np

from service.domain import Encoding, Output, keep
from service.tasks.blend import Numbers
from service.tasks.embedding import choose_prompt, encode_texts, unit_vectors
from service.tasks.label_vectors import LabelVectors
from service.tasks.labels import LabelList
from service.tasks.text_model import TextModel

MAX_LABEL_TOKENS = 64
MAX_LABEL_CHARS = 512
"""What an embedding model reads of a label's name: it does so once for each template, so long labels would cost as much
as many texts."""
MAX_EXAMPLE_TOKENS = 128
"""What it reads of a description and of an example."""
DESCRIPTION_WEIGHT = 1 / 3
"""Of a label's vector. Of label sets that no data set names, 75.8 % right instead of 68.2 % without descriptions; with
`name：description` as one more template 69.7 %. On TNEWS no loss."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """The kept rows of a list of labels: `counts` of each label, one label after the other, then one row of each
    different example. `pairs` has each label with each of its examples, by their numbers."""

    model: TextModel
    rows: list[Encoding]
    counts: list[int]
    pairs: list[tuple[int, int]]

    def vectors(self, outputs: Sequence[Output]) -> LabelVectors:
        assert self.model.blend is not None, "an embedding model is loaded with a blend"
        num_rows = sum(self.counts)
        starts = np.cumsum([0, *self.counts[:-1]])
        texts = unit_vectors(outputs[:num_rows])
        labels = np.add.reduceat(texts * self._weights()[:, None], starts, axis=0)
        examples = unit_vectors(outputs[num_rows:]) if len(outputs) > num_rows else np.empty((0, texts.shape[1]))
        owners, used = np.asarray(self.pairs, dtype=np.int64).reshape(-1, 2).T
        return LabelVectors(labels, examples[used], owners, self.model.blend, find_same(self.keys()))

    def _weights(self) -> Numbers:
        """What each row counts in the vector of its label: the name's templates the same, the description its part."""
        num_templates = len(_templates(self.model))
        named = np.full(num_templates, 1.0 / num_templates)
        described = np.append((1.0 - DESCRIPTION_WEIGHT) * named, DESCRIPTION_WEIGHT)
        return np.concatenate([named if count == num_templates else described for count in self.counts])

    def keys(self) -> list[bytes]:
        """For each label, what is the same for labels with the same rows."""
        kept = [row.kept_as or b"" for row in self.rows]
        ends = np.cumsum(self.counts).tolist()
        return [b"".join(kept[end - count : end]) for end, count in zip(ends, self.counts, strict=True)]

    @classmethod
    def of(cls, model: TextModel, labels: LabelList, rows: list[Encoding]) -> Self:
        """The rows of these labels, as `encode_labels` made them."""
        num_templates = len(_templates(model))
        examples: dict[str, int] = {}
        pairs = [
            (index, examples.setdefault(example, len(examples)))
            for index, label in enumerate(labels.labels)
            for example in label.examples
        ]
        return cls(model, rows, [num_templates + (label.description is not None) for label in labels.labels], pairs)


def find_same(keys: Sequence[bytes]) -> tuple[int, int] | None:
    """Two labels whose rows are the same, by their `LabelRows.keys`."""
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        if first.setdefault(key, index) != index:
            return first[key], index
    return None


def encode_labels(model: TextModel, labels: LabelList) -> LabelRows:
    """The rows of these labels, which are kept."""
    templates = _templates(model)
    prompt = choose_prompt(model)
    names = [name[:MAX_LABEL_CHARS] for name in labels.names]
    texts = [template.replace("{}", name) for name in names for template in templates]
    named = encode_texts(model, texts, prompt=prompt, max_length=MAX_LABEL_TOKENS)
    about = [label.description for label in labels.labels if label.description is not None]
    described = iter(encode_texts(model, about, prompt=prompt, max_length=MAX_EXAMPLE_TOKENS) if about else ())
    rows: list[Encoding] = []
    for index, label in enumerate(labels.labels):
        rows += named[index * len(templates) : (index + 1) * len(templates)]
        rows += [] if label.description is None else [next(described)]
    if examples := list(dict.fromkeys(chain.from_iterable(label.examples for label in labels.labels))):
        rows += encode_texts(model, examples, prompt=prompt, max_length=MAX_EXAMPLE_TOKENS)
    return LabelRows.of(model, labels, [keep(row) for row in rows])


def _templates(model: TextModel) -> tuple[str, ...]:
    return model.blend.templates if model.blend else ("{}",)
