"""What examples of labels add over HTTP, and where they add nothing.

    python -m benchmarks.labels --data DATA --json benchmarks/results/labels.json
    python -m benchmarks.labels --data DATA --labels LABELS.json    # and own label sets, never to be hurt

One server with its default models classifies the same texts without examples, with 2 and with 8 of each label, drawn at
random from `train_0` of FewCLUE. A gain is the difference of the shares of right answers on the same texts, in points;
its interval of 95 % is that of the mean of paired differences. The first three sets are to gain. The others must not
lose: reviews and news that `mini` was trained on, own label sets (`--labels`, {name: {"labels", "question", "examples":
[[text, label], ...]}}) whose every second example teaches and the rest is asked, then the other way round, and `tnews`
with examples of wrong labels, shuffled. `--limit` draws at most so many texts of each set, at random.

`--shortlists` measures the accuracy and the time with other numbers of labels that the choice model reads, each with a
server of its own. The time of many labels is in `benchmarks.label_sets`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import httpx

from benchmarks.common import PATIENT, about, auto_precision, parser_of, save
from service.tasks.blend import SHIPPED_BLEND
from service.tools.data.registry import load
from service.tools.scoring import wilson
from tests.support.servers import Server, serving

GAINING = ("tnews", "csldcp", "iflytek")
SHOTS = (2, 8)
CHUNK = 64
MAX_CHARS = 2000
TIMEOUT_S = 1800.0
SEED = 1


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Texts to ask with the indexes of their labels, and others that teach."""

    name: str
    labels: tuple[str, ...]
    question: str | None
    asked: tuple[tuple[str, int], ...]
    teaching: tuple[tuple[str, int], ...]

    def draw(self, per_label: int, shuffled: bool = False) -> list[dict[str, Any]]:
        """The labels of a request, each with at most so many examples, always the same ones."""
        draw = random.Random(SEED)
        mixed = draw.sample(self.teaching, len(self.teaching))
        of = {index: [text for text, owner in mixed if owner == index][:per_label] for index in range(len(self.labels))}
        drawn = [(text[:MAX_CHARS], index) for index, texts in of.items() for text in texts]
        owners = [index for _, index in drawn]
        if shuffled:
            draw.shuffle(owners)
        examples: dict[int, list[str]] = {index: [] for index in of}
        for (text, _), owner in zip(drawn, owners, strict=True):
            examples[owner].append(text)
        return [
            {"name": name} | ({"examples": examples[index]} if examples[index] else {})
            for index, name in enumerate(self.labels)
        ]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    report: dict[str, Any] = {
        "what": "accuracy over HTTP with examples of labels",
        **about(arguments, argv, "torch", precision=auto_precision()),
    }
    with serving(*PATIENT) as server:
        gaining = [_measure(server, _few_clue(name, arguments)) for name in GAINING]
        report |= {"mean_gain": {str(shots): _mean_gain(gaining, shots) for shots in SHOTS}, "gaining": gaining}
        report["must_not_lose"] = list(_must_not_lose(server, arguments))
    report["shortlists"] = [_with_shortlist(size, arguments) for size in arguments.shortlists]
    save(report, arguments.json)
    print(json.dumps({name: report[name] for name in ("mean_gain", "shortlists")}, ensure_ascii=False))
    print(table([*gaining, *report["must_not_lose"]]))
    return 0


# accuracy


def _few_clue(name: str, arguments: argparse.Namespace) -> LabelSet:
    """The fold of a data set lies in a file of the full layout."""
    return _label_set(name, arguments, "dev", load(name, arguments.data / "fewclue", "train_0"))


def _label_set(name: str, arguments: argparse.Namespace, split: str, teaching: Sequence[Any]) -> LabelSet:
    asked = load(name, arguments.data, split)
    if len(asked) > arguments.limit:
        asked = random.Random(SEED).sample(asked, arguments.limit)
    first = asked[0]
    pairs = [tuple([(each.texts[0], each.answer) for each in examples]) for examples in (asked, teaching)]
    return LabelSet(f"{name}/{split}", first.options, first.question, *pairs)


def _measure(server: Server, asked: LabelSet, shots: Sequence[int] = SHOTS, shuffled: bool = False) -> dict[str, Any]:
    before = _rights(server, asked, asked.draw(0))
    found: dict[str, Any] = {"set": asked.name, "labels": len(asked.labels), "without": _share(before)}
    for per_label in shots:
        after = _rights(server, asked, asked.draw(per_label, shuffled))
        found[str(per_label)] = _share(after) | {"gain": _gain(before, after)}
    print(json.dumps(found, ensure_ascii=False), file=sys.stderr, flush=True)
    return found


def _must_not_lose(server: Server, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield _measure(server, _few_clue("eprstmt", arguments))
    yield _measure(server, _label_set("thucnews", arguments, "dev.odd", load("thucnews", arguments.data, "dev.even")))
    shuffled = _few_clue("tnews", arguments)
    yield _measure(server, replace(shuffled, name=f"{shuffled.name}, shuffled examples"), shuffled=True)
    if arguments.labels:
        yield _measure_own(server, json.loads(arguments.labels.read_text(encoding="utf-8")))


def _measure_own(server: Server, sets: dict[str, Any]) -> dict[str, Any]:
    """Each half of the examples of each set teaches the other."""
    before: list[bool] = []
    after: list[bool] = []
    for name, one in sets.items():
        pairs = tuple([(text, one["labels"].index(label)) for text, label in one["examples"]])
        for first in (0, 1):
            half = LabelSet(name, tuple(one["labels"]), one.get("question"), pairs[first::2], pairs[1 - first :: 2])
            before += _rights(server, half, half.draw(0))
            after += _rights(server, half, half.draw(len(pairs)))
    gain = _share(after) | {"gain": _gain(before, after)}
    return {"set": "own label sets", "labels": None, "without": _share(before), "half": gain}


def _rights(server: Server, asked: LabelSet, labels: list[dict[str, Any]]) -> list[bool]:
    """Whether the answer to each text is right."""
    body: dict[str, Any] = {"labels": labels} | ({"question": asked.question} if asked.question else {})
    rights: list[bool] = []
    for start in range(0, len(asked.asked), CHUNK):
        part = asked.asked[start : start + CHUNK]
        results = _post(server, {"inputs": [text for text, _ in part], "top_k": 1, **body})["results"]
        rights += [result["label"] == asked.labels[answer] for result, (_, answer) in zip(results, part, strict=True)]
    return rights


def _post(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}/v1/classify", json=body, timeout=TIMEOUT_S, trust_env=False)
    made: dict[str, Any] = reply.raise_for_status().json()
    return made


def _share(rights: Sequence[bool]) -> dict[str, Any]:
    interval = [round(bound, 4) for bound in wilson(sum(rights), len(rights))]
    return {"value": round(mean(rights), 4), "texts": len(rights), "interval_95": interval}


def _gain(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    changes = [100.0 * (now - then) for then, now in zip(before, after, strict=True)]
    return _points(mean(changes), pstdev(changes) / sqrt(len(changes)))


def _points(value: float, error: float) -> dict[str, Any]:
    bounds = [round(value + side * 1.959964 * error, 2) for side in (-1, 1)]
    return {"points": round(value, 2), "interval_95": bounds, "standard_error": round(error, 3)}


def _mean_gain(sets: Sequence[dict[str, Any]], shots: int) -> dict[str, Any]:
    gains = [one[str(shots)]["gain"] for one in sets]
    error = sqrt(sum(gain["standard_error"] ** 2 for gain in gains)) / len(gains)
    return _points(mean(gain["points"] for gain in gains), error)


# the shortlist


def _with_shortlist(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"shortlist": size}
    blend = json.loads(SHIPPED_BLEND.read_text(encoding="utf-8")) | {"shortlist": size}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        json.dump(blend, file)
        file.flush()
        with serving(*PATIENT, "--blend", file.name) as server:
            for asked in [_few_clue(name, arguments) for name in GAINING[1:]]:
                _rights(server, replace(asked, asked=asked.asked[:1]), asked.draw(0))
                start = time.perf_counter()
                rights = _rights(server, asked, asked.draw(0))
                found[asked.name] = _share(rights) | {"seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def table(sets: Sequence[dict[str, Any]]) -> str:
    lines = ["| data set | texts | without | examples a label | with | gain | 95 % interval |", "|---|" + "---:|" * 6]
    for one in sets:
        for shots, found in one.items():
            if isinstance(found, dict) and "gain" in found:
                low, high = found["gain"]["interval_95"]
                lines.append(
                    f"| {one['set']} | {found['texts']} | {100 * one['without']['value']:.1f} | {shots}"
                    f" | {100 * found['value']:.1f} | {found['gain']['points']:+.1f} | {low:+.1f} to {high:+.1f} |"
                )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("labels", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--limit", type=int, default=300, help="texts of each set at most (default: %(default)s)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="own label sets")
    parser.add_argument("--shortlists", type=int, nargs="*", default=[], metavar="SIZE", help="sizes to measure")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
