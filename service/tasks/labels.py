"""Labels of a request or of a stored set: their names, descriptions and examples, and what tells two lists apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class LabelList:
    """Labels in the order of the client. What is made of them is kept under `key`, the same for equal lists.

    A stored set has one list for all of its requests, so what follows from it is computed once.
    """

    labels: tuple[Label, ...] = ()
    wording: tuple[str, ...] = ()
    """What a choice model reads instead of the labels' own options."""
    names: tuple[str, ...] = field(init=False)
    trees: dict[str, Any] = field(init=False, default_factory=dict)
    """The hierarchies of the labels, by separator; see `hierarchy`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple([label.name for label in self.labels]))

    @classmethod
    def of(cls, names: Iterable[str], wording: Sequence[str] = ()) -> Self:
        """Labels without descriptions and examples."""
        return cls(tuple([Label(name) for name in names]), tuple(wording))

    @cached_property
    def options(self) -> tuple[str, ...]:
        return self.wording or tuple([label.option for label in self.labels])

    @cached_property
    def key(self) -> bytes:
        content = [(each.name, each.description, each.examples) for each in self.labels]
        return blake2b(repr((content, self.wording)).encode(), digest_size=16).digest()

    @cached_property
    def num_texts(self) -> int:
        """Names, descriptions and examples."""
        described = sum([each.description is not None for each in self.labels])
        return len(self.labels) + described + sum([len(each.examples) for each in self.labels])

    @cached_property
    def _longest(self) -> list[int]:
        """Bytes of the longest name, of the two longest names, and so on."""
        return list(accumulate(sorted([len(name.encode()) for name in self.names], reverse=True)))

    def name_bytes(self, count: int | None = None) -> int:
        """Bytes of the `count` longest names in UTF-8, or of all."""
        last = len(self.labels) if count is None else min(count, len(self.labels))
        return self._longest[last - 1] if last else 0

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelList) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


NO_LABELS = LabelList()
