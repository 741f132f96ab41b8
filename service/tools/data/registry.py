"""The labelled data sets: where their files are and how a record becomes an example.

A data set is read in the layout of its publisher. CLUE and FewCLUE have data sets of the same name: `clue/tnews` and
`fewclue/tnews` say which one. A bare name is the collection whose file is there; if both are, it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tools.data import converters
from service.tools.data.converters import Example
from service.tools.data.files import RecordError, find, read_json, read_records, take_each
from service.tools.data.report import key_of


@dataclass(frozen=True, slots=True)
class Dataset:
    """`read` splits a file into records; `convert` makes any number of examples from one.

    FewCLUE's files are in `fewclue/NAME` if it `is_few`; `clue` are CLUE's names of the folder; `files` are paths of
    other publishers, with {split} for the split. `label` is the field that a test file may lack, `train` are names of
    CLUE's training file that are tried before train.json. A data set of `parts` has a file for each {part} of a path.
    """

    name: str
    task: str
    convert: Callable[[Any, Path], Iterator[Example]]
    about: str
    is_few: bool = False
    clue: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    read: Callable[[Path], Iterator[Any]] = read_records
    label: str = "label"
    train: tuple[str, ...] = ()
    parts: tuple[str, ...] = field(default=("",))


FOLDS = ("0", "1", "2", "3", "4", "all")
FEW_ROOTS = ("fewclue", "FewCLUE/datasets")
CLUE_ROOTS = ("clue/", "")
COLLECTIONS = ("fewclue", "clue")
TESTS = ("test", "board")
"""`board` is the unlabelled file of a leaderboard: FewCLUE publishes a labelled test file, too, CLUE does not."""
FEW_STEMS: Mapping[str, tuple[str, ...]] = {
    "test": ("test_public",),
    "board": ("test",),
    "unlabeled": ("unlabeled",),
}
CLUE_STEMS: Mapping[str, tuple[str, ...]] = dict.fromkeys(TESTS, ("test1.1", "test"))
ALIASES = {"wsc": "cluewsc", "cluewsc2020": "cluewsc", "pawsx": "paws-x", "stsb": "sts-b"}


def _pairs(name: str, *others: str) -> tuple[str, ...]:
    """The tab-separated layout of the CSTS collection, then that of others."""
    return (f"{name}/{{split}}.txt", f"{name}/{{split}}.json", *others)


_C3 = ("c3/c3-{part}-{split}.json",)
_C3_OF_CLUE = ("c3_public", "c3")
_STS = _pairs("sts-b", "sts-b/cnsd-sts-{split}.txt", "STS-B/cnsd-sts-{split}.txt")
_QBQTC = tuple(f"{root}/{{split}}{end}.json" for end in ("_public", "") for root in ("qbqtc", "QBQTC/dataset"))
_PAWS = tuple(
    f"{root}/{name}.tsv" for root in ("paws-x", "x-final/zh") for name in ("{split}_2k", "translated_{split}")
)
_REVIEWS = "sentiment/online_shopping_10_cats.csv"
_ALL = (
    Dataset(
        "tnews",
        "classify",
        converters.tnews,
        "news titles, 15 classes",
        is_few=True,
        clue=("tnews", "tnews_public"),
        label="label_desc",
    ),
    Dataset("thucnews", "classify", converters.thucnews, "news titles, 10 classes", files=("thucnews/{split}.txt",)),
    Dataset("eprstmt", "classify", converters.sentiment, "product reviews, 2 classes", is_few=True, clue=("eprstmt",)),
    Dataset("csldcp", "classify", converters.csldcp, "abstracts, 67 disciplines", is_few=True, clue=("csldcp",)),
    Dataset(
        "iflytek",
        "classify",
        converters.iflytek,
        "app descriptions, 119 classes",
        is_few=True,
        clue=("iflytek", "iflytek_public"),
        label="label_des",
    ),
    Dataset(
        "csl", "classify", converters.csl, "do the keywords fit the abstract", is_few=True, clue=("csl", "csl_public")
    ),
    Dataset(
        "chid",
        "mrc",
        converters.chid,
        "idiom cloze, 7 candidates",
        is_few=True,
        clue=("chid", "chid_public"),
        label="answer",
    ),
    Dataset(
        "cluewsc",
        "classify",
        converters.cluewsc,
        "co-reference",
        is_few=True,
        clue=("cluewsc", "wsc", "cluewsc2020_public", "wsc_public"),
    ),
    Dataset(
        "hotel",
        "classify",
        converters.review,
        "hotel reviews, 2 classes",
        files=("sentiment/ChnSentiCorp_htl_all.csv",),
    ),
    Dataset(
        "takeaway", "classify", converters.review, "takeaway reviews, 2 classes", files=("sentiment/waimai_10k.csv",)
    ),
    Dataset("shopping", "classify", converters.review, "shopping reviews", files=(_REVIEWS,)),
    Dataset("shopping-category", "classify", converters.category, "shopping reviews, 10 categories", files=(_REVIEWS,)),
    Dataset("bustm", "similarity", converters.pair, "short dialogue, paraphrase", is_few=True, clue=("bustm",)),
    Dataset(
        "afqmc",
        "similarity",
        converters.pair,
        "financial questions, paraphrase",
        clue=("afqmc", "afqmc_public"),
        files=_pairs("afqmc"),
    ),
    Dataset(
        "lcqmc", "similarity", converters.pair, "questions, paraphrase", files=_pairs("lcqmc", "lcqmc/{split}.tsv")
    ),
    Dataset("oppo", "similarity", converters.pair, "dialogue, paraphrase", files=_pairs("oppo")),
    Dataset(
        "paws-x",
        "similarity",
        converters.paws,
        "adversarial paraphrase",
        files=_PAWS,
    ),
    Dataset("sts-b", "similarity", converters.graded, "graded similarity: 4 and 5 against 0 to 2", files=_STS),
    Dataset("sts-b-graded", "similarity", converters.grade, "graded similarity, 0 to 5: Spearman", files=_STS),
    Dataset("qbqtc", "classify", converters.qbqtc, "query and title, 3 degrees of relevance", files=_QBQTC),
    Dataset(
        "ocnli",
        "nli",
        converters.nli,
        "natural-language inference",
        is_few=True,
        clue=("ocnli", "ocnli_public"),
        train=("train.50k",),
    ),
    Dataset(
        "ocnli-10k",
        "nli",
        converters.nli,
        "OCNLI's training set of 10,000 pairs",
        files=("ocnli/{split}.10k.json", "ocnli/{split}.json", "ocnli_public/{split}.json"),
    ),
    Dataset(
        "cmnli",
        "nli",
        converters.nli,
        "natural-language inference, translated",
        clue=("cmnli", "cmnli_public"),
        files=_pairs("cmnli"),
    ),
    Dataset("snli", "nli", converters.nli, "natural-language inference, translated", files=_pairs("snli")),
    Dataset(
        "c3",
        "mrc",
        converters.c3,
        "reading comprehension",
        clue=_C3_OF_CLUE,
        files=_C3,
        read=read_json,
        label="answer",
        parts=("m", "d"),
    ),
    Dataset("c3-m", "mrc", converters.c3, "reading comprehension, prose", files=_C3, read=read_json, parts=("m",)),
    Dataset("c3-d", "mrc", converters.c3, "reading comprehension, dialogue", files=_C3, read=read_json, parts=("d",)),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
HALVES = {"even": 0, "odd": 1}
SPLITS = ("train", "dev", "test", "board", "unlabeled")


def load(name: str, data: Path, split: str = "dev", fold: str | None = None) -> list[Example]:
    """All examples of one split, in file order. `dev.even` and `dev.odd` are its examples of even and of odd index.

    Those of `board` and `unlabeled`, and of CLUE's test files, have no answer.

    Raises:
        DatasetError: the data set, split or file does not exist or cannot be read, or a bare name means two.
    """
    dataset, _ = _parse(name)
    stem, _, half = split.partition(".")
    if half and half not in HALVES:
        raise DatasetError(f"split {split!r}: wanted even or odd after the dot")
    needs_labels = stem not in (*TESTS, "unlabeled")
    paths = files_of(name, data, stem, fold)
    examples = [example for path in paths for example in _read(dataset, path, needs_labels=needs_labels)]
    return examples[HALVES[half] :: 2] if half else examples


def held_out(name: str, data: Path, fold: str | None) -> list[Example]:
    """The development examples of FewCLUE's other folds, without those whose texts are in this fold."""
    if fold in (None, "all"):
        raise DatasetError(f"{name}: only a fold leaves other folds to measure on; name it with --fold")
    own = {key_of(one) for split in ("train", "dev") for one in load(name, data, split, fold)}
    return [one for one in load(name, data, "dev", "all") if key_of(one) not in own]


def files_of(name: str, data: Path, split: str, fold: str | None = None) -> list[Path]:
    """The files of a split: the first path of the data set that exists, for each of its parts.

    `fold` is one of FOLDS: a part of FewCLUE's training and development data, or all parts.
    """
    dataset, collection = _parse(name)
    if fold is not None and (fold not in FOLDS or not dataset.is_few or collection == "clue"):
        raise DatasetError(f"fold {fold!r} of {dataset.name}: FewCLUE's data sets have {', '.join(FOLDS)}")
    wanted = "fewclue" if fold is not None else collection
    paths = {each: _paths(dataset, each, split, fold) for each in ([wanted] if wanted else COLLECTIONS)}
    if wanted and not any(paths.values()):
        raise DatasetError(f"{dataset.name} is not in {wanted}")
    found = {each: path for each, some in paths.items() if (path := _first(data, some, dataset)) is not None}
    if len(found) > 1:
        which = " and ".join(f"{each}/{dataset.name} ({path})" for each, path in found.items())
        raise DatasetError(f"{name}: there are {which}; name one of them")
    chosen = next(iter(found), None)
    tried = tuple(dict.fromkeys(paths[chosen] if chosen else [path for some in paths.values() for path in some]))
    filled = [tuple(path.replace("{part}", part) for path in tried) for part in dataset.parts]
    return list(dict.fromkeys(find(data, each, split) for each in filled))


def _first(data: Path, paths: tuple[str, ...], dataset: Dataset) -> Path | None:
    filled = (data / path.replace("{part}", dataset.parts[0]) for path in paths)
    return next((path for path in filled if path.is_file()), None)


def is_known(name: str) -> bool:
    collection, _, base = name.rpartition("/")
    return ALIASES.get(base, base) in DATASETS and collection in ("", *COLLECTIONS)


def base_name(name: str) -> str:
    """The name of a data set without its collection."""
    base = name.rpartition("/")[2]
    return ALIASES.get(base, base)


def _parse(name: str) -> tuple[Dataset, str]:
    if not is_known(name):
        raise DatasetError(f"no data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[base_name(name)], name.rpartition("/")[0]


def _paths(dataset: Dataset, collection: str, split: str, fold: str | None) -> tuple[str, ...]:
    """The paths of a split, in the order in which they are tried. The files of other publishers stand after CLUE's:
    they are the same data in another layout."""
    if collection == "fewclue":
        parts = (f"{split}_{'few_all' if fold in (None, 'all') else fold}", f"{split}_public")
        stems = FEW_STEMS.get(split, parts)
        return tuple(f"{root}/{dataset.name}/{stem}.json" for root in FEW_ROOTS for stem in stems if dataset.is_few)
    stems = (*(dataset.train if split == "train" else ()), *CLUE_STEMS.get(split, (split,)))
    if dataset.parts != ("",):  # C3 has one test file of both parts
        stems = tuple(stem if stem.startswith("test") else f"{{part}}-{stem}" for stem in stems)
    clue = tuple(f"{root}{name}/{stem}.json" for root in CLUE_ROOTS for name in dataset.clue for stem in stems)
    is_board = split == "board"
    others = (path for path in dataset.files if not (is_board and "_public" in path))
    return (*clue, *(path.replace("{split}", "test" if is_board else split) for path in others))


def _read(dataset: Dataset, path: Path, *, needs_labels: bool) -> Iterator[Example]:
    def take(record: Any) -> list[Example]:
        examples = list(dataset.convert(record, path))
        if needs_labels and not all(example.is_labelled for example in examples):
            raise RecordError(f"has no field {dataset.label!r}")
        name = record.get("id", record.get("idx")) if isinstance(record, dict) else None
        return [example if example.id is not None else replace(example, id=name) for example in examples]

    return take_each(path, dataset.read(path), take)
