"""What a classification asks: texts, the labels and what is known about them, and how to decide."""

from __future__ import annotations

from dataclasses import dataclass

from service.tasks.decision import DEFAULT_RULE, Rule
from service.tasks.hierarchy import Tree, tree_of
from service.tasks.label_vectors import LabelVectors
from service.tasks.labels import NO_LABELS, LabelList
from service.tasks.task import Method, Truncation
from service.tasks.windows import WindowOptions


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    text_pair: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, slots=True)
class ClassifyQuery:
    """A query with `labels` is zero-shot; a query without them uses the labels of the model's own head.

    With `is_alone` the model decides without its partner, whatever the method. With `hierarchy`, a separator, labels
    are paths. `temperature` is that of a stored label set, before any other. With `windows` a long text is read in
    windows; of a pair, the first text.

    The rest is found on the way: `vectors` are the kept ones of the labels, `generation` is that of their cache, with
    `has_own_labels` the labels are those that the model was fine-tuned for, and `shortlists` are the labels that the
    choice model reads for each input in the second stage.
    """

    inputs: tuple[Text, ...]
    labels: LabelList = NO_LABELS
    question: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    truncation: Truncation = "right"
    method: Method = "auto"
    is_alone: bool = False
    hierarchy: str | None = None
    rule: Rule = DEFAULT_RULE
    temperature: float | None = None
    windows: WindowOptions | None = None
    shortlists: tuple[tuple[int, ...], ...] = ()
    vectors: LabelVectors | None = None
    generation: int = 0
    has_own_labels: bool = False

    @property
    def tree(self) -> Tree | None:
        return None if self.hierarchy is None or not self.labels else tree_of(self.labels, self.hierarchy)

    @property
    def scored(self) -> LabelList:
        """The labels that have scores: those of the query, and the paths above them."""
        tree = self.tree
        return self.labels if tree is None else tree.nodes
