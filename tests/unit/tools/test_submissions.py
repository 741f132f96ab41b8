"""The files of the leaderboards: names, fields and spellings, line by line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from service.tools.data.registry import load
from service.tools.evaluation import EvaluationError
from service.tools.submissions import write_archive, write_submission
from service.tools.suites import suites
from tests.support.benchmark_files import write_benchmarks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


FILES: dict[tuple[str, str], tuple[str, int, str]] = {
    ("clue", "clue/afqmc"): ("afqmc_predict.json", 1, '{"id": 200, "label": "1"}'),
    ("clue", "clue/tnews"): ("tnews11_predict.json", 10, '{"id": 200, "label": "112"}'),
    ("clue", "clue/ocnli"): ("ocnli_50k_predict.json", 1, '{"id": 200, "label": "neutral"}'),
    ("clue", "clue/cmnli"): ("cmnli_predict.json", 2, '{"id": 200, "label": "entailment"}'),
    ("clue", "clue/cluewsc"): ("cluewsc11_predict.json", 1, '{"id": 200, "label": "true"}'),
    ("clue", "clue/csl"): ("csl_predict.json", 0, '{"id": 200, "label": "0"}'),
    ("clue", "clue/c3"): ("c311_predict.json", 2, '{"id": "test1.1-0", "label": 2}'),
    ("fewclue", "fewclue/eprstmt"): ("eprstmt_predict.json", 1, '{"id": 200, "label": "Positive"}'),
    ("fewclue", "fewclue/csldcp"): ("csldcp_predict.json", 1, '{"id": 200, "label": "法学"}'),
    ("fewclue", "fewclue/tnews"): ("tnewsf_predict.json", 14, '{"id": 200, "label": "116"}'),
    ("fewclue", "fewclue/ocnli"): ("ocnlif_predict.json", 0, '{"id": 200, "label": "contradiction"}'),
    ("fewclue", "fewclue/bustm"): ("bustm_predict.json", 0, '{"id": 200, "label": "0"}'),
    ("fewclue", "fewclue/chid"): ("chidf_predict.json", 3, '{"id": 200, "answer": 3}'),
    ("fewclue", "fewclue/csl"): ("cslf_predict.json", 1, '{"id": 200, "label": "1"}'),
    ("fewclue", "fewclue/cluewsc"): ("cluewscf_predict.json", 0, '{"id": 200, "label": "false"}'),
    ("semantic-matching", "qbqtc"): ("qbqtc_predict.json", 2, '{"id": 200, "label": "2"}'),
}


@pytest.mark.parametrize(("suite", "task"), FILES)
def test_a_file_has_the_name_and_the_lines_of_its_leaderboard(
    data: Path, tmp_path: Path, suite: str, task: str
) -> None:
    name, chosen, first = FILES[suite, task]
    examples = load(task, data, "board")
    file = write_submission(tmp_path, task, suites()[suite].tasks[task], examples, [chosen] * len(examples), "")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert (file.name, lines[0], len(lines)) == (name, first, len(examples))


def test_chid_of_clue_is_one_object_of_blanks_and_numbers(data: Path, tmp_path: Path) -> None:
    examples = load("clue/chid", data, "board")
    task = suites()["clue"].tasks["clue/chid"]
    file = write_submission(tmp_path, "clue/chid", task, examples[:2], [3, 0], "")
    assert file.name == "chid11_predict.json"
    assert file.read_text() == f'{{"{examples[0].id}": 3, "{examples[1].id}": 0}}\n'


def test_the_files_of_folds_have_their_numbers(data: Path, tmp_path: Path) -> None:
    examples = load("fewclue/bustm", data, "board")
    task = suites()["fewclue"].tasks["fewclue/bustm"]
    file = write_submission(tmp_path, "fewclue/bustm", task, examples, [0] * len(examples), "3")
    assert file.name == "bustm_predict_3.json"


def test_iflytek_needs_the_names_of_all_its_classes(data: Path, tmp_path: Path) -> None:
    examples = load("clue/iflytek", data, "board")
    task = suites()["clue"].tasks["clue/iflytek"]
    with pytest.raises(EvaluationError, match=r"^clue/iflytek: 3 of its 119 classes occur in the files of the folder"):
        write_submission(tmp_path, "clue/iflytek", task, examples, [0] * len(examples), "")


def test_an_answer_to_every_example_is_needed(data: Path, tmp_path: Path) -> None:
    examples = load("clue/afqmc", data, "board")
    task = suites()["clue"].tasks["clue/afqmc"]
    with pytest.raises(EvaluationError, match=r"^clue/afqmc: 1 of 4 inputs were refused"):
        write_submission(tmp_path, "clue/afqmc", task, examples, [0, None, 1, 1], "")


def test_few_shot_files_are_zipped(tmp_path: Path) -> None:
    (tmp_path / "bustm_predict.json").write_text("{}\n")
    archive = write_archive(tmp_path, suites()["fewclue"], [tmp_path / "bustm_predict.json"])
    assert archive is not None
    assert zipfile.ZipFile(archive).namelist() == ["bustm_predict.json"]
    assert write_archive(tmp_path, suites()["clue"], []) is None
