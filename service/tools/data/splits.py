"""Parts of labelled data: a stratified split, k examples of each class, folds, a random sample, and the overlap.

All are repeatable with the same seed, and keep the order of the file. Examples with the same texts stay together, so
that no text is trained on and measured, too.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from service.errors import DatasetError
from service.tools.data.converters import Example
from service.tools.data.report import key_of


def split(examples: Sequence[Example], dev_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, dev): `dev_share` of each class, but at least one example of a class that has two.

    Raises:
        DatasetError: no text is left for one of the two.
    """
    dev: set[int] = set()
    for groups in _classes(examples, seed):
        count = min(max(1, round(dev_share * len(groups))), len(groups) - 1)
        dev.update(index for group in groups[:count] for index in group)
    return _parts(examples, dev)


def cross_fold(examples: Sequence[Example], index: int, count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, dev) of the fold `index` of `count`; the dev parts of all folds together are all examples."""
    dev: set[int] = set()
    position = 0
    for groups in _classes(examples, seed):
        for group in groups:
            if position % count == index:
                dev.update(group)
            position += 1
    return _parts(examples, dev)


def k_shot(examples: Sequence[Example], k: int, seed: int) -> list[Example]:
    """`k` examples of each class, or all of a class that has fewer; of several labels, at least `k` that hold each.

    Raises:
        DatasetError: the examples are graded, or have options of their own.
    """
    if any(example.grade is not None or example.options != examples[0].options for example in examples):
        raise DatasetError("k examples of each class need data with one list of classes")
    have: dict[int, int] = defaultdict(int)
    taken = []
    for index in _shuffled(range(len(examples)), seed):
        answers = _answers(examples[index])
        if any(have[answer] < k for answer in answers):
            taken.append(index)
            for answer in answers:
                have[answer] += 1
    return [examples[index] for index in sorted(taken)]


def limit(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """At most `count` random examples. Files are often sorted by class: the first ones are no sample."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), count))]


def overlap(train: Sequence[Example], dev: Iterable[Example]) -> int:
    """The number of training examples whose texts are in dev."""
    return without_overlap(train, dev)[1]


def without_overlap(train: Sequence[Example], dev: Iterable[Example]) -> tuple[list[Example], int]:
    """The training examples whose texts are not in dev, and how many are left out."""
    seen = {key_of(example) for example in dev}
    kept = [example for example in train if key_of(example) not in seen]
    return kept, len(train) - len(kept)


def _answers(example: Example) -> tuple[int, ...]:
    return (example.answer,) if example.answers is None else example.answers


def _stratum(example: Example) -> object:
    """The class; of several labels their combination. Grades and choices are one class."""
    if example.grade is not None or example.task == "mrc":
        return None
    return example.answer if example.answers is None else example.answers


def _classes(examples: Sequence[Example], seed: int) -> list[list[list[int]]]:
    """Of each class its groups of examples with the same texts, as indices, shuffled."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[key_of(example)].append(index)
    strata: dict[object, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        strata[_stratum(examples[group[0]])].append(group)
    rare = [group for members in strata.values() if len(members) == 1 for group in members]
    classes = [members for members in strata.values() if len(members) > 1]
    if examples and examples[0].answers is not None and len(rare) > 1:  # combinations of labels that occur once
        classes.append(rare)
        rare = []
    draw = random.Random(seed)
    for members in classes:
        draw.shuffle(members)
    return [*classes, *([group] for group in rare)]


def _shuffled(indices: Iterable[int], seed: int) -> list[int]:
    order = list(indices)
    random.Random(seed).shuffle(order)
    return order


def _parts(examples: Sequence[Example], dev: set[int]) -> tuple[list[Example], list[Example]]:
    train = [example for index, example in enumerate(examples) if index not in dev]
    if not train or not dev:
        raise DatasetError(f"{len(examples)} examples are too few to split into train and dev")
    return train, [examples[index] for index in sorted(dev)]
