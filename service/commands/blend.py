"""`python -m service blend`: fits the constants of a blend to labelled data, with the scores of a running server.

A blend is how the scores of a choice model and an embedding model count together (docs/blend.md). The examples of even
index decide the constants, those of odd index measure them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from service.cli_args import add_key, file_to_write, server_url, whole_above_zero
from service.commands.data_flags import print_data
from service.errors import DatasetError, SettingError
from service.tasks.blend import SHIPPED_BLEND, Blend, Numbers, mean_over_templates
from service.tools import blending
from service.tools.blending import LabelScores, PairScores
from service.tools.data.converters import Example
from service.tools.data.own import read_own
from service.tools.data.registry import load
from service.tools.data.splits import limit
from service.tools.evaluation import CHUNK, IN_FLIGHT, EvaluationClient, EvaluationError, open_client
from service.tools.scoring import wilson

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
MIN_EXAMPLES = 8


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service blend",
        description="Fit how a choice model and an embedding model count together, on labelled data. The server at "
        "--url serves both; it keeps its constants until it is started again with --blend FILE.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        report = asyncio.run(fit(args))
    except (DatasetError, EvaluationError, SettingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, ensure_ascii=False, indent=2))
    return 0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SET",
        help="a labelled file, as for `evaluate`, of texts and labels, or of pairs and 1 (same meaning) or 0; or a "
        "data set of `evaluate`, as NAME or NAME/SPLIT",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder with the data sets of `evaluate`")
    parser.add_argument("--out", type=file_to_write, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="the constants to start from (default: the bundled)")
    parser.add_argument(
        "--limit",
        type=whole_above_zero,
        default=400,
        metavar="N",
        help="at most N examples of each set, drawn at random (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of that draw (default: %(default)s)")
    add_key(parser)


async def fit(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """Measures, fits, writes the file and returns the report. `transport` replaces the network in tests."""
    start = Blend.read(args.start or SHIPPED_BLEND)
    sets = {name: limit(read_set(name, args.data), args.limit, args.seed) for name in args.sets}
    async with open_client(args.url, args.key, transport) as client:
        scorer = await Scorer.of(EvaluationClient(client), start)
        with closing(tqdm(total=sum(map(len, sets.values())), unit="example", disable=None)) as bar:
            scored = [await scorer.score(name, examples, bar) for name, examples in sets.items()]
    labels = [one for one in scored if isinstance(one, LabelScores)]
    pairs = [one for one in scored if isinstance(one, PairScores)]
    fitted = fit_all(scorer.start, labels, pairs)
    args.out.write_text(json.dumps(blending.to_json(fitted), ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "choice_model": scorer.choice,
        "embedding_model": scorer.embedding,
        "out": str(args.out),
        "sets": [
            *(_report_labels(one.part(ODD), scorer.start, fitted) for one in labels),
            *(_report_pairs(one.part(ODD), scorer.start, fitted) for one in pairs),
        ],
        "constants": {name: value for name, value in blending.to_json(fitted).items() if name != "background"},
    }


def read_set(name: str, data: Path | None) -> list[Example]:
    """Raises DatasetError if there is no such set, or it is one whose answers are not blended."""
    if Path(name).is_file():
        own = read_own(Path(name))
        print_data(own)
        if own.kind not in ("classify", "similarity"):
            raise DatasetError(
                f"{name}: a blend is fitted to texts with one label each, or to pairs; this is {own.kind}"
            )
        examples = own.examples
    elif data is None:
        raise DatasetError(f"{name}: no such file; for a data set of `evaluate`, --data DIR is missing")
    else:
        stem, _, split = name.partition("/")
        examples = load(stem, data, split or "dev")
    if len(examples) < MIN_EXAMPLES:
        raise DatasetError(f"{name}: has {len(examples)} examples; at least {MIN_EXAMPLES} are needed")
    if examples[0].task not in ("classify", "similarity"):
        raise DatasetError(f"{name}: {examples[0].task} is answered by the choice model alone")
    if len({example.options for example in examples}) > 1:
        raise DatasetError(f"{name}: each text has its own labels; a blend is fitted on texts with the same labels")
    return examples


def fit_all(start: Blend, labels: Sequence[LabelScores], pairs: Sequence[PairScores]) -> Blend:
    """The constants that the sets can decide; the others stay."""
    blend = start
    if labels:
        halves = [one.part(EVEN) for one in labels]
        background = blending.background_of(halves).astype(np.float32)
        blend = blending.fit_labels(replace(blend, background=background), halves)
        blend = replace(blend, multi_label=blending.fit_independent(blend, halves))
    if pairs:
        blend = replace(blend, similarity=blending.fit_pairs([one.part(EVEN) for one in pairs]))
    return blend


def _report_labels(scores: LabelScores, start: Blend, fitted: Blend) -> dict[str, Any]:
    found = {
        "choice": blending.classify(start, scores, embedding=False),
        "embedding": blending.classify(fitted, scores, choice=False),
        "before": blending.classify(start, scores),
        "after": blending.classify(fitted, scores),
    }
    right = {name: values.argmax(axis=1) == scores.answers for name, values in found.items()}
    return _report(scores.name, "classify", right)


def _report_pairs(scores: PairScores, start: Blend, fitted: Blend) -> dict[str, Any]:
    assert fitted.similarity, "it was fitted to pairs"
    right = {
        "choice": scores.logits >= 0.0,
        "embedding": fitted.similarity.of_cosines(scores.cosines) >= 0.5,
        "before": (start.similarity or fitted.similarity).of_both(scores.cosines, scores.logits) >= 0.5,
        "after": fitted.similarity.of_both(scores.cosines, scores.logits) >= 0.5,
    }
    return _report(scores.name, "similarity", {name: said == scores.answers for name, said in right.items()})


def _report(name: str, task: str, right: dict[str, Any]) -> dict[str, Any]:
    examples = len(right["after"])
    content: dict[str, Any] = {"set": name, "task": task, "examples": examples}
    for method, is_right in right.items():
        correct = int(is_right.sum())
        interval = [round(bound, 4) for bound in wilson(correct, examples)]
        content[method] = {"accuracy": round(correct / examples, 4), "interval_95": interval}
    return content


@dataclass(frozen=True, slots=True)
class Scorer:
    """Reads the scores of both models from a server. `start` holds the constants to start from, for this embedding
    model."""

    client: EvaluationClient
    choice: str
    embedding: str
    start: Blend

    @classmethod
    async def of(cls, client: EvaluationClient, start: Blend) -> Scorer:
        body: dict[str, Any] = {"inputs": ["今天天气不错"], "labels": ["天气", "体育"]}
        choice = await client.ask("/v1/classify", body | {"method": "choice"})
        embedding = await client.ask("/v1/classify", body | {"method": "embedding"})
        name = str(embedding["model"])
        vector = (await client.ask("/v1/embed", {"inputs": ["今天"], "model": name}))["results"][0]["embedding"]
        return cls(client, str(choice["model"]), name, replace(start.fit_to((name,), len(vector)), model=name))

    async def score(self, name: str, examples: Sequence[Example], bar: Any) -> LabelScores | PairScores:
        answers = np.asarray([example.answer for example in examples])
        if examples[0].task == "similarity":
            return await self._score_pairs(name, examples, answers, bar)
        labels, question = examples[0].options, examples[0].question
        texts = [example.texts[0] for example in examples]
        body: dict[str, Any] = {"labels": list(labels), **({"question": question} if question else {})}
        softmax, yes = [
            await self._label_scores(texts, labels, body | {"multi_label": is_multi}) for is_multi in (False, True)
        ]
        templates = self.start.templates
        vectors = await self._vectors([each.replace("{}", label) for label in labels for each in templates])
        scores = LabelScores(
            name,
            answers,
            blending.yes_no_logits(softmax, yes),
            await self._vectors(texts),
            mean_over_templates(vectors, len(templates)),
        )
        bar.update(len(examples))
        return scores

    async def _score_pairs(self, name: str, examples: Sequence[Example], answers: Any, bar: Any) -> PairScores:
        bodies = [
            {"inputs": [list(one.texts) for one in chunk], "model": self.choice, "method": "choice"}
            for chunk in _chunks(examples)
        ]
        replies = await self._ask("/v1/similarity", bodies)
        probabilities = np.asarray([result["score"] for reply in replies for result in reply["results"]])
        first, second = [await self._vectors([one.texts[side] for one in examples]) for side in (0, 1)]
        bar.update(len(examples))
        return PairScores(name, answers, blending.logit(probabilities), np.einsum("ij,ij->i", first, second))

    async def _label_scores(self, texts: Sequence[str], labels: Sequence[str], body: dict[str, Any]) -> Numbers:
        asked = body | {"model": self.choice, "method": "choice"}
        replies = await self._ask("/v1/classify", [asked | {"inputs": list(chunk)} for chunk in _chunks(texts)])
        rows = []
        for result in chain.from_iterable(reply["results"] for reply in replies):
            score_of = {one["label"]: one["score"] for one in result["scores"]}
            rows.append([score_of[label] for label in labels])
        return np.asarray(rows, dtype=np.float64)

    async def _vectors(self, texts: Sequence[str]) -> Numbers:
        distinct = list(dict.fromkeys(texts))
        bodies = [{"inputs": list(chunk), "model": self.embedding, "normalize": True} for chunk in _chunks(distinct)]
        replies = await self._ask("/v1/embed", bodies)
        vectors = np.asarray([result["embedding"] for reply in replies for result in reply["results"]])
        index_of = {text: index for index, text in enumerate(distinct)}
        return np.asarray(vectors[[index_of[text] for text in texts]], dtype=np.float64)

    async def _ask(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies, in order; IN_FLIGHT requests are sent at a time."""
        replies: list[dict[str, Any]] = []
        for start in range(0, len(bodies), IN_FLIGHT):
            replies += await asyncio.gather(
                *(self.client.ask(path, body) for body in bodies[start : start + IN_FLIGHT])
            )
        return replies


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
