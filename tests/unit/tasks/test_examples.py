"""Examples of labels: what they teach, and when they change nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from service.tasks import examples as module
from service.tasks.blend import SHIPPED_BLEND, Blend, Indexes, Numbers, are_same, centred_cosines
from service.tasks.examples import Learned, learn

DIMENSIONS, NUM_LABELS = 384, 6


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Labels whose names say a little of their texts, which lie close together as those of real models do."""

    labels: Numbers
    centres: Numbers
    blend: Blend

    def texts(self, owners: Sequence[int] | Indexes, seed: int = 1) -> Numbers:
        noise = np.random.default_rng(seed).normal(size=(len(owners), DIMENSIONS)) / np.sqrt(DIMENSIONS)
        return _unit(_common() + 0.1 * self.centres[np.asarray(owners, dtype=np.int64)] + 0.4 * noise)

    def accuracy(self, learned: Learned) -> float:
        owners = np.arange(600) % NUM_LABELS
        return float((learned.scores(self.texts(owners, seed=2)).argmax(axis=1) == owners).mean())

    def learn(self, owners: Sequence[int] | Indexes, given: Sequence[int] | Indexes | None = None) -> Learned:
        """From texts of `owners`, of which a client says that they are of `given`."""
        said = np.asarray(owners if given is None else given, dtype=np.int64)
        return learn(self.labels, self.texts(owners), said, self.blend)

    @property
    def untaught(self) -> Learned:
        return self.learn([])


def _unit(vectors: Numbers) -> Numbers:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _common() -> Numbers:
    return np.asarray(np.eye(DIMENSIONS)[0])


@pytest.fixture
def world() -> World:
    rng = np.random.default_rng(0)
    centres, others = _unit(rng.normal(size=(2, NUM_LABELS, DIMENSIONS)))
    blend = replace(Blend.read(SHIPPED_BLEND), background=(0.9 * _common()).astype(np.float32))
    return World(_unit(_common() + 0.12 * centres + 0.3 * others), centres, blend)


def evenly(per_label: int) -> Indexes:
    return np.repeat(np.arange(NUM_LABELS), per_label)


def test_without_examples_the_scores_are_the_centred_cosines(world: World) -> None:
    texts = world.texts([0, 1, 2])
    for blend in (world.blend, replace(world.blend, background=None)):
        learned = learn(world.labels, np.empty((0, DIMENSIONS)), np.empty(0, dtype=np.int64), blend)
        assert np.array_equal(learned.scores(texts), centred_cosines(texts, world.labels, blend))
        assert learned.trust is None
        assert learned.are_same == are_same(world.labels, blend)


def test_more_examples_teach_more(world: World) -> None:
    accuracies = [world.accuracy(world.learn(evenly(per_label))) for per_label in (0, 2, 8, 16)]
    assert accuracies == sorted(accuracies)
    assert accuracies[2] > accuracies[0] + 0.1


def test_examples_teach_a_model_without_a_background(world: World) -> None:
    world = replace(world, blend=replace(world.blend, background=None))
    learned = world.learn(evenly(8))
    assert world.accuracy(learned) > world.accuracy(world.untaught) + 0.1
    assert learned.scores(world.texts([0])).sum() == pytest.approx(0.0)


def test_examples_of_any_labels_are_not_trusted(world: World) -> None:
    shuffled = np.random.default_rng(3).permutation(evenly(8))
    right, wrong = world.learn(evenly(8)), world.learn(evenly(8), shuffled)
    assert right.trust is not None
    assert wrong.trust is not None
    assert right.trust > 0.9
    assert wrong.trust < 0.5
    assert world.accuracy(wrong) > world.accuracy(world.untaught) - 0.03


def test_one_wrong_example_among_right_ones_changes_little(world: World) -> None:
    owners = evenly(8)
    given = owners.copy()
    given[0] = 3
    assert world.accuracy(world.learn(owners, given)) > world.accuracy(world.learn(owners)) - 0.02


def test_examples_of_one_label_alone_change_nothing(world: World) -> None:
    assert np.array_equal(world.learn([2] * 8).vectors, world.labels)


def test_examples_of_some_labels_take_nothing_from_the_others(world: World) -> None:
    texts = world.texts([0, 5])
    before, after = world.untaught.scores(texts), world.learn(np.repeat([0, 1, 2], 16)).scores(texts)
    assert np.allclose(before[:, 3:], after[:, 3:])
    assert world.accuracy(world.learn(np.repeat([0, 1, 2], 16))) > world.accuracy(world.untaught)


def test_many_examples_of_one_label_do_not_outweigh_few_of_others(world: World) -> None:
    owners = np.concatenate([np.zeros(64, dtype=np.int64), evenly(2)])
    learned = world.learn(owners)
    answers = learned.scores(world.texts(evenly(100), seed=2)).argmax(axis=1)
    assert world.accuracy(learned) > world.accuracy(world.untaught)
    assert (answers == 0).mean() < 2.0 / NUM_LABELS


def test_labels_whose_names_are_the_same_are_taught_by_their_examples(world: World) -> None:
    same = np.repeat(world.labels[:1], NUM_LABELS, axis=0)
    world = replace(world, labels=same)
    assert world.untaught.are_same
    learned = world.learn(evenly(16))
    assert not learned.are_same
    assert world.accuracy(learned) > 0.5


def test_consistent_examples_teach_labels_whose_names_say_nothing(world: World) -> None:
    rng = np.random.default_rng(6)
    names = _common() + 0.1 * _unit(rng.normal(size=(NUM_LABELS, DIMENSIONS)))
    world = replace(world, labels=_unit(names))
    few, many = world.learn(evenly(2)), world.learn(evenly(16))
    assert few.trust is not None
    assert many.trust is not None
    assert many.trust > few.trust
    assert world.accuracy(many) > world.accuracy(world.untaught) + 0.3


def test_the_order_of_the_examples_does_not_matter(world: World) -> None:
    owners = evenly(5)
    texts, order = world.texts(owners), np.random.default_rng(4).permutation(len(owners))
    first = learn(world.labels, texts, owners, world.blend)
    second = learn(world.labels, texts[order], owners[order], world.blend)
    assert np.array_equal(first.vectors, second.vectors)
    assert np.array_equal(first.offsets, second.offsets)


def test_single_precision_stays_so(world: World) -> None:
    owners = evenly(4)
    texts = world.texts(owners).astype(np.float32)
    learned = learn(world.labels.astype(np.float32), texts, owners, world.blend)
    assert learned.vectors.dtype == learned.scores(texts).dtype == np.float32
    assert learned.scores(texts) == pytest.approx(world.learn(owners).scores(world.texts(owners)), abs=1e-4)


def test_memory_grows_with_labels_and_examples_not_with_their_product(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_SCORES", 1 << 16)
    num_labels, num_examples, rng = 256, 24_000, np.random.default_rng(5)
    labels, texts = rng.normal(size=(num_labels, 8)), _unit(rng.normal(size=(num_examples, 8)))
    tracemalloc.start()
    learn(labels, texts, np.arange(num_examples) % num_labels, replace(world.blend, background=None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * num_labels * num_examples / 2
