"""Labels of a request or of a stored set: their names, descriptions and examples, and what tells two lists apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Label:
    """`description` says what the name means; `examples` are texts that have the label."""

    name: str
    description: str | None = None
    examples: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """What a choice model reads of the label."""
        return self.name if self.description is None else f"{self.name}：{self.description}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelList:
    """Labels in the order of the client. What is made of them is kept under `key`, the same for equal lists.

    A stored set has one list for all of its requests, so its key is computed once.
    """

    labels: tuple[Label, ...] = ()
    names: tuple[str, ...] = field(init=False)
    options: tuple[str, ...] = field(init=False)
    key: bytes = field(init=False)
    trees: dict[str, Any] = field(init=False, default_factory=dict)
    """The hierarchies of the labels, by separator; see `hierarchy`."""
    _num_texts: int = field(init=False, default=-1)
    _sizes: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        names = tuple([label.name for label in self.labels])
        is_plain = not any(label.description or label.examples for label in self.labels)
        content: object = names if is_plain else [(each.name, each.description, each.examples) for each in self.labels]
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "options", names if is_plain else tuple([label.option for label in self.labels]))
        object.__setattr__(self, "key", blake2b(repr(content).encode(), digest_size=16).digest())

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Labels without descriptions and examples."""
        return cls(tuple([Label(name) for name in names]))

    @classmethod
    def worded(cls, names: Iterable[str], options: Sequence[str]) -> Self:
        """Labels that a choice model reads as `options`, in the same order."""
        made = cls.of(names)
        object.__setattr__(made, "options", tuple(options))
        object.__setattr__(made, "key", blake2b(repr((made.names, made.options)).encode(), digest_size=16).digest())
        return made

    @property
    def num_texts(self) -> int:
        """Names, descriptions and examples."""
        if self._num_texts < 0:
            described = sum([each.description is not None for each in self.labels])
            count = len(self.labels) + described + sum([len(each.examples) for each in self.labels])
            object.__setattr__(self, "_num_texts", count)
        return self._num_texts

    def name_bytes(self, count: int | None = None) -> int:
        """Bytes of the `count` longest names in UTF-8, or of all."""
        if not self._sizes and self.labels:
            self._sizes.extend(accumulate(sorted([len(name.encode()) for name in self.names], reverse=True)))
        last = len(self.names) if count is None else min(count, len(self.names))
        return self._sizes[last - 1] if last else 0

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelList) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


NO_LABELS = LabelList()
