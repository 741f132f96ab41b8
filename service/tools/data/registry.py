"""The labelled data sets: where their files are and how a record becomes an example.

`{split}` in a path is "train", "dev" or "test"; `{fold}` is the part of FewCLUE's training data, "few_all" or 0 to 4.
The paths are tried in order: first the folder as FewCLUE and the collections publish it, then the full CLUE layout
under the names of its folders. "fewclue/NAME" and "clue/NAME" try the paths of that collection only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tools.data import converters
from service.tools.data.converters import Example
from service.tools.data.files import find, read_json, read_records, take_each


@dataclass(frozen=True, slots=True)
class Dataset:
    """`read` splits a file into records; `convert` makes any number of examples from one."""

    name: str
    task: str
    files: tuple[str, ...]
    convert: Callable[[Any, Path], Iterator[Example]]
    about: str
    read: Callable[[Path], Iterator[Any]] = read_records


FEWCLUE = "fewclue/"
FOLDS = ("0", "1", "2", "3", "4", "all")


def _few(name: str, *clue: str) -> tuple[str, ...]:
    """FewCLUE's files, then CLUE's, whose folder is called like the data set or one of `clue`."""
    few = (f"{FEWCLUE}{name}/{{split}}_{{fold}}.json", f"{FEWCLUE}{name}/{{split}}_public.json")
    return (*few, *(f"{folder}/{{split}}.json" for folder in (name, *clue)))


def _pairs(name: str) -> tuple[str, ...]:
    return (f"{name}/{{split}}.txt", f"{name}/{{split}}.json", f"{name}_public/{{split}}.json")


_OCNLI = (*_few("ocnli"), "ocnli/{split}.50k.json", "ocnli_public/{split}.json", "ocnli_public/{split}.50k.json")
_ALL = (
    Dataset("tnews", "classify", _few("tnews", "tnews_public"), converters.tnews, "news titles, 15 classes"),
    Dataset("thucnews", "classify", ("thucnews/{split}.txt",), converters.thucnews, "news titles, 10 classes"),
    Dataset("eprstmt", "classify", _few("eprstmt"), converters.sentiment, "product reviews, 2 classes"),
    Dataset("csldcp", "classify", _few("csldcp"), converters.csldcp, "abstracts, 67 disciplines"),
    Dataset(
        "iflytek", "classify", _few("iflytek", "iflytek_public"), converters.iflytek, "app descriptions, 119 classes"
    ),
    Dataset("csl", "classify", _few("csl", "csl_public"), converters.csl, "do the keywords fit the abstract"),
    Dataset("chid", "mrc", _few("chid", "chid_public"), converters.chid, "idiom cloze, 7 candidates"),
    Dataset("cluewsc", "classify", _few("cluewsc", "wsc", "cluewsc2020_public"), converters.cluewsc, "co-reference"),
    Dataset(
        "hotel", "classify", ("sentiment/ChnSentiCorp_htl_all.csv",), converters.review, "hotel reviews, 2 classes"
    ),
    Dataset("takeaway", "classify", ("sentiment/waimai_10k.csv",), converters.review, "takeaway reviews, 2 classes"),
    Dataset("shopping", "classify", ("sentiment/online_shopping_10_cats.csv",), converters.review, "shopping reviews"),
    Dataset(
        "shopping-category",
        "classify",
        ("sentiment/online_shopping_10_cats.csv",),
        converters.category,
        "shopping reviews, 10 categories",
    ),
    Dataset("bustm", "similarity", _few("bustm"), converters.pair, "short dialogue, paraphrase"),
    Dataset("afqmc", "similarity", _pairs("afqmc"), converters.pair, "financial questions, paraphrase"),
    Dataset("lcqmc", "similarity", _pairs("lcqmc"), converters.pair, "questions, paraphrase"),
    Dataset("oppo", "similarity", _pairs("oppo"), converters.pair, "dialogue, paraphrase"),
    Dataset("paws-x", "similarity", ("paws-x/{split}_2k.tsv",), converters.paws, "adversarial paraphrase"),
    Dataset("sts-b", "similarity", _pairs("sts-b"), converters.graded, "graded similarity: 4 and 5 against 0 to 2"),
    Dataset("sts-b-graded", "similarity", _pairs("sts-b"), converters.grade, "graded similarity, 0 to 5: Spearman"),
    Dataset("qbqtc", "classify", ("qbqtc/{split}.json",), converters.qbqtc, "query and title, 3 degrees of relevance"),
    Dataset("ocnli", "nli", _OCNLI, converters.nli, "natural-language inference"),
    Dataset("ocnli-10k", "nli", ("ocnli/{split}.10k.json",), converters.nli, "OCNLI's larger training set"),
    Dataset("cmnli", "nli", _pairs("cmnli"), converters.nli, "natural-language inference, translated"),
    Dataset("snli", "nli", _pairs("snli"), converters.nli, "natural-language inference, translated"),
    Dataset(
        "c3", "mrc", ("c3/c3-m-{split}.json", "c3/c3-d-{split}.json"), converters.c3, "reading comprehension", read_json
    ),
    Dataset("c3-m", "mrc", ("c3/c3-m-{split}.json",), converters.c3, "reading comprehension, prose", read_json),
    Dataset("c3-d", "mrc", ("c3/c3-d-{split}.json",), converters.c3, "reading comprehension, dialogue", read_json),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
HALVES = {"even": 0, "odd": 1}


def load(name: str, data: Path, split: str = "dev", fold: str | None = None) -> list[Example]:
    """All examples of one split, in file order. `dev.even` and `dev.odd` are its examples of even and of odd index.

    Raises:
        DatasetError: the data set, split or file does not exist or cannot be read.
    """
    dataset = _dataset(name)
    stem, _, half = split.partition(".")
    if half and half not in HALVES:
        raise DatasetError(f"split {split!r}: wanted even or odd after the dot")
    examples = [example for path in files_of(name, data, stem, fold) for example in _read(dataset, path)]
    return examples[HALVES[half] :: 2] if half else examples


def files_of(name: str, data: Path, split: str, fold: str | None = None) -> list[Path]:
    """The files of a split: both files of C3 together, the first file that exists of the other data sets.

    `fold` is one of FOLDS: a part of FewCLUE's training and development data, or all parts.
    """
    dataset = _dataset(name)
    patterns = _patterns(dataset, name.rpartition("/")[0], fold)
    filled = tuple(pattern.replace("{fold}", _fold_name(fold)) for pattern in patterns)
    if dataset.name == "c3":
        return [find(data, (pattern,), split) for pattern in filled]
    return [find(data, filled, split)]


def is_known(name: str) -> bool:
    collection, _, base = name.rpartition("/")
    return base in DATASETS and collection in ("", "clue", "fewclue")


def _dataset(name: str) -> Dataset:
    if not is_known(name):
        raise DatasetError(f"no data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name.rpartition("/")[2]]


def _patterns(dataset: Dataset, collection: str, fold: str | None) -> tuple[str, ...]:
    patterns = dataset.files
    if fold is not None:
        patterns = tuple(pattern for pattern in patterns if "{fold}" in pattern)
        if not patterns or fold not in FOLDS:
            raise DatasetError(f"fold {fold!r} of {dataset.name}: FewCLUE's data sets have {', '.join(FOLDS)}")
    elif collection:
        is_few = collection == "fewclue"
        patterns = tuple(pattern for pattern in patterns if pattern.startswith(FEWCLUE) == is_few)
    if not patterns:
        raise DatasetError(f"{dataset.name} is not in {collection}")
    return patterns


def _fold_name(fold: str | None) -> str:
    return "few_all" if fold in (None, "all") else str(fold)


def _read(dataset: Dataset, path: Path) -> Iterator[Example]:
    return take_each(path, dataset.read(path), lambda record: dataset.convert(record, path))
