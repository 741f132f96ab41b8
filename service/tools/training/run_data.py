"""The examples of a run: a file or a task, with its dev set, as the flags select them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tools.data.converters import Example
from service.tools.data.own import OwnData
from service.tools.data.registry import held_out, load
from service.tools.data.source import is_file, load_source
from service.tools.data.splits import cross_fold, k_shot, limit, split, without_overlap
from service.tools.training.wordings import Wording, as_head, with_options

HELD_OUT = "held-out"
"""The dev examples of the other folds."""
SPLIT_SEED = 0
"""Of the dev set: runs of different seeds are measured on the same examples."""
SMALL, SMALL_SHARE, LARGE_SHARE = 1000, 0.2, 0.1
"""The default share of the dev set, of data with less examples than SMALL and of larger data."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken of the data. `fold` is FewCLUE's for a task, "INDEX/COUNT" for a file."""

    source: str
    data: Path | None = None
    dev: str | None = None
    dev_share: float | None = None
    fold: str | None = None
    k_shot: int | None = None
    limit: int | None = None
    test: str | None = None
    """What the finished run is measured on besides the dev set: a split of the task, or HELD_OUT."""


@dataclass(frozen=True, slots=True)
class RunData:
    """`train` and `dev` are the examples of a run, `read` what was read, `notes` are sentences for the user."""

    read: OwnData
    train: list[Example]
    dev: list[Example]
    notes: tuple[str, ...]
    test: list[Example] = field(default_factory=list)

    @property
    def has_head_form(self) -> bool:
        """Whether examples with options of their own have another encoding for a classifier."""
        return bool(self.read.examples[0].forms.labels)

    def arranged(self, wording: Wording) -> RunData:
        """With the options of all examples in the order of a wording."""
        return self._with(wording.arrange)

    def for_head(self) -> RunData:
        """As a classifier reads it: data whose options hold a part of the input become texts with shared classes."""
        return self._with(as_head)

    def _with(self, change: Callable[[Example], Example]) -> RunData:
        examples = list(map(change, self.read.examples))
        shared = examples[0].options
        labels = shared if all(example.options == shared for example in examples) else ()
        kind = "classify" if labels and not self.read.labels else self.read.kind
        counts = Counter(example.answer for example in examples)
        report = self.read.report
        if labels:
            report = replace(report, class_counts={label: counts[index] for index, label in enumerate(labels)})
        read = replace(self.read, examples=examples, labels=labels, kind=kind, report=report)
        train, dev, test = (list(map(change, part)) for part in (self.train, self.dev, self.test))
        return RunData(read, train, dev, self.notes, test)


def read_data(selection: Selection, seed: int, **arguments: Any) -> RunData:
    """
    Raises:
        DatasetError: the data cannot be read, or one of the two sets is empty.
    """
    is_own = is_file(selection.source)
    fold = None if is_own else selection.fold
    read = load_source(selection.source, data=selection.data, split="train", fold=fold, **arguments)
    notes: list[str] = []
    train, dev = _split(selection, read, is_own, notes, arguments)
    train, num_dropped = without_overlap(train, dev)
    if num_dropped:
        notes.append(f"{num_dropped} training examples are in the dev set, too: dropped")
    if selection.k_shot:
        train = k_shot(train, selection.k_shot, seed)
    train = limit(train, selection.limit, seed)
    for name, examples in (("train", train), ("dev", dev)):
        if not examples:
            raise DatasetError(f"{selection.source}: no example is left to {name}; {_what_to_do(name)}")
    _check_classes(read, train)
    test = _read_test(selection)
    sizes = f"train: {len(train)} examples, dev: {len(dev)}"
    notes.append(f"{sizes}, test: {len(test)}" if test else sizes)
    return RunData(read, train, dev, tuple(notes), test)


def _read_test(selection: Selection) -> list[Example]:
    if selection.test is None:
        return []
    if selection.data is None or is_file(selection.source):
        raise DatasetError("--test: is for the tasks of --data")
    if selection.test == HELD_OUT:
        return held_out(selection.source, selection.data, selection.fold)
    test = load(selection.source, selection.data, selection.test)
    if not all(example.is_labelled for example in test):
        raise DatasetError(f"--test {selection.test}: {selection.source} has no answers there")
    return test


def _what_to_do(name: str) -> str:
    return "name a --dev that holds other texts" if name == "train" else "raise --dev-share, or name a --dev file"


def _split(
    selection: Selection, read: OwnData, is_own: bool, notes: list[str], arguments: dict[str, Any]
) -> tuple[list[Example], list[Example]]:
    if selection.dev is not None:
        return read.examples, _read_dev(selection.dev, read, selection.data, arguments)
    if is_own and selection.fold is not None:
        index, count = _parse_fold(selection.fold)
        return cross_fold(read.examples, index, count, SPLIT_SEED)
    if not is_own:
        try:
            dev = load_source(selection.source, data=selection.data, split="dev", fold=selection.fold)
        except DatasetError as error:
            notes.append(f"no dev set ({error.detail})")
        else:
            if set(dev.files) != set(read.files):
                return read.examples, dev.examples
            notes.append("one file holds all examples")
    share = selection.dev_share or (SMALL_SHARE if len(read.examples) < SMALL else LARGE_SHARE)
    notes.append(f"dev: {share:.0%} of the examples, the same shares of the classes")
    return split(read.examples, share, SPLIT_SEED)


def _read_dev(source: str, read: OwnData, data: Path | None, arguments: dict[str, Any]) -> list[Example]:
    """A dev set with the classes of the training set, in their order."""
    # The names are those after renaming; the dev file is read with the same flags.
    found = load_source(source, data=data, split="dev", **arguments | {"kind": read.kind})
    if not read.labels:
        return found.examples
    if unknown := [label for label in found.labels if label not in read.labels]:
        raise DatasetError(f"{source}: has the class {unknown[0]!r}, which no training example has")
    return [with_options(example, read.labels) for example in found.examples]


def _parse_fold(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count) and int(count) > 1):
        raise DatasetError(f"--fold {text}: of a file wanted INDEX/COUNT, as 0/5 for the first of five")
    return int(index), int(count)


def _check_classes(read: OwnData, train: Sequence[Example]) -> None:
    if read.kind == "classify" and read.labels and len({example.answer for example in train}) < 2:
        raise DatasetError(f"{read.source}: every training example has the same class; at least two are needed")
