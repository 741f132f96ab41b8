"""`python -m service evaluate`: measures a model on labelled data, in this process or at a running server."""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from service.cli_args import above_zero, file_to_write, list_of, whole_above_zero
from service.commands.connection import DEFAULT_URL, add_connection_flags, connect, own_head
from service.commands.data_flags import FORMATS, add_field_flags, print_data, source_arguments
from service.commands.suite_evaluation import (
    add_suite_flags,
    evaluate_suite,
    print_suite,
    used_suite_flags,
    write_result,
)
from service.errors import DatasetError
from service.host import install_command
from service.tools.answer_files import write_bad_cases, write_predictions
from service.tools.asking import returns_number
from service.tools.confusion_picture import draw, has_matplotlib
from service.tools.data.converters import Example
from service.tools.data.own import OwnData
from service.tools.data.registry import DATASETS, FOLDS
from service.tools.data.source import load_source
from service.tools.data.splits import limit
from service.tools.evaluation import SIMILAR, Answer, Ask, EvaluationClient, EvaluationError
from service.tools.scoring import calibrate, report_of

MAX_TABLE_CLASSES = 20
"""With more classes the confusion is only in the JSON."""
HINT = "the labels are numbers, but the model chooses by their words: name them with --label-names 0=差评,1=好评"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="?", metavar="FILE|TASK", help=f"a labelled file ({FORMATS}), or one of the tasks listed below"
    )
    parser.add_argument("--task", metavar="TASK", help="the same as TASK")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder with the data sets, for a TASK")
    parser.add_argument(
        "--split",
        help="of a TASK: train, dev, test, or board, the unlabelled file of a leaderboard; dev.even and dev.odd are "
        "halves of dev (default: dev, of a suite its own)",
    )
    parser.add_argument(
        "--fold",
        choices=(*FOLDS, "each"),
        help="of a TASK of FewCLUE: a part of the split (default: all); each: with --suite",
    )
    parser.add_argument("--limit", type=whole_above_zero, metavar="N", help="at most N examples, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="seed of that draw (default: %(default)s)")
    add_connection_flags(parser)
    parser.add_argument(
        "--head",
        nargs="?",
        const=(),
        type=list_of(str),
        metavar="A,B",
        help="a fine-tuned classifier answers with its own labels (default: if the model has labels); A,B: its names "
        "of the classes, where they differ",
    )
    parser.add_argument(
        "--label-set",
        metavar="NAME",
        help="answer with the labels of a set that is stored on the server, with their descriptions and examples",
    )
    parser.add_argument(
        "--threshold",
        type=above_zero,
        default=SIMILAR,
        metavar="R",
        help="lowest score of a label that holds, where a text has several (default: %(default)s)",
    )
    add_suite_flags(parser)
    _add_outputs(parser)
    add_field_flags(parser)


def _add_outputs(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "output", "The result is one JSON document on standard output, unless that is a terminal."
    )
    group.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="write the result to FILE, too; - prints it on a terminal"
    )
    group.add_argument(
        "--predictions", type=file_to_write, metavar="FILE", help="write a JSON line for each example, without its text"
    )
    group.add_argument(
        "--bad-cases", type=file_to_write, metavar="FILE.csv", help="write the wrong answers, the most certain first"
    )
    group.add_argument(
        "--confusion", type=file_to_write, metavar="FILE.png", help="draw the confusion matrix (needs matplotlib)"
    )
    group.add_argument(
        "--calibrate", type=file_to_write, metavar="FILE", help="add the fitted temperature to this calibration file"
    )


def run(argv: Sequence[str]) -> int:
    tasks = "\n".join(f"  {name:<18} {dataset.about}" for name, dataset in DATASETS.items())
    parser = ArgumentParser(
        prog="python -m service evaluate",
        description="Measure the accuracy of a model on labelled data, in this process or at a running server.",
        epilog=f"tasks (fewclue/TASK and clue/TASK name the collection):\n{tasks}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.suite is None and (args.source is None) == (args.task is None):
        parser.error("wanted one FILE or TASK, or --suite")
    if args.suite is None and (suite_only := used_suite_flags(args)):
        parser.error(f"{', '.join(suite_only)}: wanted --suite")
    if args.label_set is not None:
        _refuse_with_label_set(parser, args)
    if args.confusion is not None and not has_matplotlib():
        parser.error(f"--confusion needs matplotlib: {install_command('-r requirements/bench.txt')}")
    try:
        if args.suite is not None:
            return print_suite(asyncio.run(evaluate_suite(args)), args.json)
        report = asyncio.run(evaluate(args))
    except (DatasetError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(report), file=sys.stderr)
    write_result(report, args.json)
    return 2 if report["not_written"] else 0


def _refuse_with_label_set(parser: ArgumentParser, args: Namespace) -> None:
    for flag, value in (("--suite", args.suite), ("--head", args.head)):
        if value is not None:
            parser.error(f"{flag} brings labels of its own: leave out --label-set")
    if args.calibrate is not None:
        parser.error(
            "--calibrate: a label set has its temperature as a field; leave out --calibrate, and write the temperature "
            "of the summary into the set"
        )


async def evaluate(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """Sends the examples to the server, writes the files, and returns the report. `transport` replaces the network in
    tests."""
    split = args.split or "dev"
    data = load_source(args.source or args.task, data=args.data, split=split, fold=args.fold, **source_arguments(args))
    if not data.examples[0].is_labelled:
        raise DatasetError(
            f"{data.source}: has no answers; evaluate --suite NAME --submit DIR writes a leaderboard's file"
        )
    print_data(data)
    examples = limit(data.examples, args.limit, args.seed)
    async with connect(args, transport) as client:
        examples, ask = await _choose_labels(client, examples, args)
        started = time.perf_counter()
        with closing(_bar(len(examples), data.source)) as bar:
            answers = await client.evaluate(examples, bar.update, ask)
        seconds = time.perf_counter() - started
    report = _about(data, args, client) | report_of(answers) | _speed(len(examples), client.tokens, seconds)
    report |= {"data": data.report.to_json(), "not_written": []}
    for write in (_write_predictions, _write_bad_cases, _write_confusion, _write_calibration):
        try:
            write(args, answers, report, client)
        except (EvaluationError, OSError) as error:  # the result of a long run is not lost with it
            report["not_written"].append(str(error))
    return report


def _about(data: OwnData, args: Namespace, client: EvaluationClient) -> dict[str, Any]:
    is_own = args.model is not None and args.url is None
    return {
        "source": data.source,
        "files": [str(path) for path in data.files],
        "kind": data.kind,
        "model": client.model,
        "models": list(client.models),
        "method": client.method,
        "server": f"in process: {args.model}" if is_own else args.url or DEFAULT_URL,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _speed(num_examples: int, num_tokens: int, seconds: float) -> dict[str, Any]:
    seconds = max(seconds, 1e-9)
    return {
        "seconds": round(seconds, 2),
        "examples_per_s": round(num_examples / seconds, 1),
        "tokens_per_s": round(num_tokens / seconds, 1),
    }


async def _choose_labels(
    client: EvaluationClient, examples: list[Example], args: Namespace
) -> tuple[list[Example], Ask]:
    """Whether the labels of the data are sent, or the model answers with its own; then the examples have those."""
    ask = Ask(threshold=args.threshold)
    if args.label_set is not None:
        examples = await _fit_to_label_set(client, examples, args.label_set)
        return examples, replace(ask, label_set=args.label_set, is_undecided=True)
    if examples[0].task != "classify":
        if examples[0].grade is not None and returns_number(own_head(await client.served(), client.model)):
            return [replace(one, task="classify") for one in examples], replace(ask, head=True)
        return examples, ask
    if args.head is not None:
        return rename_options(examples, args.head) if args.head else examples, replace(ask, head=True)
    info = own_head(await client.served(), client.model)
    if info is None:
        if examples[0].grade is not None:
            raise EvaluationError("a grade of one text needs a fine-tuned model that returns a number")
        if all(option.isdecimal() for option in examples[0].options):
            print(f"warning: {HINT}", file=sys.stderr)
        return examples, ask
    labels = tuple(info["labels"])
    if info.get("zero_shot") and not set(examples[0].options) <= set(labels):
        return examples, ask
    if labels and examples[0].options:
        examples = fit_to_labels(examples, labels)
    print(f"{info['name']} answers with its own labels: {', '.join(labels) or 'without names'}", file=sys.stderr)
    return examples, replace(ask, head=True)


async def _fit_to_label_set(client: EvaluationClient, examples: list[Example], name: str) -> list[Example]:
    if examples[0].task != "classify":
        raise EvaluationError(f"--label-set: the examples are of {examples[0].task}, which takes no labels")
    return fit_to_labels(examples, await client.labels_of(name), of=f"label set {name}")


def fit_to_labels(examples: Sequence[Example], labels: tuple[str, ...], of: str = "model") -> list[Example]:
    """The examples with the labels `of` a model or a label set as options. Those of other classes are left out, and
    counted on stderr.

    Raises:
        EvaluationError: it has none of the classes.
    """
    index_of = {label: index for index, label in enumerate(labels)}
    fitted = []
    for example in examples:
        indices = [index_of.get(example.options[index]) for index in example.answers or (example.answer,) if index >= 0]
        known = tuple(index for index in indices if index is not None)
        if len(known) < len(indices):
            continue
        answers = None if example.answers is None else tuple(sorted(known))
        fitted.append(replace(example, options=labels, answer=known[0] if known else -1, answers=answers))
    if not fitted or not set(labels) & set(examples[0].options):
        way = "--label-names, or with --head" if of == "model" else "--label-names"
        raise EvaluationError(
            f"the {of} calls its classes {', '.join(labels)}, the data set {', '.join(examples[0].options)}; name "
            f"them alike with {way}"
        )
    if len(fitted) < len(examples):
        print(f"not used: {len(examples) - len(fitted)} examples of classes that the {of} lacks", file=sys.stderr)
    return fitted


def rename_options(examples: list[Example], labels: tuple[str, ...]) -> list[Example]:
    """The same examples with a model's own names of the classes, in the same order."""
    for example in examples:
        if len(example.options) != len(labels):
            raise EvaluationError(f"--head names {len(labels)} labels, the classes are {', '.join(example.options)}")
    return [replace(example, options=labels) for example in examples]


Report = dict[str, Any]


def _write_predictions(args: Namespace, answers: Sequence[Answer], report: Report, client: EvaluationClient) -> None:
    if args.predictions is not None:
        write_predictions(args.predictions, answers)


def _write_bad_cases(args: Namespace, answers: Sequence[Answer], report: Report, client: EvaluationClient) -> None:
    if args.bad_cases is not None:
        report["bad_cases"] = write_bad_cases(args.bad_cases, answers)


def _write_confusion(args: Namespace, answers: Sequence[Answer], report: Report, client: EvaluationClient) -> None:
    if args.confusion is None:
        return
    if report.get("confusion") is None:
        raise EvaluationError("--confusion: the examples have no list of classes that they share")
    for line in draw(report["confusion"], args.confusion):
        print(line, file=sys.stderr)


def _write_calibration(args: Namespace, answers: Sequence[Answer], report: Report, client: EvaluationClient) -> None:
    if args.calibrate is None:
        return
    entry = report["calibrated"] = calibrate(args.calibrate, answers, client, name=Path(report["source"]).name)
    if entry["ece_after"] >= entry["ece_before"]:
        report["warnings"].append("the temperature does not lower the calibration error of examples not fitted to")


def _bar(total: int, name: str) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit="example", mininterval=0.2 if sys.stderr.isatty() else 10.0)


def summary(report: dict[str, Any]) -> str:
    """The report as text: a line of the measure, the classes, and the confusion of up to MAX_TABLE_CLASSES classes."""
    low, high = report["interval_95"]
    name, value = _measure(report)
    models = " and ".join(report["models"])
    lines = [
        f"{report['source']} by {models}: {name} {value} of {report['examples']} (95 % interval "
        f"{_shown(report, low)} to {_shown(report, high)}) in {report['seconds']} s, {report['examples_per_s']}/s"
    ]
    if "chance" in report:
        lines[0] = lines[0].replace(") in", f"; chance {report['chance']:.1%}) in")
    if "macro_f1" in report:
        lines.append(f"macro-F1 {report['macro_f1']:.1%}")
    if (calibration := report.get("calibration")) and "temperature" in calibration:
        lines.append(
            f"calibration error {calibration['ece_before']:.1%}, {calibration['ece_after']:.1%} with the temperature "
            f"{calibration['temperature']}"
        )
    lines += [f"refused {num}: {reason}" for reason, num in report["refused"].items()]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines += [f"not written: {reason}" for reason in report["not_written"]]
    if report.get("classes") and len(report["classes"]) <= MAX_TABLE_CLASSES:
        lines += ["", *_class_table(report["classes"])]
    if report.get("confusion") and len(report["confusion"]) <= MAX_TABLE_CLASSES:
        lines += ["", "rows: right answer, columns: the model's answer", *_table(report["confusion"])]
    return "\n".join(lines)


def _measure(report: dict[str, Any]) -> tuple[str, str]:
    name = next(key for key in ("accuracy", "exact", "spearman") if key in report)
    return {"exact": "all labels right"}.get(name, name), _shown(report, report[name])


def _shown(report: dict[str, Any], value: float) -> str:
    return f"{value:.3f}" if "spearman" in report else f"{value:.1%}"


def _class_table(classes: dict[str, dict[str, float]]) -> list[str]:
    head = "class\tprecision\trecall\tF1\texamples\tchosen"
    return [head] + [
        f"{name}\t{row['precision']:.1%}\t{row['recall']:.1%}\t{row['f1']:.1%}\t{row['examples']}\t{row['chosen']}"
        for name, row in classes.items()
    ]


def _table(counts: dict[str, dict[str, int]]) -> list[str]:
    """Tab-separated, so that terminals and spreadsheets align the wide characters."""
    columns = list(next(iter(counts.values())))
    return ["\t".join(["", *columns]), *("\t".join([name, *map(str, row.values())]) for name, row in counts.items())]
