"""Sets of labels for an embedding model: their rows and vectors, made once for each set that comes again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from service.domain import Encoding, Output
from service.tasks.labels import LabelList

MAX_ROWS = 16_384
MAX_CHARS = 8192
"""A longer set of labels is not held: its strings would be kept, too."""


@dataclass(slots=True, eq=False)
class LabelRows:
    """The rows of a set of labels, and its vectors with the outputs that they were made of."""

    rows: list[Encoding]
    _made: tuple[list[Output], NDArray[np.float64]] | None = None

    def vectors(
        self, outputs: Sequence[Output], make: Callable[[Sequence[Output]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """What `make` makes of the outputs; made again unless they are the very same: cached ones may be dropped."""
        made = self._made
        if made is None or len(made[0]) != len(outputs) or not all(map(is_, made[0], outputs)):
            made = self._made = (list(outputs), make(outputs))
        return made[1]


class LabelRowsCache:
    """The sets of labels that were used last, of at most MAX_ROWS rows together. Used by several threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[LabelList, LabelRows] = OrderedDict()
        self._num_rows = 0
        self._lock = Lock()

    def get(self, labels: LabelList) -> LabelRows | None:
        with self._lock:
            if labels in self._held:
                self._held.move_to_end(labels)
            return self._held.get(labels)

    def put(self, labels: LabelList, made: LabelRows) -> None:
        if sum(map(len, labels.names)) > MAX_CHARS:
            return
        with self._lock:
            if labels not in self._held:
                self._held[labels] = made
                self._num_rows += len(made.rows)
            while self._num_rows > MAX_ROWS:
                self._num_rows -= len(self._held.popitem(last=False)[1].rows)
