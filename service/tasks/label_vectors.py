"""The vectors of lists of labels, which an embedding model makes once for each list that comes again.

The vector of a label is the mean over its name in each template and, where it has one, the vector of its description.
Its examples have vectors of their own, and move it (`examples`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tasks.blend import Blend, Indexes, Numbers
from service.tasks.examples import Learned, learn
from service.tasks.labels import LabelList

DEFAULT_BYTES = 256 * 2**20
FEW_LABELS = 256
"""The vectors of more labels are kept in single precision."""

Vectors = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class LabelVectors:
    """The vectors of the labels, shape [num_labels, dimensions], those of all examples, and the label of each example.

    `same` are two labels that are the same to the model, if there are any. What the examples teach is computed once,
    when it is first needed.
    """

    labels: Vectors
    examples: Vectors
    owners: Indexes
    blend: Blend
    same: tuple[int, int] | None = None
    _learned: Learned | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if len(self.labels) > FEW_LABELS:
            object.__setattr__(self, "labels", self.labels.astype(np.float32))
            object.__setattr__(self, "examples", self.examples.astype(np.float32))

    @property
    def learned(self) -> Learned:
        if self._learned is None:
            object.__setattr__(self, "_learned", learn(self.labels, self.examples, self.owners, self.blend))
        assert self._learned is not None
        return self._learned

    @property
    def are_same(self) -> bool:
        """Whether neither the labels nor their examples can be told apart by their vectors."""
        return self.learned.are_same

    @property
    def num_bytes(self) -> int:
        moved = 0 if self.learned.vectors is self.labels else self.learned.vectors.nbytes
        return int(self.labels.nbytes + self.examples.nbytes + moved)

    def scores(self, texts: Numbers) -> Numbers:
        """How much closer each text is to each label than any text is, shape [num_texts, num_labels]."""
        return np.asarray(self.learned.scores(texts.astype(self.labels.dtype)), dtype=np.float64)


def join(parts: Sequence[LabelVectors], same: tuple[int, int] | None) -> LabelVectors:
    """The vectors of a list from those of its parts, one after the other."""
    first_labels = np.cumsum([0, *[len(part.labels) for part in parts[:-1]]])
    return LabelVectors(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.examples for part in parts]),
        np.concatenate([part.owners + first for part, first in zip(parts, first_labels, strict=True)]),
        parts[0].blend,
        same,
    )


class LabelVectorsCache:
    """The vectors of the lists that were used last, of at most `max_bytes` together. Used by several threads.

    `clear` drops all, because a device was found to compute wrong numbers; `generation` counts how often. Vectors of an
    earlier generation are not put in.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.generation = 0
        self._held: OrderedDict[LabelList, LabelVectors] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def get(self, labels: LabelList) -> LabelVectors | None:
        with self._lock:
            found = self._held.get(labels)
            if found is not None:
                self._held.move_to_end(labels)
            return found

    def put(self, labels: LabelList, made: LabelVectors, generation: int) -> None:
        num_bytes = made.num_bytes
        with self._lock:
            if generation != self.generation or num_bytes > self.max_bytes:
                return
            if labels not in self._held:
                self._held[labels] = made
                self._num_bytes += num_bytes
            while self._num_bytes > self.max_bytes:
                self._num_bytes -= self._held.popitem(last=False)[1].num_bytes

    def clear(self) -> None:
        with self._lock:
            self.generation += 1
            self._held.clear()
            self._num_bytes = 0
