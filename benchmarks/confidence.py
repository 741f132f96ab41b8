"""How far the scores of the default models can be trusted: before and after calibration, and by how many are decided.

    python -m benchmarks.confidence --data DATA --json benchmarks/results/confidence.json

A server with its default models scores all labels for half of each set (the examples of even index). To these scores a
temperature is fitted, and the least scores that reach an accuracy are read from their risk-coverage curve. They are
judged on the other half, over HTTP by a second server, which is started with `--calibration` and the fitted
temperatures: `ece` is the expected calibration error in 15 adaptive bins (`by_chance`: that of right scores on so few
examples), `area` that below the risk-coverage curve.
`min_score` has, for each wanted accuracy, the least score that reached it on the first half, and the accuracy and the
coverage that it has on the second. `margin` has the share of the second half whose lead is below it, the accuracy of
these texts, and how often the right label is one of the `chosen`. `--limit` draws at most so many examples of each set,
at random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import PATIENT, about, auto_precision, parser_of, save
from service.tasks.calibration import Entry, label_digest, write_entry
from service.tools.confidence import (
    Judged,
    calibration_error,
    error_by_chance,
    find_threshold,
    fit_report,
    risk_coverage,
    scale,
)
from service.tools.data.converters import Example
from service.tools.data.registry import load
from tests.support.servers import Server, serving

SETS = ("tnews", "eprstmt", "thucnews", "csldcp", "iflytek")
WANTED = (0.8, 0.9, 0.95)
MARGINS = (0.05, 0.1, 0.2, 0.4)
COVERAGES = (1.0, 0.8, 0.6, 0.4, 0.2)
CHUNK = 32

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores of all labels of each example, in the order of its options, and what answered."""

    examples: Sequence[Example]
    scores: Numbers
    models: tuple[str, ...]
    method: Any
    is_calibrated: bool

    @property
    def answers(self) -> list[int]:
        return [example.answer for example in self.examples]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    halves = {name: _halves(name, arguments) for name in arguments.sets}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calibration.json"
        with serving(*PATIENT) as server:
            raw = {name: [ask(server, half) for half in halves[name]] for name in _told(halves)}
        for name, (first, _) in raw.items():
            write_entry(file, entry_of(name, first))
        with serving(*PATIENT, "--calibration", str(file)) as server:
            calibrated = {name: ask(server, second) for name, (_, second) in halves.items()}
    found = [judge(name, *raw[name], calibrated[name]) for name in halves]
    report = {
        "what": "calibration error, accuracy by coverage and doubtful answers of the default models",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "sets": found,
    }
    save(report, arguments.json)
    print(table(found))
    return 0


def _halves(name: str, arguments: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """Of random examples in the order of the file, which is often sorted by class."""
    examples = load(name, arguments.data)
    if arguments.limit and arguments.limit < len(examples):
        examples = [examples[index] for index in sorted(Random(1).sample(range(len(examples)), arguments.limit))]
    return examples[::2], examples[1::2]


def _told(names: Any) -> Iterator[str]:
    for name in names:
        print(name, file=sys.stderr, flush=True)
        yield name


def ask(server: Server, examples: Sequence[Example]) -> Scored:
    """The examples share labels and question."""
    labels, question = list(examples[0].options), examples[0].question
    replies = []
    for start in range(0, len(examples), CHUNK):
        inputs = [example.texts[0] for example in examples[start : start + CHUNK]]
        body = {"inputs": inputs, "labels": labels, "question": question, "top_k": len(labels)}
        reply = httpx.post(f"{server.url}/v1/classify", json=body, timeout=600, trust_env=False)
        replies.append(reply.raise_for_status().json())
    results = [result for reply in replies for result in reply["results"]]
    place = {label: index for index, label in enumerate(labels)}
    scores = np.zeros((len(results), len(labels)))
    for row, result in zip(scores, results, strict=True):
        for one in result["scores"]:
            row[place[one["label"]]] = one["score"]
    is_calibrated = all(result["calibrated"] for result in results)
    return Scored(examples, scores, tuple(replies[0]["models"]), replies[0]["method"], is_calibrated)


def entry_of(name: str, scored: Scored) -> Entry:
    labels, question = scored.examples[0].options, scored.examples[0].question
    fitted = fit_report(scored.scores, scored.answers)
    return Entry(
        name=name,
        models=scored.models,
        method=scored.method,
        labels_sha256=label_digest(labels),
        question=question,
        **fitted,
    )


def judge(name: str, first: Scored, second: Scored, calibrated: Scored) -> dict[str, Any]:
    """What the second half says of a temperature and least scores that the first half chose.

    Raises RuntimeError if the second server did not calibrate it.
    """
    if not calibrated.is_calibrated:
        raise RuntimeError(f"{name}: the server did not apply the temperature")
    temperature = entry_of(name, first).temperature
    fitted = Judged.of(scale(first.scores, first.answers, temperature), first.answers)
    before, after = Judged.of(second.scores, second.answers), Judged.of(calibrated.scores, calibrated.answers)
    points, area = risk_coverage(after)
    covered = [next(point for point in points if point.coverage >= coverage) for coverage in COVERAGES]
    return {
        "set": name,
        "labels": second.scores.shape[1],
        "method": second.method,
        "examples": {"fitted": len(first.answers), "judged": len(second.answers)},
        "accuracy": _round(1 - after.error_rate),
        "temperature": temperature,
        "mean_score": {"before": _round(before.confidences.mean()), "after": _round(after.confidences.mean())},
        "ece": {
            "before": _round(calibration_error(before)),
            "after": _round(calibration_error(after)),
            "by_chance": _round(error_by_chance(after)),
        },
        "area": {"before": _round(risk_coverage(before)[1]), "after": _round(area)},
        "accuracy_at_coverage": {
            f"{coverage:g}": _round(point.accuracy) for coverage, point in zip(COVERAGES, covered, strict=True)
        },
        "min_score": [_threshold(wanted, fitted, after) for wanted in WANTED],
        "margin": [_margin(margin, calibrated) for margin in MARGINS],
    }


def _threshold(wanted: float, fitted: Judged, judged: Judged) -> dict[str, Any]:
    """The least score that the first half chose for an accuracy, on the second half."""
    point = find_threshold(risk_coverage(fitted)[0], wanted)
    if point is None:
        return {"wanted": wanted, "min_score": None}
    is_kept = judged.confidences >= point.min_score
    accuracy = _round(judged.is_right[is_kept].mean()) if is_kept.any() else None
    return {
        "wanted": wanted,
        "min_score": point.min_score,
        "fitted": {"coverage": _round(point.coverage), "accuracy": _round(point.accuracy)},
        "judged": {"coverage": _round(is_kept.mean()), "accuracy": accuracy},
    }


def _margin(margin: float, scored: Scored) -> dict[str, Any]:
    best = scored.scores.max(axis=1, keepdims=True)
    lead = best[:, 0] - np.sort(scored.scores, axis=1)[:, -2]
    is_doubtful = lead < margin
    rows = np.arange(len(scored.scores))
    is_right = scored.scores.argmax(axis=1) == scored.answers
    is_chosen = (best - scored.scores < margin)[rows, scored.answers]
    found = {"margin": margin, "ambiguous": _round(is_doubtful.mean())}
    if is_doubtful.any():
        found["accuracy_of_ambiguous"] = _round(is_right[is_doubtful].mean())
        found["right_label_is_chosen"] = _round(is_chosen[is_doubtful].mean())
    if not is_doubtful.all():
        found["accuracy_of_others"] = _round(is_right[~is_doubtful].mean())
    return found


def _round(value: Any) -> float:
    return round(float(value), 4)


def table(sets: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| data set | labels | temperature | ECE before | after | by chance | accuracy of all | of 60 % | of 20 % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in sets:
        ece, accuracy = each["ece"], each["accuracy_at_coverage"]
        shares = " | ".join(f"{100 * accuracy[name]:.1f}" for name in ("1", "0.6", "0.2"))
        lines.append(
            f"| {each['set']} | {each['labels']} | {each['temperature']:.2f} |"
            f" {100 * ece['before']:.1f} | {100 * ece['after']:.1f} | {100 * ece['by_chance']:.1f} | {shares} |"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("confidence", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with the data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="default: %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N examples of each set, drawn at random")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
