"""Accuracy over HTTP of the models that are served by default, next to that of `mini` alone.

    python -m benchmarks.accuracy --data DATA --json benchmarks/results/accuracy.json
    python -m benchmarks.accuracy --data DATA --labels LABELS.json --pairs PAIRS.json    # and own label sets and pairs

One server with its default models is asked twice for each set, by `python -m service evaluate` with the same examples:
as a client asks that names no model, and with `mini` named, which then answers alone. Tasks in which an embedding
model takes no part (reading comprehension, inference) are asked once. Intervals are Wilson's, of 95 %. `--limit` draws
at most so many examples of each set, at random.

STS-B is measured by Spearman's rank correlation of the score of /v1/similarity with the graded similarity.
`--labels` is a file of label sets, {name: {"labels", "question", "examples": [[text, label], ...]}}; `--pairs`
is a list of [text, text, 0 or 1].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import atanh, sqrt, tanh
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
from scipy.stats import spearmanr

from benchmarks.common import PATIENT, about, auto_precision, parser_of, save, service_report
from service.tools.evaluation import SIMILAR
from service.tools.scoring import wilson
from tests.support.servers import Server, serving

BLENDED = (
    *("eprstmt/dev", "thucnews/dev.odd", "tnews/dev", "csldcp/dev", "iflytek/dev"),
    *("bustm/dev", "lcqmc/dev", "afqmc/dev", "csl/dev", "cluewsc/dev"),
)
BY_CHOICE = ("ocnli/dev", "c3/dev", "chid/dev")
ALONE = "mini"
CHUNK = 64


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with serving(*PATIENT) as server:
        sets = list(measured(server, arguments))
    report = {
        "what": "accuracy over HTTP of the default models, and of mini alone",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "examples": f"{arguments.limit} of each set at most" if arguments.limit else "all",
        "mean": {name: round(mean(each[name]["value"] for each in sets), 4) for name in ("default", "alone")},
        "sets": sets,
    }
    save(report, arguments.json)
    print(table(sets))
    print(json.dumps(report["mean"]))
    return 0


def measured(server: Server, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if arguments.labels:
        yield from _both("own label sets", lambda model: _labels(server, arguments.labels, model))
    if arguments.pairs:
        yield from _both("own pairs", lambda model: _pairs(server, arguments.pairs, model))
    yield from _both("sts-b/dev, Spearman", lambda model: _spearman(server, arguments.data, model))
    for name in (*BLENDED, *BY_CHOICE):
        yield from _both(name, lambda model, name=name: _evaluated(server, name, arguments, model), name in BLENDED)


def _both(name: str, measure: Any, is_blended: bool = True) -> Iterator[dict[str, Any]]:
    default = measure(None)
    found = {"set": name, "default": default, "alone": measure(ALONE) if is_blended else default}
    print(json.dumps(found), file=sys.stderr, flush=True)
    yield found


def _evaluated(server: Server, name: str, arguments: argparse.Namespace, model: str | None) -> dict[str, Any]:
    task, _, split = name.partition("/")
    words = ["evaluate", "--url", server.url, "--task", task, "--split", split, "--data", str(arguments.data)]
    words += ["--limit", str(arguments.limit)] if arguments.limit else []
    report = service_report(*words, *(["--model", model] if model else []))
    return _share(report["correct"], report["examples"])


def _share(correct: int, total: int) -> dict[str, Any]:
    interval = [round(bound, 4) for bound in wilson(correct, total)]
    return {"value": round(correct / total, 4), "examples": total, "interval_95": interval}


def _labels(server: Server, file: Path, model: str | None) -> dict[str, Any]:
    correct = total = 0
    for found in json.loads(file.read_text(encoding="utf-8")).values():
        texts, wanted = zip(*found["examples"], strict=True)
        question = {"question": found["question"]} if found.get("question") else {}
        results = _ask(server, "classify", list(texts), model, labels=found["labels"], **question)
        correct += sum(result["label"] == label for result, label in zip(results, wanted, strict=True))
        total += len(texts)
    return _share(correct, total)


def _pairs(server: Server, file: Path, model: str | None) -> dict[str, Any]:
    pairs = json.loads(file.read_text(encoding="utf-8"))
    results = _ask(server, "similarity", [pair[:2] for pair in pairs], model)
    correct = sum((result["score"] >= SIMILAR) == pair[2] for result, pair in zip(results, pairs, strict=True))
    return _share(correct, len(pairs))


def _spearman(server: Server, data: Path, model: str | None) -> dict[str, Any]:
    """The interval is that of Fisher's transformation."""
    lines = (data / "sts-b" / "dev.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    results = _ask(server, "similarity", [row[:2] for row in rows], model)
    test = spearmanr([result["score"] for result in results], [float(row[2]) for row in rows])
    value = float(test.statistic)
    low, high = _fisher(value, len(rows))
    return {"value": round(value, 4), "examples": len(rows), "interval_95": [round(low, 4), round(high, 4)]}


def _fisher(correlation: float, num: int) -> tuple[float, float]:
    half = 1.959964 / sqrt(num - 3)
    return tanh(atanh(correlation) - half), tanh(atanh(correlation) + half)


def _ask(server: Server, task: str, inputs: list[Any], model: str | None, **more: Any) -> list[dict[str, Any]]:
    body = more | ({"model": model} if model else {})
    results: list[dict[str, Any]] = []
    for start in range(0, len(inputs), CHUNK):
        part = {"inputs": inputs[start : start + CHUNK], **body}
        reply = httpx.post(f"{server.url}/v1/{task}", json=part, timeout=120, trust_env=False)
        results += reply.raise_for_status().json()["results"]
    return results


def table(sets: Sequence[dict[str, Any]]) -> str:
    lines = ["| data set | examples | default | 95 % interval | mini alone |", "|---|---:|---:|---:|---:|"]
    for each in sets:
        default, alone = each["default"], each["alone"]
        low, high = (f"{100 * bound:.1f}" for bound in default["interval_95"])
        lines.append(
            f"| {each['set']} | {default['examples']} | {100 * default['value']:.1f} | {low} to {high} | "
            f"{100 * alone['value']:.1f} |"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("accuracy", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--limit", type=int, help="examples of each set at most")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="own label sets")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="own pairs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
