"""The flags that say how a user's file is read, for the commands that read one, and what is printed about it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from typing import Any

from service.cli_args import checked, list_of
from service.tools.data.fields import Fields
from service.tools.data.own import KINDS, OwnData, check_kind
from service.tools.data.tables import SUFFIXES, Layout

FORMATS = " ".join(SUFFIXES)


def add_field_flags(parser: ArgumentParser, *, has_labels: bool = True) -> None:
    """Adds the flags; without `has_labels` those only that find the texts."""
    group = parser.add_argument_group(
        "fields of FILE", "Names of columns, or 'column 1' without a header; what is not given is guessed and printed."
    )
    group.add_argument("--text", metavar="COLUMN", help="the text")
    group.add_argument("--text-pair", metavar="COLUMN", help="the second text of a pair")
    if has_labels:
        group.add_argument("--label", metavar="COLUMN", help="the label, or the right choice")
        group.add_argument("--score", metavar="COLUMN", help="a number instead of a label: graded similarity")
    group.add_argument(
        "--choices", metavar="COLUMN", help="the choices of each row: one column, or several separated by commas"
    )
    group.add_argument("--question-field", metavar="COLUMN", help="the question that the choices answer")
    group.add_argument("--separator", metavar="S", help="what stands between several labels, or choices, in a cell")
    if has_labels:
        group.add_argument("--kind", type=checked(check_kind), help=f"one of {', '.join(KINDS)}")
        group.add_argument(
            "--labels", type=list_of(str.strip), metavar="A,B", help="the classes, in order; others are not used"
        )
        group.add_argument(
            "--label-names",
            type=label_names,
            metavar="0=差评,1=好评",
            help="what to call the labels of the file: the zero-shot form decides by these words",
        )
    group.add_argument("--question", metavar="TEXT", help="the question that all labels answer")
    group.add_argument("--encoding", metavar="NAME", help="default: UTF-8 or GB18030, by the bytes of the file")
    group.add_argument(
        "--header", action=BooleanOptionalAction, default=None, help="whether the first line names the columns"
    )
    group.add_argument("--sheet", metavar="NAME", help="the sheet of a workbook; default: the first")


@checked
def label_names(text: str) -> dict[str, str]:
    names = {}
    for part in text.split(","):
        label, equals, name = (word.strip() for word in part.partition("="))
        if not (label and equals and name):
            raise ValueError(f"{text}: wanted LABEL=NAME,LABEL=NAME")
        names[label] = name
    return names


def fields_from(args: Namespace) -> Fields:
    return Fields(
        text=args.text,
        text_pair=args.text_pair,
        label=getattr(args, "label", None),
        choices=args.choices,
        question=args.question_field,
        score=getattr(args, "score", None),
        separator=args.separator,
    )


def layout_from(args: Namespace) -> Layout:
    return Layout(encoding=args.encoding, has_header=args.header, sheet=args.sheet)


def source_arguments(args: Namespace) -> dict[str, Any]:
    """The keyword arguments of `load_source` and `read_own` that the flags give."""
    return {
        "fields": fields_from(args),
        "layout": layout_from(args),
        "kind": args.kind,
        "labels": args.labels,
        "names": args.label_names,
        "question": args.question,
    }


def print_data(data: OwnData) -> None:
    """Prints on stderr what was guessed and what is in the data."""
    print(f"{data.source}: {data.kind}", file=sys.stderr)
    for line in (*data.guesses, *data.report.lines()):
        print(f"  {line}", file=sys.stderr)
    sys.stderr.flush()
