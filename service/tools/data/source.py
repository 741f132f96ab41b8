"""Labelled data by its name on a command line: a user's file, or a task of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.errors import DatasetError
from service.tools.data.fields import Fields
from service.tools.data.own import Kind, OwnData, read_own
from service.tools.data.registry import DATASETS, files_of, is_known, load
from service.tools.data.report import make_report
from service.tools.data.tables import SUFFIXES, Layout


def is_file(source: str) -> bool:
    """A task has no suffix; a name with one is a file even if it does not exist, so that the error says so."""
    return not is_known(source) and (Path(source).suffix.lower() in SUFFIXES or Path(source).exists())


def load_source(
    source: str,
    *,
    data: Path | None = None,
    split: str = "dev",
    fold: str | None = None,
    fields: Fields = Fields(),  # noqa: B008 - frozen
    layout: Layout = Layout(),  # noqa: B008 - frozen
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    question: str | None = None,
) -> OwnData:
    """A file with the user's flags, or the split of a task below `data`.

    Raises:
        DatasetError: there is neither such a file nor such a task, or it cannot be read.
    """
    if is_file(source):
        return read_own(Path(source), fields, layout=layout, kind=kind, labels=labels, names=names, question=question)
    if not is_known(source):
        raise DatasetError(f"{source}: is neither a file nor a data set; the data sets are {', '.join(DATASETS)}")
    if data is None:
        raise DatasetError(f"{source}: is a data set; name the folder of the data sets with --data")
    examples = load(source, data, split, fold)
    if not examples:
        raise DatasetError(f"{source}/{split}: has no examples")
    first = examples[0]
    shared = first.options if all(example.options == first.options for example in examples) else ()
    of_task: dict[str, Kind] = {"similarity": "similarity", "nli": "nli", "mrc": "mrc"}
    found: Kind = "graded" if first.grade is not None else of_task.get(first.task, "classify" if shared else "mrc")
    report = make_report(examples, [], shared, len(examples))
    files = tuple(files_of(source, data, split.partition(".")[0], fold))
    return OwnData(f"{source}/{split}", files, found, first.task, shared, examples, Fields(), (), report)
