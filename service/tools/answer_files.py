"""Files of the single answers of an evaluation: all of them as JSON lines, and the wrong ones as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.tools.evaluation import Answer, EvaluationError

CSV_ENCODING = "utf-8-sig"
"""With a byte-order mark, without which Excel reads Chinese in CSV as another encoding."""


def write_predictions(file: Path, answers: Sequence[Answer]) -> None:
    """A line for each example, with its line in the data but not its text; `label` is null if it was refused."""
    with file.open("w", encoding="utf-8") as lines:
        for answer in answers:
            lines.write(json.dumps(_prediction(answer), ensure_ascii=False) + "\n")


def _prediction(answer: Answer) -> dict[str, Any]:
    example = answer.example
    content: dict[str, Any] = {"line": example.line}
    if example.grade is not None:
        return content | {"score": answer.score, "expected": example.grade, **_refused(answer)}
    if example.answers is not None:
        labels = None if answer.several is None else list(answer.several)
        content |= {"labels": labels, "expected": list(answer.expected_several)}
    else:
        content |= {"label": answer.chosen, "score": answer.score, "expected": answer.expected}
    scores = [{"label": label, "score": score} for label, score in answer.scores]
    return content | {"is_correct": answer.is_correct, "scores": scores, **_refused(answer)}


def _refused(answer: Answer) -> dict[str, str]:
    return {"error": answer.reason} if answer.chosen is None else {}


def write_bad_cases(file: Path, answers: Sequence[Answer]) -> int:
    """The wrong answers with their texts, those with the highest score first. Returns how many they are.

    Raises:
        EvaluationError: the examples are graded: no answer is right or wrong.
    """
    if answers and answers[0].example.grade is not None:
        raise EvaluationError("--bad-cases: a grade has no wrong answers; --predictions has all scores")
    wrong = [answer for answer in answers if answer.chosen is not None and not answer.is_correct]
    wrong.sort(key=lambda answer: -(answer.score or 0.0))
    with file.open("w", encoding=CSV_ENCODING, newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["line", "text", "text_pair", "question", "expected", "answer", "score", "score_of_expected"])
        for answer in wrong:
            example = answer.example
            text, pair = (*example.texts, "")[:2]
            table.writerow([example.line, text, pair, example.question, *_expected_and_answer(answer)])
    return len(wrong)


def _expected_and_answer(answer: Answer) -> list[Any]:
    if answer.example.answers is not None:
        return ["|".join(answer.expected_several), "|".join(answer.several or ()), answer.score, None]
    return [answer.expected, answer.chosen, answer.score, dict(answer.scores).get(answer.expected)]
