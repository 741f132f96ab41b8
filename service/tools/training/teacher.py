"""A simple teacher: naive Bayes over the character n-grams of labelled texts. It labels plain texts of the same kind.

A few hundred titles a class are soon known by heart; thousands more, labelled by what their characters say, are not. Of
the texts only those are kept of which the teacher is surest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from service.domain import FloatArray
from service.tools.data.converters import Example

SMOOTHING = 0.5
NGRAM_SIZES = (1, 2)


class Teacher:
    """Learns from examples of one text and one list of options."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._example = examples[0]
        grams = sorted({gram for example in examples for gram in ngrams(example.texts[0])})
        self._columns = {gram: column for column, gram in enumerate(grams)}
        counts = np.full((len(self._example.options), len(grams)), SMOOTHING)
        classes = np.ones(len(counts))
        for example in examples:
            classes[example.answer] += 1
            counts[example.answer, self._known(example.texts[0])] += 1
        self._gram_scores = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        self._class_scores = np.log(classes / classes.sum()).astype(np.float32)

    def scores(self, text: str) -> FloatArray:
        """Log probabilities of the options, up to a constant, shape [num_options]."""
        scores: FloatArray = self._class_scores + self._gram_scores[:, self._known(text)].sum(axis=1)
        return scores

    def label(self, texts: Sequence[str], keep: float) -> list[Example]:
        """The share `keep` of the texts with the widest margin between the best option and the next, in their order."""
        scores = np.stack([self.scores(text) for text in texts])
        best = np.sort(scores, axis=1)
        margins = best[:, -1] - best[:, -2]
        sure = np.sort(np.argsort(-margins, kind="stable")[: int(keep * len(texts))])
        answers = scores.argmax(axis=1)
        return [replace(self._example, texts=(texts[row],), answer=int(answers[row])) for row in sure]

    def _known(self, text: str) -> list[int]:
        return [self._columns[gram] for gram in sorted(set(ngrams(text))) if gram in self._columns]


def ngrams(text: str) -> Iterator[str]:
    lowered = text.lower()
    for size in NGRAM_SIZES:
        yield from (lowered[start : start + size] for start in range(len(lowered) - size + 1))
