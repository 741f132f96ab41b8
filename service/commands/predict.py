"""`python -m service predict`: labels every row of a file, in this process or at a running server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from service.cli_args import above_zero, checked, list_of, whole_above_zero
from service.commands.connection import add_connection_flags, connect, own_head
from service.commands.data_flags import FORMATS, add_field_flags, fields_from, layout_from
from service.errors import DatasetError
from service.tasks.nli import LABELS as NLI_LABELS
from service.tools.data.converters import PAIR_LABELS, Example
from service.tools.data.fields import Fields, guess_fields
from service.tools.data.files import RecordError
from service.tools.data.own import choices_reader
from service.tools.data.report import NUM_NAMED
from service.tools.data.rows import Row, text_of
from service.tools.data.tables import Table, open_table
from service.tools.evaluation import (
    CHUNK,
    IN_FLIGHT,
    SIMILAR,
    Answer,
    Ask,
    EvaluationClient,
    EvaluationError,
    chunks,
)
from service.tools.labelled_files import SUFFIXES, Output, Progress, TextOutput, WorkbookOutput

TASKS = ("classify", "similarity", "nli", "mrc")
SEVERAL = "|"
"""Between several labels in a cell."""

Convert = Callable[[Row], Example]


@checked
def out_file(text: str) -> Path:
    file = Path(text)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{text}: wanted a file named {', '.join(SUFFIXES)}")
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"{text}: wanted a file in an existing folder")
    return file


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE", help=f"the texts ({FORMATS})")
    parser.add_argument(
        "--out", type=out_file, required=True, metavar="OUT", help=f"the file to write ({', '.join(SUFFIXES)})"
    )
    add_connection_flags(parser)
    parser.add_argument(
        "--task", choices=TASKS, help="default: mrc with choices and a question, similarity for pairs without labels"
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--labels", type=list_of(str.strip), metavar="A,B", help="the labels to choose from (default: the model's own)"
    )
    labels.add_argument("--label-set", metavar="NAME", help="a label set that is stored on the server")
    parser.add_argument("--multi-label", action="store_true", help="score each label by itself; several may hold")
    parser.add_argument(
        "--threshold",
        type=above_zero,
        default=SIMILAR,
        metavar="R",
        help="lowest score of such a label (%(default)s)",
    )
    parser.add_argument("--top-k", type=whole_above_zero, default=1, metavar="K", help="labels to write (%(default)s)")
    parser.add_argument("--limit", type=whole_above_zero, metavar="N", help="the first N rows only")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, whatever is there")
    add_field_flags(parser, has_labels=False)


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service predict",
        description="Label every row of a file. OUT has the columns of FILE, and label, score and error. The same "
        "command goes on where it was interrupted (not with .xlsx).",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        report = asyncio.run(predict(args))
    except (DatasetError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, ensure_ascii=False, indent=2))
    return 0


async def predict(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """Labels the file and returns a report. `transport` replaces the network in tests.

    Raises:
        DatasetError: the file cannot be read, or OUT is there.
        EvaluationError: the server cannot be reached, or cannot do the task.
    """
    table = open_table(args.source, layout_from(args), fields_from(args))
    sample = [row.values for row in table.sample()]
    try:
        fields, guesses = guess_fields(table.columns, sample, fields_from(args), needs_label=False)
    except DatasetError as error:
        raise DatasetError(f"{args.source}: {error.detail}") from None
    for line in (*table.notes, *guesses):
        print(f"  {line}", file=sys.stderr)
    progress = Progress(args.out, _identity(args), overwrite=args.overwrite)
    counts = Counts.of(progress.state)
    if progress.rows:
        print(f"going on after {progress.rows} rows that are in {args.out}", file=sys.stderr)
    async with connect(args, transport) as client:
        task, ask = choose_task(args, fields, own_head(await client.served(), client.model))
        convert = make_converter(args, table, fields, task, sample)
        names = added_names(table.columns, args.top_k)
        output = open_output(args.out, table.columns, names, progress)
        started, first = time.perf_counter(), progress.rows
        rows = islice(table.rows(), first, args.limit)
        with closing(output), closing(tqdm(desc=args.source.name, unit="row", initial=first, disable=None)) as bar:
            async for done in label_rows(client, rows, convert, ask):
                output.write([(row.values, added(answer, names, args)) for row, answer in done])
                counts.add(done)
                if isinstance(output, TextOutput):
                    progress.save(counts.rows, output.size, counts.to_json())
                bar.update(len(done))
        seconds = max(time.perf_counter() - started, 1e-9)
    progress.end()
    return {
        "source": str(args.source),
        "out": str(args.out),
        "task": task,
        "model": client.model,
        "method": client.method,
        **counts.to_json(),
        "seconds": round(seconds, 2),
        "rows_per_s": round((counts.rows - first) / seconds, 1),
    }


def _identity(args: Namespace) -> dict[str, Any]:
    """What another run must have in common to go on with the same file."""
    stat = args.source.stat()
    own = ("key", "out", "overwrite", "source")
    flags = {name: str(value) for name, value in vars(args).items() if name not in own}
    return flags | {"source": str(args.source.resolve()), "bytes": stat.st_size, "changed": stat.st_mtime_ns}


def choose_task(args: Namespace, fields: Fields, head: Mapping[str, Any] | None) -> tuple[str, Ask]:
    """The task, and how a classification is asked for.

    Raises:
        EvaluationError: nothing says what the labels are.
    """
    has_labels = args.labels is not None or args.label_set is not None or fields.choices is not None
    task = args.task
    if task is None:
        is_reading = fields.choices is not None and (fields.question is not None or args.question is not None)
        is_pair = fields.text_pair is not None and not has_labels and head is None
        task = "mrc" if is_reading else "similarity" if is_pair else "classify"
    if task in ("similarity", "nli") and fields.text_pair is None:
        raise EvaluationError(f"{task} compares two texts; name the column of the second with --text-pair")
    if task == "mrc" and fields.choices is None:
        raise EvaluationError("mrc needs the choices of each row; name their column with --choices")
    if task != "classify":
        return task, Ask()
    if not has_labels and head is None:
        raise EvaluationError("the model has no labels of its own; name them with --labels A,B or --label-set NAME")
    is_multi = args.multi_label or (not has_labels and _is_multi_label(head))
    return task, Ask(head=not has_labels, label_set=args.label_set, multi_label=is_multi, threshold=args.threshold)


def _is_multi_label(head: Mapping[str, Any] | None) -> bool:
    return bool(head and (head.get("head") or {}).get("problem_type") == "multi_label_classification")


def make_converter(
    args: Namespace, table: Table, fields: Fields, task: str, sample: Sequence[Mapping[str, Any]]
) -> Convert:
    """What makes an example of a row; it raises RecordError for a row that cannot be used."""
    assert fields.text is not None
    columns = [fields.text, *([fields.text_pair] if fields.text_pair and task != "mrc" else [])]
    fixed = {"similarity": PAIR_LABELS, "nli": NLI_LABELS}.get(task, tuple(args.labels or ()))
    choices_of = None
    if fields.choices is not None:
        choices_of, notes = choices_reader(fields, table.columns, sample)
        for note in notes:
            print(f"  {note}", file=sys.stderr)

    def convert(row: Row) -> Example:
        if not row.values:
            raise RecordError(row.problem)
        question = args.question
        if task in ("mrc", "classify") and fields.question is not None:
            question = text_of(row.values, fields.question)
        options = choices_of(row.values) if choices_of is not None else fixed
        texts = tuple(text_of(row.values, column) for column in columns)
        return Example(task, texts, options, -1, question, line=row.line)

    return convert


async def label_rows(
    client: EvaluationClient, rows: Iterable[Row], convert: Convert, ask: Ask
) -> AsyncIterator[list[tuple[Row, Answer]]]:
    """The rows with their answers, in order, while IN_FLIGHT requests are under way."""
    waiting: deque[asyncio.Task[list[tuple[Row, Answer]]]] = deque()
    source = iter(rows)
    try:
        while group := list(islice(source, CHUNK)):
            waiting.append(asyncio.create_task(_label(client, group, convert, ask)))
            if len(waiting) == IN_FLIGHT:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _label(
    client: EvaluationClient, group: Sequence[Row], convert: Convert, ask: Ask
) -> list[tuple[Row, Answer]]:
    examples: list[Example] = []
    problems: dict[int, str] = {}
    for index, row in enumerate(group):
        try:
            examples.append(convert(row))
        except RecordError as error:
            problems[index] = str(error)
    answers: Iterator[Answer] = iter([one for chunk in chunks(examples) for one in await client.send(chunk, ask)])
    nothing = Example("classify", (), (), -1)
    return [
        (row, Answer(nothing, None, reason=problems[index]) if index in problems else next(answers))
        for index, row in enumerate(group)
    ]


# output


def added_names(columns: Sequence[str], top_k: int) -> list[str]:
    """The names of the added columns; `predicted_label` where the input has `label`."""
    wanted = ["label", "score", *(f"{name}_{k}" for k in range(2, top_k + 1) for name in ("label", "score")), "error"]
    while set(wanted) & set(columns):
        wanted = [f"predicted_{name}" for name in wanted]
    return wanted


def added(answer: Answer, names: Sequence[str], args: Namespace) -> dict[str, Any]:
    """The added values by name. JSON lines have a list of several labels, of `scores`, and an error only if there is
    one."""
    prefix = names[0].removesuffix("label")
    is_json = args.out.suffix.lower() == ".jsonl"
    if answer.chosen is None:
        empty = {} if is_json else dict.fromkeys(names)
        return {**empty, f"{prefix}label": None, f"{prefix}error": answer.reason}
    label: Any = answer.chosen
    if answer.several is not None:
        label = list(answer.several) if is_json else SEVERAL.join(answer.several)
    score = dict(answer.scores)[PAIR_LABELS[1]] if answer.example.task == "similarity" else answer.score
    values = {f"{prefix}label": label, f"{prefix}score": score}
    ranked = sorted(answer.scores, key=lambda one: -one[1])[: args.top_k]
    if args.top_k == 1:
        return values
    if is_json:
        return values | {f"{prefix}scores": [{"label": name, "score": score} for name, score in ranked]}
    for k, (name, score) in enumerate(ranked[1:], start=2):
        values |= {f"{prefix}label_{k}": name, f"{prefix}score_{k}": score}
    return values


def open_output(out: Path, columns: Sequence[str], names: Sequence[str], progress: Progress) -> Output:
    if out.suffix.lower() == ".xlsx":
        return WorkbookOutput(out, columns, names)
    return TextOutput(out, columns, names, progress.bytes)


@dataclass(slots=True)
class Counts:
    """What is in the output so far; `errors` counts rows by reason."""

    rows: int
    labels: Counter[str]
    errors: Counter[str]
    first_errors: list[dict[str, Any]]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Counts:
        """From `to_json`, or nothing."""
        errors = Counter(state.get("errors", {}))
        return cls(state.get("rows", 0), Counter(state.get("labels", {})), errors, list(state.get("first_errors", ())))

    def add(self, done: Sequence[tuple[Row, Answer]]) -> None:
        for row, answer in done:
            self.rows += 1
            if answer.chosen is None:
                self.errors[answer.reason] += 1
                if len(self.first_errors) < NUM_NAMED:
                    self.first_errors.append({"line": row.line, "reason": answer.reason})
            else:
                self.labels.update([answer.chosen] if answer.several is None else answer.several)

    def to_json(self) -> dict[str, Any]:
        failed = self.errors.total()
        return {
            "rows": self.rows,
            "predicted": self.rows - failed,
            "failed": failed,
            "errors": dict(self.errors),
            "first_errors": self.first_errors,
            "labels": dict(self.labels.most_common()),
        }
