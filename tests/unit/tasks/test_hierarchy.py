"""Labels that are paths: their tree, and probabilities that respect those of the labels above."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.hierarchy import (
    MAX_DEPTH,
    PathScore,
    independent_path_probabilities,
    path_probabilities,
    tree_of,
)
from service.tasks.labels import Label, LabelList
from service.tasks.scores import LabelScore
from tests.unit.tasks.models import BLEND, text_model, yes_no

PATHS = st.lists(
    st.lists(st.sampled_from("甲乙丙"), min_size=1, max_size=4).map("/".join), min_size=2, max_size=20, unique=True
)
SEEDS = st.integers(0, 2**32 - 1)


def test_paths_above_labels_are_nodes_with_the_examples_below_them() -> None:
    labels = LabelList((Label("甲/乙", None, ("a", "b")), Label("丙"), Label("甲/丁", "about", ("b", "c"))))
    tree = tree_of(labels, "/")
    assert tree is tree_of(labels, "/")
    assert tree.nodes.names == ("甲/乙", "丙", "甲/丁", "甲")
    assert tree.nodes.labels[3].examples == ("a", "b", "c")
    assert tree.parents.tolist() == [3, -1, 3, -1]
    assert [level.tolist() for level in tree.levels] == [[1, 3], [0, 2]]
    assert tree.above(0) == [3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("甲//乙", "has an empty component"),
        ("/甲", "has an empty component"),
        ("甲/ ", "has an empty component"),
        ("/".join("甲" * (MAX_DEPTH + 1)), "has 9 components; at most 8"),
    ],
)
def test_a_label_that_is_no_path_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tree_of(LabelList.of(["丙", name]), "/")
    [error] = caught.value.errors
    assert error.field == "labels[1]"
    assert message in error.message


def test_a_child_has_its_share_of_its_parent() -> None:
    tree = tree_of(LabelList.of(["甲/乙", "甲/丙", "丁"]), "/")
    centred = BLEND.temperature * np.log([3.0, 1.0, 1.0, 4.0])
    assert path_probabilities(tree, BLEND, centred, None, None) == pytest.approx([0.6, 0.2, 0.2, 0.8])


def test_the_choice_compares_siblings_only() -> None:
    tree = tree_of(LabelList.of(["甲/乙", "甲/丙", "丁"]), "/")
    yes = np.log([[3.0, 1], [1, 1], [1, 1], [4, 1]])
    expected = [0.6, 0.2, 0.2, 0.8]
    assert path_probabilities(tree, None, None, yes, None) == pytest.approx(expected)
    weighed = path_probabilities(tree, replace(BLEND, choice_power=0.0), np.zeros(4), yes, None)
    assert weighed == pytest.approx(expected)
    part = path_probabilities(tree, replace(BLEND, choice_power=0.0), np.zeros(4), yes[:2], np.asarray([0, 1]))
    assert part == pytest.approx([0.375, 0.125, 0.5, 0.5])


@settings(deadline=None)
@given(PATHS, SEEDS, st.booleans(), st.booleans())
def test_the_children_of_a_label_share_its_probability(
    paths: list[str], seed: int, with_choice: bool, reads_all: bool
) -> None:
    tree, random = tree_of(LabelList.of(paths), "/"), np.random.default_rng(seed)
    num_nodes = len(tree.nodes)
    read = None if reads_all else random.permutation(num_nodes)[: max(1, num_nodes // 2)]
    yes = 3 * random.standard_normal((num_nodes if read is None else len(read), 2)) if with_choice else None
    found = path_probabilities(tree, BLEND, random.standard_normal(num_nodes), yes, read if with_choice else None)
    for node in range(num_nodes):
        children = np.flatnonzero(tree.parents == node)
        if len(children):
            assert found[children].sum() == pytest.approx(found[node], abs=1e-5)
    [roots, *_] = tree.levels
    if len(roots) > 1:
        assert found[roots].sum() == pytest.approx(1, abs=1e-5)


@settings(deadline=None)
@given(PATHS, SEEDS)
def test_an_independent_label_is_never_above_its_parent(paths: list[str], seed: int) -> None:
    tree, random = tree_of(LabelList.of(paths), "/"), np.random.default_rng(seed)
    cosines, yes = random.standard_normal(len(tree.nodes)), 3 * random.standard_normal((len(tree.nodes), 2))
    found = independent_path_probabilities(tree, BLEND, cosines, yes, None)
    below = np.flatnonzero(tree.parents >= 0)
    assert (found[below] <= found[tree.parents[below]]).all()


def test_a_result_lists_the_labels_given_each_with_those_above_it() -> None:
    query = ClassifyQuery((Text("甲"),), LabelList.of(["乙/丙/丁", "乙/丙/戊", "己"]), hierarchy="/")
    [row] = CLASSIFY.encode(text_model(), query)
    logits = np.log([0.75, 0.25, 0.25, 1.0, 0.75])
    [result] = CLASSIFY.decode(text_model(), query, [row], [yes_no(*[(value, 0.0) for value in logits])])
    assert [each.label for each in result.scores] == ["乙/丙/丁", "己", "乙/丙/戊"]
    [first, other, _] = result.scores
    assert isinstance(first, PathScore)
    assert isinstance(other, PathScore)
    assert (first.score, other.parents) == (pytest.approx(0.5625), ())
    assert first.parents == (
        LabelScore("乙", pytest.approx(0.75)),
        LabelScore("乙/丙", pytest.approx(0.75)),
    )
    assert all(one.score >= other.score for one, other in pairwise(result.scores))
