"""Decisions about several examples together, as upstream makes them for CLUE's leaderboard. They are off by default:
the answer to an example then depends on the other examples of the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from service.tools.evaluation import Answer

FITTING = "可以"
"""In the option of CSL that says that the keywords fit."""


def assign_idioms(answers: Sequence[Answer]) -> list[Answer]:
    """CHID: each idiom of a line is chosen once at most. The most certain pair of a blank and an idiom is taken first.

    Source: upstream's examples/clue1.1/predict2submit/chid_submit.py.
    """
    return _by_group(answers, _assign)


def rank_keywords(answers: Sequence[Answer]) -> list[Answer]:
    """CSL: of the examples that share an abstract, the half whose keywords fit best are the ones that do.

    Source: upstream's examples/clue1.1/predict2submit/csl_submit.py.
    """
    return _by_group(answers, _rank)


def _by_group(answers: Sequence[Answer], decide: Callable[[Sequence[Answer]], list[int]]) -> list[Answer]:
    groups: dict[object, list[int]] = defaultdict(list)
    for index, answer in enumerate(answers):
        if answer.chosen is not None and answer.probabilities() is not None:
            group = answer.example.group
            groups[index if group is None else group].append(index)
    decided = list(answers)
    for members in groups.values():
        chosen = decide([answers[index] for index in members])
        for index, option in zip(members, chosen, strict=True):
            decided[index] = replace(answers[index], chosen=_distinct(answers[index])[option])
    return decided


def _distinct(answer: Answer) -> list[str]:
    return list(dict.fromkeys(answer.example.options))


def _assign(answers: Sequence[Answer]) -> list[int]:
    names = list(dict.fromkeys(name for answer in answers for name in range(len(_distinct(answer)))))
    scores = np.zeros((len(answers), len(names)))
    for row, answer in enumerate(answers):
        known = answer.probabilities() or []
        scores[row, : len(known)] = known
    chosen = [int(row.argmax()) for row in scores]
    for _ in answers:
        place, column = divmod(int(scores.argmax()), scores.shape[1])
        if scores[place, column] <= 0:  # more blanks than idioms: the rest keep their own best
            break
        chosen[place] = column
        scores[place, :] = 0
        scores[:, column] = 0
    return chosen


def _rank(answers: Sequence[Answer]) -> list[int]:
    options = [_distinct(answer) for answer in answers]
    fitting = [next(index for index, option in enumerate(each) if FITTING in option) for each in options]
    scores = [(answer.probabilities() or [])[place] for answer, place in zip(answers, fitting, strict=True)]
    order = sorted(range(len(answers)), key=lambda index: -scores[index])
    upper = set(order[: -(-len(order) // 2)])
    return [place if index in upper else 1 - place for index, place in enumerate(fitting)]
