"""Decisions: whether the scores of a text's labels are high enough, and different enough, to act on.

A decision never changes scores or their order. The defaults decide for the first label whatever its score is, unless
another one has exactly the same; of labels that are independent of each other, for all with a score of one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.metric_labels import Decision
from service.tasks.scores import LabelScore

INDEPENDENT_MIN_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class Rule:
    """`min_score` is the least score of a chosen label; None: 0, or INDEPENDENT_MIN_SCORE of independent labels.

    `margin` is the least lead of the first label over the second. `none_label` is the label of a text for which no
    label has the `min_score`.
    """

    min_score: float | None = None
    margin: float = 0.0
    none_label: str | None = None


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True)
class Decided:
    """`chosen` holds the label that was decided for, all that were if labels are independent, those between which the
    margin does not decide, or the `none_label`, if there is one. `decision` is None where none can be made."""

    decision: Decision | None
    label: str
    chosen: tuple[str, ...]


def decide(ranked: Sequence[LabelScore], rule: Rule, *, are_independent: bool) -> Decided:
    """The decision by the labels of one text, best first, at least two where there are as many."""
    best = ranked[0]
    min_score = rule.min_score
    if min_score is None:
        min_score = INDEPENDENT_MIN_SCORE if are_independent else 0.0
    if best.score < min_score:
        none_label = rule.none_label
        return Decided("none", best.label, ()) if none_label is None else Decided("none", none_label, (none_label,))
    if are_independent:
        return Decided("label", best.label, tuple(one.label for one in ranked if one.score >= min_score))
    rivals = [one.label for one in ranked[1:] if _is_rival(best.score - one.score, rule.margin)]
    return Decided("ambiguous" if rivals else "label", best.label, (best.label, *rivals))


def undecided(ranked: Sequence[LabelScore]) -> Decided:
    """Of a regression: its number is not the score of a label."""
    return Decided(None, ranked[0].label, ())


def _is_rival(lead: float, margin: float) -> bool:
    return lead < margin or lead == 0.0
