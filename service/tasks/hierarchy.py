"""Labels that are paths, as `体育/足球`: a label's probability follows from that of the labels above it.

    P(label) = P(label among its siblings) * P(parent)          labels that exclude each other
    P(label) = min(P(label by itself), P(parent))               independent labels

The first is the probability of the label, by the scores of both models, among the labels with the same parent. The
labels without a parent are siblings of each other. A label without siblings has its parent's probability; a single
label without a parent is scored by itself. Paths above a label that are no labels themselves are scored as labels, with
the examples of all that is below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import FloatArray
from service.errors import InvalidRequest
from service.tasks.blend import Blend, Indexes, Numbers, independent_probabilities, label_logits
from service.tasks.labels import Label, LabelList
from service.tasks.scores import LabelScore

MAX_DEPTH = 8
"""Components of a path."""


@dataclass(frozen=True, slots=True)
class PathScore(LabelScore):
    """A label with the scores of the labels above it, the highest first."""

    parents: tuple[LabelScore, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """`nodes` are the labels as given, then the paths above them that are none; `parents` has the node above each, -1
    for none. `levels` are the nodes by the number of nodes above them, `numbers` the nodes by name."""

    nodes: LabelList
    numbers: dict[str, int]
    parents: Indexes
    levels: tuple[Indexes, ...]

    @property
    def depths(self) -> Indexes:
        depths = np.zeros(len(self.parents), dtype=np.int64)
        for depth, level in enumerate(self.levels):
            depths[level] = depth
        return depths

    def above(self, node: int) -> list[int]:
        """The nodes above a node, the highest first."""
        path: list[int] = []
        while (node := int(self.parents[node])) >= 0:
            path.insert(0, node)
        return path

    def multiply(self, shares: Numbers) -> Numbers:
        """The probabilities of the nodes from those among their siblings."""
        result = shares.copy()
        for level in self.levels[1:]:
            result[level] *= result[self.parents[level]]
        return result

    def cap(self, probabilities: Numbers) -> Numbers:
        """The probabilities of the nodes, none above its parent's."""
        result = probabilities.copy()
        for level in self.levels[1:]:
            result[level] = np.minimum(result[level], result[self.parents[level]])
        return result


def tree_of(labels: LabelList, separator: str) -> Tree:
    """The tree of these labels, made once for each list.

    Raises:
        InvalidRequest: a label has an empty component or too many.
    """
    if separator not in labels.trees:
        labels.trees[separator] = _build(labels, separator)
    tree: Tree = labels.trees[separator]
    return tree


def _build(labels: LabelList, separator: str) -> Tree:
    nodes = {name: index for index, name in enumerate(labels.names)}
    made = list(labels.labels)
    parents: list[int] = [-1] * len(made)
    examples: dict[int, dict[str, None]] = {}
    for index, label in enumerate(labels.labels):
        node, name = index, label.name
        components = name.split(separator)
        if not all(component.strip() for component in components):
            raise InvalidRequest.of(f"labels[{index}]", f"has an empty component next to a {separator}")
        if len(components) > MAX_DEPTH:
            raise InvalidRequest.of(
                f"labels[{index}]", f"has {len(components)} components; at most {MAX_DEPTH} are read"
            )
        for length in range(len(components) - 1, 0, -1):
            name = name[: -len(separator) - len(components[length])]
            above = nodes.setdefault(name, len(made))
            if above == len(made):
                made.append(Label(name))
                parents.append(-1)
            parents[node] = node = above
            if label.examples:
                examples.setdefault(above, dict.fromkeys(made[above].examples)).update(dict.fromkeys(label.examples))
    for node, texts in examples.items():
        made[node] = Label(made[node].name, made[node].description, tuple(texts))
    found = np.asarray(parents, dtype=np.int64)
    return Tree(LabelList(tuple(made)), nodes, found, _levels(found))


def _levels(parents: Indexes) -> tuple[Indexes, ...]:
    levels = [np.flatnonzero(parents < 0)]
    is_below = np.zeros(len(parents), dtype=bool)
    while len(levels[-1]):
        is_below[:] = False
        is_below[levels[-1]] = True
        levels.append(np.flatnonzero((parents >= 0) & is_below[parents]))
    return tuple(levels[:-1])


def path_probabilities(
    tree: Tree, blend: Blend | None, centred: Numbers | None, yes_no: Numbers | None, read: Indexes | None
) -> FloatArray:
    """The probabilities of the nodes of one text; the arguments are as in `label_probabilities`."""
    logits = np.zeros(len(tree.parents)) if centred is None or blend is None else centred / blend.temperature
    if yes_no is not None:
        _add_choice(tree, logits, blend, centred, yes_no, np.arange(len(yes_no)) if read is None else read)
    shares = _softmax_of_groups(logits, tree.parents + 1)
    [roots, *_] = tree.levels
    if len(roots) == 1:
        shares[roots] = independent_probabilities(blend, centred, yes_no, read)[roots]
    return np.asarray(tree.multiply(shares), dtype=np.float32)


def independent_path_probabilities(
    tree: Tree, blend: Blend | None, centred: Numbers | None, yes_no: Numbers | None, read: Indexes | None
) -> FloatArray:
    found = independent_probabilities(blend, centred, yes_no, read)
    return np.asarray(tree.cap(np.asarray(found, dtype=np.float64)), dtype=np.float32)


def _add_choice(
    tree: Tree, logits: Numbers, blend: Blend | None, centred: Numbers | None, yes_no: Numbers, read: Indexes
) -> None:
    """Scores the siblings of which the choice model has read some again, by both models."""
    groups = tree.parents[read]
    for parent in np.unique(groups):
        siblings = np.flatnonzero(tree.parents == parent)
        is_here = groups == parent
        places = np.searchsorted(siblings, read[is_here])
        cosines = None if centred is None else centred[siblings]
        if cosines is not None or len(places) == len(siblings):
            logits[siblings] = label_logits(blend, cosines, yes_no[is_here], places)


def _softmax_of_groups(logits: Numbers, groups: Indexes) -> Numbers:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    highest = np.repeat(np.maximum.reduceat(logits[order], starts), sizes)
    powers = np.exp(logits[order] - highest)
    result = np.empty_like(logits)
    result[order] = powers / np.repeat(np.add.reduceat(powers, starts), sizes)
    return result


def with_parents(tree: Tree, ranked: Sequence[LabelScore], scores: FloatArray) -> tuple[LabelScore, ...]:
    """The ranked labels, each with the labels above it."""
    names = tree.nodes.names
    return tuple(
        PathScore(
            each.label,
            each.score,
            tuple([LabelScore(names[node], float(scores[node])) for node in tree.above(tree.numbers[each.label])]),
        )
        for each in ranked
    )
