"""`evaluate --suite`: measures a model, or the runs of `finetune --suite`, on the tasks of a suite."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.cli_args import file_to_write
from service.commands.connection import connect, own_head
from service.errors import DatasetError, SettingError
from service.tools.asking import Asked, put
from service.tools.data.converters import Example
from service.tools.data.registry import FOLDS, base_name, held_out, load
from service.tools.data.report import key_of
from service.tools.data.splits import limit
from service.tools.decoding import assign_idioms, rank_keywords
from service.tools.evaluation import Answer, Ask, EvaluationClient, EvaluationError
from service.tools.scoring import report_of
from service.tools.submissions import write_archive, write_submission
from service.tools.suites import SUITE_FILE, Score, Suite, suites, summarize, table_lines
from service.tools.training.wordings import Wording, profile_of, wording_of

DECODERS: Mapping[str, tuple[str, Callable[[Sequence[Answer]], list[Answer]]]] = {
    "chid": ("assign_idioms", assign_idioms),
    "csl": ("rank_keywords", rank_keywords),
}
"""Decisions about several examples together, by task, with the flag that turns them on."""
RUN_FILE = "run.json"
SUITE_FLAGS = ("against", "submit", "held_out", "assign_idioms", "rank_keywords", "policy", "choose_policy")
MANY_LABELS = 20
"""From this number of labels on, `--choose-policy` measures the ways to ask for them."""
POLICIES: tuple[dict[str, str], ...] = (
    {"wording": "mini", "method": "choice"},
    {"wording": "upstream", "method": "choice"},
    {"wording": "mini", "method": "embedding"},
    {"wording": "mini", "method": "auto"},
)
"""Ways to ask for many labels: by their names or by the authors' words, of the choice model, of the embedding model, or
of both."""


def add_suite_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "suites", "With --suite, TASK is a task of the suite; without it, all are measured."
    )
    group.add_argument("--suite", choices=tuple(suites()), help="measure the tasks of a suite")
    group.add_argument("--against", choices=("card",), help="print the numbers of the model cards, and the difference")
    group.add_argument(
        "--wording",
        choices=("auto", "mini", "upstream"),
        default="auto",
        help="as mini was trained, or as the authors ask (default: by the model, or as it was fine-tuned)",
    )
    group.add_argument(
        "--held-out",
        action="store_true",
        help="of a fold: measure on the development examples of the others, which did not choose the model",
    )
    group.add_argument("--submit", type=Path, metavar="DIR", help="write the files of the leaderboards instead")
    group.add_argument(
        "--assign-idioms",
        action="store_true",
        help="CHID: choose each idiom of a line once (upstream does; default: off)",
    )
    group.add_argument(
        "--rank-keywords",
        action="store_true",
        help="CSL: of the examples that share an abstract, the better half is right (upstream does; default: off)",
    )
    group.add_argument(
        "--choose-policy",
        type=file_to_write,
        metavar="FILE",
        help="measure the ways to ask for many labels; keep the best",
    )
    group.add_argument("--policy", type=Path, metavar="FILE", help="ask for many labels in the ways of this file")


def used_suite_flags(args: Namespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in SUITE_FLAGS if getattr(args, name)]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured on some tasks: a model of `connect`, and how it was trained, if by a suite."""

    tasks: tuple[str, ...]
    model: str | None
    fold: str | None = None
    seed: int | None = None
    folder: Path | None = None


@dataclass(slots=True)
class Results:
    scores: list[Score]
    problems: dict[str, str]
    files: list[Path]
    policies: dict[str, Any]


async def evaluate_suite(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """The report: a row for each task, the scores of the runs, and why tasks were not measured. `transport` replaces
    the network in tests.

    Raises:
        DatasetError, EvaluationError, SettingError: no task can be measured.
    """
    suite = suites()[args.suite]
    if args.data is None:
        raise SettingError("--suite: name the folder of the data sets with --data")
    wanted = args.source or args.task
    tasks = tuple(suite.choose([wanted] if wanted else None))
    results = Results([], {}, [], {})
    for subject in subjects(args, tasks):
        one = copy(args)
        one.model = subject.model
        async with connect(one, transport) as client:
            for task in subject.tasks:
                try:
                    await _measure_task(client, subject, suite, task, args, results)
                except (DatasetError, EvaluationError, SettingError) as error:
                    results.problems[task] = str(error)
                    print(f"{task}: not measured: {error}", file=sys.stderr, flush=True)
    if not (results.scores or results.files or results.policies):
        raise EvaluationError("; ".join(f"{task}: {problem}" for task, problem in results.problems.items()))
    if archive := (write_archive(args.submit, suite, results.files) if args.submit else None):
        results.files.append(archive)
    if args.choose_policy is not None:
        args.choose_policy.write_text(
            json.dumps(results.policies, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    return _report(args, suite, results)


def _report(args: Namespace, suite: Suite, results: Results) -> dict[str, Any]:
    return {
        "suite": args.suite,
        "model": args.model,
        "split": "board" if args.submit else _split(args, suite),
        "held_out": args.held_out,
        "decoding": {"assign_idioms": args.assign_idioms, "rank_keywords": args.rank_keywords},
        **({"source_of_published": suite.source} if args.against else {}),
        "table": summarize(suite, results.scores, against_card=args.against is not None),
        "runs": [score.to_json() for score in results.scores],
        "policies": results.policies,
        "files": [str(file) for file in results.files],
        "not_measured": results.problems,
    }


def print_suite(report: dict[str, Any], file: Path | None) -> int:
    if report["table"]:
        print("\n".join(table_lines(report["table"])), file=sys.stderr)
    for name, is_on in report["decoding"].items():
        if is_on:
            print(f"with --{name.replace('_', '-')}: examples are decided together", file=sys.stderr)
    if report.get("source_of_published"):
        print(f"published: {report['source_of_published']}", file=sys.stderr)
    write_result(report, file)
    return 2 if report["not_measured"] else 0


def write_result(report: dict[str, Any], file: Path | None) -> None:
    """The report as JSON: to `file`, and to standard output. A terminal gets it only for the file `-`: its hundreds of
    lines would hide the summary."""
    text = json.dumps(report, ensure_ascii=False, indent=2)
    is_named = file == Path("-")
    if file is not None and not is_named:
        file.write_text(text + "\n", encoding="utf-8")
    if is_named or not sys.stdout.isatty():
        print(text)
    elif file is None:
        print("\nthe whole result as JSON: --json FILE", file=sys.stderr)


def subjects(args: Namespace, tasks: tuple[str, ...]) -> Iterator[Subject]:
    """The model that the flags name, or each run of the folder of a suite."""
    folder = Path(args.model) if args.model is not None and args.url is None else None
    if folder is None or not (folder / SUITE_FILE).is_file():
        yield Subject(tasks, args.model, folder=folder)
        return
    runs = json.loads((folder / SUITE_FILE).read_text(encoding="utf-8"))["runs"]
    found = [run for run in runs if run["task"] in tasks]
    if not found:
        raise SettingError(f"{folder / SUITE_FILE}: has no run of {', '.join(tasks)}")
    for run in found:
        path = folder / run["folder"]
        yield Subject((run["task"],), str(path), run["fold"], run["seed"], path)


async def _measure_task(
    client: EvaluationClient, subject: Subject, suite: Suite, task: str, args: Namespace, results: Results
) -> None:
    if args.submit is not None:
        results.files.append(await _submit(client, subject, suite, task, args))
        return
    if args.choose_policy is not None:
        if found := await _choose_policy(client, subject, suite, task, args):
            results.policies[task] = found
        return
    sets = measured_sets(task, subject, suite, args)
    union = list({_key(example): example for _, examples in sets for example in examples}.values())
    _, answers = await _ask(client, subject, task, union, _policy(args, task), args)
    answer_of = {_key(example): answer for example, answer in zip(union, answers, strict=True)}
    served = await client.served()
    form = "zero-shot"
    if subject.folder is not None and (subject.folder / RUN_FILE).is_file():
        form = "head" if any(info["kind"] == "sequence-classification" for info in served) else "choice"
    for fold, examples in sets:
        report = report_of([answer_of[_key(example)] for example in examples])
        value = round(100 * report[suite.tasks[task].metric], 2)
        refused = [f"{count} inputs were refused: {reason}" for reason, count in report["refused"].items()]
        warnings = (*report["warnings"], *refused)
        score = Score(task, value, report["examples"], form, fold, subject.seed, warnings)
        results.scores.append(score)
        where = f" fold {fold}" if fold is not None else ""
        print(f"{task}{where}: {value:.2f} of {report['examples']}", file=sys.stderr, flush=True)


def _key(example: Example) -> tuple[object, ...]:
    return (*key_of(example), example.options, example.answer)


def measured_sets(task: str, subject: Subject, suite: Suite, args: Namespace) -> list[tuple[str | None, list[Example]]]:
    """The examples of each fold; of all together without one."""
    split = _split(args, suite)
    folds: Sequence[str | None] = [subject.fold] if subject.fold is not None else [args.fold]
    if args.fold == "each" and subject.fold is None:
        folds = FOLDS[:-1]
    found = []
    for fold in folds if task.startswith("fewclue/") else [None]:
        if args.held_out and fold not in (None, "all"):
            examples = held_out(task, args.data, fold)
        else:
            examples = load(task, args.data, split, None if split in ("test", "board") else fold)
        if not examples or not examples[0].is_labelled:
            raise DatasetError(
                f"{task}/{split}: has no answers to compare with; --submit writes the leaderboard's file"
            )
        found.append((fold, limit(examples, args.limit, args.seed)))
    return found


def _split(args: Namespace, suite: Suite) -> str:
    split: str = args.split or ("dev" if args.held_out else suite.split)
    return split


# asking


def _policy(args: Namespace, task: str) -> Mapping[str, str]:
    if args.policy is None:
        return {}
    try:
        found = json.loads(args.policy.read_text(encoding="utf-8")).get(task, {}).get("policy", {})
    except (OSError, ValueError, AttributeError) as error:
        raise SettingError(f"--policy {args.policy}: {error}") from None
    return dict(found)


async def _ask(
    client: EvaluationClient,
    subject: Subject,
    task: str,
    examples: Sequence[Example],
    policy: Mapping[str, str],
    args: Namespace,
) -> tuple[list[Asked], list[Answer]]:
    """The examples as they were sent, and the answers to them."""
    info = own_head(await client.served(), client.model)
    asked, is_head = put(examples, info, choose_wording(subject, task, policy, args))
    method = policy.get("method") if not is_head else None
    answers = await client.evaluate([one.sent for one in asked], lambda _: None, Ask(head=is_head, method=method))
    flag, decide = DECODERS.get(base_name(task), ("", None))
    return asked, decide(answers) if decide is not None and getattr(args, flag) else answers


def choose_wording(subject: Subject, task: str, policy: Mapping[str, str], args: Namespace) -> Wording:
    """The one that the model was trained with, if this service has trained it on this task."""
    names = (subject.model or "mini").split(",")
    if subject.folder is not None and (subject.folder / RUN_FILE).is_file():
        identity = json.loads((subject.folder / RUN_FILE).read_text(encoding="utf-8"))["identity"]
        trained_on, _, _ = identity["data"]["source"].rpartition("/")  # TASK/train
        if base_name(trained_on) == base_name(task):
            return Wording.model_validate(identity["wording"])
        names = [identity["model"]["source"]]
    wanted = policy.get("wording", args.wording)
    return wording_of(task, profile_of(*names) if wanted == "auto" else wanted)


async def _submit(client: EvaluationClient, subject: Subject, suite: Suite, task: str, args: Namespace) -> Path:
    examples = load(task, args.data, "board")
    asked, answers = await _ask(client, subject, task, examples, _policy(args, task), args)
    chosen: list[int | float | None] = [one.index(answer) for one, answer in zip(asked, answers, strict=True)]
    if suite.tasks[task].answer == "score":
        chosen = [answer.score for answer in answers]
    fold = "" if subject.fold in (None, "all") else str(subject.fold)
    return write_submission(args.submit, task, suite.tasks[task], examples, chosen, fold)


async def _choose_policy(
    client: EvaluationClient, subject: Subject, suite: Suite, task: str, args: Namespace
) -> dict[str, Any] | None:
    """The best of POLICIES on the development set; None for a task with few labels, or with options of its own."""
    examples = limit(load(task, args.data, "dev"), args.limit, args.seed)
    options = examples[0].options
    if len(options) < MANY_LABELS or any(example.options != options for example in examples):
        return None
    measured: list[dict[str, Any]] = []
    for policy in POLICIES:
        try:
            _, answers = await _ask(client, subject, task, examples, policy, args)
            report = report_of(answers)
        except EvaluationError as error:  # the served models cannot answer in this way
            measured.append({**policy, "error": str(error)})
            continue
        found = {name: report[name] for name in ("accuracy", "interval_95", "examples")}
        measured.append({**policy, **found, "tokens_per_example": round(client.tokens / max(1, len(answers)))})
        client.tokens = 0
        print(f"{task}: {policy}: {report['accuracy']:.1%}", file=sys.stderr, flush=True)
    able = [one for one in measured if "accuracy" in one]
    if not able:
        raise EvaluationError("no policy can be measured with the served models")
    best = max(able, key=lambda one: one["accuracy"])
    return {
        "policy": {name: best[name] for name in ("wording", "method")},
        "labels": len(options),
        "measured": measured,
    }
