"""The files of the leaderboards: names, line formats and archives as suites.toml has them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from service.tools.data.converters import Example
from service.tools.evaluation import EvaluationError
from service.tools.suites import Suite, SuiteTask

NUM_IFLYTEK = 119


def write_submission(
    folder: Path,
    name: str,
    task: SuiteTask,
    examples: Sequence[Example],
    chosen: Sequence[int | float | None],
    fold: str,
) -> Path:
    """Writes the answers to one file. `chosen` are indices of the options, as the data set orders them; or the
    scores of pairs, for a task that asks for them. `fold` is empty or the number of a fold.

    Raises:
        EvaluationError: an example has no answer, or no id.
    """
    if None in chosen:
        number = sum(one is None for one in chosen)
        raise EvaluationError(
            f"{name}: {number} of {len(chosen)} inputs were refused; a submission needs an answer to each"
        )
    missing = next((index for index, example in enumerate(examples) if example.id is None), None)
    if missing is not None:
        raise EvaluationError(f"{name}: example {missing + 1} of the test file has no id")
    if name.endswith("/iflytek") and len(examples[0].options) != NUM_IFLYTEK:
        raise EvaluationError(
            f"{name}: {len(examples[0].options)} of its {NUM_IFLYTEK} classes occur in the files of the folder; the "
            "numbers of the leaderboard need train.json"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.file.replace('{fold}', f'_{fold}' if fold else '')}.json"
    pairs = [(example.id, _spell(task, example, one)) for example, one in zip(examples, chosen, strict=True)]
    if task.layout == "object":
        text = json.dumps({str(key): answer for key, answer in pairs}, ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps({"id": key, task.key: answer}, ensure_ascii=False) + "\n" for key, answer in pairs)
    file.write_text(text, encoding="utf-8")
    return file


def _spell(task: SuiteTask, example: Example, chosen: int | float | None) -> Any:
    assert chosen is not None
    if task.answer == "score":
        return chosen
    index = int(chosen)
    if isinstance(task.answer, tuple):
        return task.answer[index]
    return {"index": str(index), "number": index, "name": example.options[index] if example.options else ""}[
        task.answer
    ]


def write_archive(folder: Path, suite: Suite, files: Iterable[Path]) -> Path | None:
    """The zip file that a leaderboard takes; None where it takes single files."""
    if suite.archive is None:
        return None
    archive = folder / f"{suite.archive}_predict.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for file in files:
            content.write(file, file.name)
    return archive
