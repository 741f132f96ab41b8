"""What the ways to read a long text bring, and what they cost: accuracy and tokens over HTTP.

    python -m benchmarks.long_texts --data DATA --json benchmarks/results/long_texts.json

Sets whose texts do not fit into a row next to their labels (IFLYTEK, CSLDCP: texts of some hundred characters, 119 and
67 labels) or next to their question (C3 prose, passages of more than 450 characters) are asked with each `truncation`,
windows with each `window_pooling`. The default models answer, `mini` alone, and where texts are longer than its rows
`e5-small` alone. Every way is asked for the same examples, drawn at random; `better` and `worse` count those that it
answers rightly and `right` wrongly, and the other way round, and `p` is the exact sign test of these counts. Tokens are
`usage` by example; the tokens of labels are kept and not counted. Rows that come again are taken from the result cache,
which changes no answer. Intervals are Wilson's, of 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from scipy.stats import binomtest

from benchmarks.common import PATIENT, about, auto_precision, parser_of, save
from service.tools.data.converters import Example
from service.tools.data.registry import load
from service.tools.data.splits import limit
from service.tools.evaluation import read_answer, request_of
from service.tools.scoring import wilson
from tests.support.servers import Server, serving

FLAGS = (*PATIENT, "--cache-entries", "200000", "--cache-bytes", str(2**30), "--max-windows", "4096")
CHUNK = 8
SEED = 1
WAYS: dict[str, dict[str, Any]] = {
    "right": {},
    "left": {"truncation": "left"},
    "head_tail": {"truncation": "head_tail"},
    "window, mean": {"truncation": "window", "window_pooling": "mean"},
    "window, max": {"truncation": "window", "window_pooling": "max"},
}
SHOWN = "| data set | models | truncation | correct | 95 % interval | better | worse | p | tokens | cut |"


@dataclass(frozen=True)
class Texts:
    """The examples of `name` with more than `min_chars` characters, for these models: fields of the request."""

    name: str
    min_chars: int
    models: dict[str, dict[str, Any]]


DEFAULT: dict[str, dict[str, Any]] = {"default": {}, "mini": {"model": "mini"}}
SETS = (
    Texts("csldcp", 0, DEFAULT),
    Texts("c3-m", 450, {"mini": {"model": "mini"}}),
    Texts("iflytek", 600, {"e5-small": {"model": "e5-small"}}),
    Texts("iflytek", 0, DEFAULT),
)


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    measured: list[dict[str, Any]] = []
    report = {
        "what": "accuracy and tokens by truncation, of texts that are long for their rows",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "examples": f"{arguments.limit} of each set at most",
        "measured": measured,
    }
    with serving(*FLAGS) as server:
        for texts in SETS:
            for row in _measure(server, texts, arguments):
                measured.append(row)
                save(report, arguments.json)  # the next row may take long
    print(table(measured))
    return 0


def _measure(server: Server, texts: Texts, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    long = [each for each in load(texts.name, arguments.data) if len(each.texts[0]) > texts.min_chars]
    examples = limit(long, arguments.limit, SEED)
    for models, fields in texts.models.items():
        first: list[bool] = []
        for way, more in WAYS.items():
            correct, num_tokens, num_cut = _ask(server, examples, fields | more)
            first = first or correct
            row = {
                "set": f"{texts.name}/dev" + (f", over {texts.min_chars} characters" if texts.min_chars else ""),
                "models": models,
                "truncation": way,
                **compare(correct, first),
                "tokens": round(num_tokens / len(examples)),
                "truncated": round(num_cut / len(examples), 4),
            }
            print(json.dumps(row), file=sys.stderr, flush=True)
            yield row


def compare(correct: Sequence[bool], first: Sequence[bool]) -> dict[str, Any]:
    """The share of correct answers, and how they differ from the `first` ones to the same examples."""
    better = sum(now and not before for now, before in zip(correct, first, strict=True))
    worse = sum(before and not now for now, before in zip(correct, first, strict=True))
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {
        "value": round(sum(correct) / len(correct), 4),
        "examples": len(correct),
        "interval_95": [round(bound, 4) for bound in wilson(sum(correct), len(correct))],
        "better": better,
        "worse": worse,
        "p": round(float(p), 4),
    }


def _ask(server: Server, examples: Sequence[Example], fields: dict[str, Any]) -> tuple[list[bool], int, int]:
    """Which answers are correct; the tokens, and the number of examples of which a text was cut."""
    correct: list[bool] = []
    num_tokens = num_cut = 0
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        path, body = request_of(chunk)
        reply = httpx.post(f"{server.url}{path}", json=body | fields, timeout=600, trust_env=False)
        content = reply.raise_for_status().json()
        num_tokens += content["usage"]["tokens"]
        answers = [read_answer(*pair) for pair in zip(chunk, content["results"], strict=True)]
        num_cut += sum(answer.truncated for answer in answers)
        correct += [answer.is_correct for answer in answers]
    return correct, num_tokens, num_cut


def table(measured: Sequence[dict[str, Any]]) -> str:
    lines = [SHOWN, "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in measured:
        low, high = (f"{100 * bound:.1f}" for bound in row["interval_95"])
        is_first = row["truncation"] == next(iter(WAYS))
        changes = ["", "", ""] if is_first else [str(row["better"]), str(row["worse"]), f"{row['p']:.2f}"]
        cells = [row["set"], row["models"], f"`{row['truncation']}`", f"{100 * row['value']:.1f}", f"{low} to {high}"]
        lines.append(f"| {' | '.join([*cells, *changes, str(row['tokens']), format(row['truncated'], '.0%')])} |")
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("long_texts", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--limit", type=int, default=300, help="examples of each set at most (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
