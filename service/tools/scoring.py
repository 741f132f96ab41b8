"""The report of an evaluation: accuracy, macro-F1, each class, rank correlation, and what to be warned of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tasks.calibration import Entry, label_digest, write_entry
from service.tools import confidence
from service.tools.evaluation import Answer, EvaluationClient, EvaluationError

RESAMPLES = 1000
"""Of the bootstrap of macro-F1: its 95 % interval is then stable to about a tenth of its width."""
TAKES_ALL = 0.95
"""One class is said to take all when it is the answer to more than this share, and right for less than TRUE_SHARE."""
TRUE_SHARE = 0.9


def report_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """The report as JSON-ready numbers. Inputs that the server refused are counted, but not in the accuracy.

    Raises:
        EvaluationError: nothing was answered, or no answer is one of the options.
    """
    answered = [one for one in answers if one.chosen is not None]
    refused = [one for one in answers if one.chosen is None]
    if not answered:
        raise EvaluationError(f"every input was refused: {refused[0].reason}" if refused else "there are no examples")
    first = answered[0].example
    if first.grade is not None:
        measured = _graded(answered)
    elif first.answers is not None:
        measured = _several(answered)
    else:
        measured = _single(answered)
    return {
        "examples": len(answered),
        **measured,
        "truncated": sum(one.truncated for one in answered),
        "refused": dict(Counter(one.reason for one in refused)),
    }


# one answer


def _single(answered: Sequence[Answer]) -> dict[str, Any]:
    if not any(one.chosen in one.example.options for one in answered):
        chosen, expected = sorted({one.chosen or "" for one in answered}), answered[0].example.options
        raise EvaluationError(f"the model calls its classes {', '.join(chosen)}, the data set {', '.join(expected)}")
    correct = sum(one.is_correct for one in answered)
    counts = confusion(answered)
    chance = sum(1 / len(set(one.example.options)) for one in answered) / len(answered)
    low, high = wilson(correct, len(answered))
    report: dict[str, Any] = {
        "correct": correct,
        "accuracy": round(correct / len(answered), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "chance": round(chance, 4),
    }
    if counts is not None:
        report |= _macro(counts)
    warnings = _warnings(answered, low, chance, has_classes=counts is not None)
    return report | {"calibration": _calibration(answered), "warnings": warnings, "confusion": counts}


def _macro(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Macro-F1 with its interval, the share of the commonest class, and the numbers of each class."""
    classes = list(counts)
    chosen = list(next(iter(counts.values())))
    table = np.array([[counts[expected][got] for got in chosen] for expected in classes], dtype=np.float64)
    places = [chosen.index(name) for name in classes]
    precision, recall, f1 = _rates(table[None], places)
    draws = np.random.default_rng(0).multinomial(int(table.sum()), table.ravel() / table.sum(), size=RESAMPLES)
    resampled = _mean_f1(draws.reshape(RESAMPLES, *table.shape).astype(np.float64), places)
    rows = [
        {
            "precision": round(float(precision[0, index]), 4),
            "recall": round(float(recall[0, index]), 4),
            "f1": round(float(f1[0, index]), 4),
            "examples": int(table[index].sum()),
            "chosen": int(table[:, place].sum()),
        }
        for index, place in enumerate(places)
    ]
    return {
        "macro_f1": round(float(_mean_f1(table[None], places)[0]), 4),
        "macro_f1_interval_95": [round(float(bound), 4) for bound in np.quantile(resampled, (0.025, 0.975))],
        "commonest": round(float(table.sum(axis=1).max() / table.sum()), 4),
        "classes": dict(zip(classes, rows, strict=True)),
    }


Numbers = NDArray[np.float64]


def _rates(tables: Numbers, places: Sequence[int]) -> tuple[Numbers, Numbers, Numbers]:
    """Precision, recall and F1 of each class, of tables of shape [n, expected, chosen]. 0 where nothing was chosen."""
    right = tables[:, np.arange(len(places)), places]
    of_chosen, of_expected = tables.sum(axis=1)[:, places], tables.sum(axis=2)
    precision = right / np.maximum(of_chosen, 1)
    recall = right / np.maximum(of_expected, 1)
    return precision, recall, 2 * right / np.maximum(of_chosen + of_expected, 1)


def _mean_f1(tables: Numbers, places: Sequence[int]) -> Numbers:
    """Over the classes that occur or were chosen; a class of which there is nothing has no F1."""
    f1 = _rates(tables, places)[2]
    present = (tables.sum(axis=1)[:, places] + tables.sum(axis=2)) > 0
    return np.asarray((f1 * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1))


def _warnings(answered: Sequence[Answer], low: float, chance: float, *, has_classes: bool) -> list[str]:
    warnings = []
    total = len(answered)
    accuracy = sum(one.is_correct for one in answered) / total
    [(expected, num_expected)] = Counter(one.expected for one in answered).most_common(1)
    [(chosen, num_chosen)] = Counter(one.chosen for one in answered).most_common(1)
    if low <= chance:
        warnings.append(f"the accuracy is not above chance ({chance:.1%}): its interval starts at {low:.1%}")
    elif has_classes and accuracy <= num_expected / total:
        warnings.append(f"always answering {expected!r} would be right as often ({num_expected / total:.1%})")
    if has_classes and num_chosen / total > TAKES_ALL:
        share = sum(one.expected == chosen for one in answered) / total
        if share < TRUE_SHARE:
            warnings.append(f"one class takes all: {chosen!r} is the answer to {num_chosen / total:.0%} of the texts")
    return warnings


def confusion(answers: Iterable[Answer]) -> dict[str, dict[str, int]] | None:
    """Counts by expected class, then by chosen class; None where the examples have different options."""
    answered = [one for one in answers if one.chosen is not None]
    if len({one.example.options for one in answered}) != 1:
        return None
    counts = Counter((one.expected, one.chosen or "") for one in answered)
    chosen = dict.fromkeys((*answered[0].example.options, *sorted({one.chosen or "" for one in answered})))
    return {expected: {got: counts[expected, got] for got in chosen} for expected in answered[0].example.options}


# several answers


def _several(answered: Sequence[Answer]) -> dict[str, Any]:
    """Each label counts by itself; `exact` is the share of texts of which every label is right."""
    labels = answered[0].example.options
    given = {label for one in answered for label, _ in one.scores}
    if given and not given & set(labels):
        raise EvaluationError(
            f"the model calls its labels {', '.join(sorted(given))}, the data set {', '.join(labels)}"
        )
    exact = sum(one.is_correct for one in answered)
    rows, totals = {}, np.zeros(3)
    for label in labels:
        pairs = [(label in one.expected_several, label in (one.several or ())) for one in answered]
        right = sum(expected and chosen for expected, chosen in pairs)
        counts = np.array([right, sum(chosen for _, chosen in pairs), sum(expected for expected, _ in pairs)])
        totals += counts
        rows[label] = {
            "precision": round(float(right / max(counts[1], 1)), 4),
            "recall": round(float(right / max(counts[2], 1)), 4),
            "f1": round(_f1(counts), 4),
            "examples": int(counts[2]),
            "chosen": int(counts[1]),
        }
    return {
        "exact": round(exact / len(answered), 4),
        "interval_95": [round(bound, 4) for bound in wilson(exact, len(answered))],
        "micro_f1": round(_f1(totals), 4),
        "macro_f1": round(sum(row["f1"] for row in rows.values()) / len(rows), 4),
        "classes": rows,
        "calibration": _calibration(answered),
        "warnings": [] if totals[1] else ["no label holds for any text: try a lower --threshold"],
    }


def _f1(counts: NDArray[Any]) -> float:
    right, chosen, expected = (float(count) for count in counts)
    return 2 * right / (chosen + expected) if chosen + expected else 0.0


# grades


def _graded(answered: Sequence[Answer]) -> dict[str, Any]:
    grades = np.array([one.example.grade for one in answered], dtype=np.float64)
    scores = np.array([one.score for one in answered], dtype=np.float64)
    found = spearman(grades, scores)
    low, high = _correlation_interval(found, len(answered))
    warnings = (
        ["the order of the scores is not that of the grades: the interval contains 0"] if low <= 0 <= high else []
    )
    return {
        "spearman": round(found, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "pearson": round(pearson(grades, scores), 4),
        "warnings": warnings,
    }


def spearman(first: Numbers, second: Numbers) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0.0 where one side is constant."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: Numbers) -> Numbers:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group])


def pearson(first: Numbers, second: Numbers) -> float:
    """The correlation of two samples; 0.0 where one is constant."""
    one, other = first - first.mean(), second - second.mean()
    norm = math.sqrt(float((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / norm if norm else 0.0


def _correlation_interval(found: float, total: int) -> tuple[float, float]:
    """By Fisher's transformation with the standard error of Fieller et al. (1957) for ranks; [-1, 1] below 4 pairs."""
    if total < 4 or abs(found) >= 1:
        return (found, found) if total >= 4 else (-1.0, 1.0)
    middle, half = math.atanh(found), 1.959964 * 1.03 / math.sqrt(total - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


# confidence


def calibration_arrays(answered: Sequence[Answer]) -> tuple[Numbers, NDArray[np.int64]] | None:
    """Probabilities and right answers as `tools.confidence` takes them; None where a score is missing or is none."""
    rows = [one.probabilities() for one in answered]
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows) or not all(0 <= score <= 1 for row in known for score in row):
        return None
    if answered[0].example.answers is not None:
        flags = [[int(index in (one.example.answers or ())) for index in range(len(known[0]))] for one in answered]
        return confidence.stack(known), np.array(flags)
    places = [list(dict.fromkeys(one.example.options)).index(one.expected) for one in answered]
    return confidence.stack(known), np.array(places)


def _calibration(answered: Sequence[Answer]) -> dict[str, Any] | None:
    """How far the scores are from probabilities, and the temperature that would make them some."""
    arrays = calibration_arrays(answered)
    if arrays is None:
        return None
    report = confidence.report(*arrays)
    if len(answered) < 2 * confidence.MIN_EXAMPLES:
        return report
    fitted = confidence.fit_report(*arrays)
    return report | {name: fitted[name] for name in ("temperature", "ece_before", "ece_after")}


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default; it stays within 0 to 1 for small samples, too."""
    if not total:
        return 0.0, 1.0
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def calibrate(file: Path, answers: Sequence[Answer], client: EvaluationClient, name: str) -> dict[str, Any]:
    """Adds the temperature that fits the answers to a calibration file of `serve`, and returns the entry.

    Raises:
        EvaluationError: the answers have no shared labels or no probabilities, the server has changed them by a
            temperature, they are too few, or the file cannot be written.
    """
    answered = [one for one in answers if one.chosen is not None]
    arrays = calibration_arrays(answered) if answered else None
    options = {(one.example.options, one.example.question) for one in answered}
    if arrays is None or len(options) != 1 or client.method is None:
        raise EvaluationError("--calibrate: needs a classification with one list of labels, and a score for each")
    if any(one.is_calibrated for one in answered):
        raise EvaluationError(
            "--calibrate: the server already applies a temperature to these labels; start it without --calibration"
        )
    [(labels, question)] = options
    try:
        entry = Entry(
            name=name,
            models=client.models,
            method=client.method,  # pydantic checks it
            labels_sha256=label_digest(dict.fromkeys(labels)),
            question=question,
            multi_label=answered[0].example.answers is not None,
            **confidence.fit_report(*arrays),
        )
        write_entry(file, entry)
    except ValueError as error:
        raise EvaluationError(f"--calibrate {file}: {error}") from None
    return entry.model_dump(exclude_none=True)
