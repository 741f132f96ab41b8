"""Exports of Label Studio as flat rows: the fields of the task, and one column for each control of the annotation.

Read are Choices, Taxonomy (the path, joined by "/"), Pairwise ("left" or "right"), Rating and Number. The flat exports
(JSON-MIN, CSV) need no conversion beyond `choices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from service.tools.data.rows import Row


def is_export(records: Sequence[Any]) -> bool:
    first = records[0] if records else None
    return isinstance(first, dict) and isinstance(first.get("data"), dict) and "annotations" in first


def controls(tasks: Sequence[Any]) -> list[str]:
    """The names of the controls that annotations were made with, which are the columns of labels."""
    annotated = (one for task in tasks if isinstance(task, dict) for one in _annotations(task))
    return list(dict.fromkeys(name for one in annotated for name in _labels(one)))


def flatten(tasks: Sequence[Any]) -> Iterator[Row]:
    """A task that is not annotated, or that is annotated differently by several people, has a problem."""
    for number, task in enumerate(tasks, start=1):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            yield Row(number, {}, "is not a task of Label Studio")
            continue
        given = [labels for one in _annotations(task) if (labels := _labels(one))]
        if not given:
            yield Row(number, task["data"], "has no annotation")
        elif any(labels != given[0] for labels in given):
            yield Row(number, task["data"], f"its {len(given)} annotations differ")
        else:
            yield Row(number, {**task["data"], **given[0]})


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    found = task.get("annotations")
    return (
        [one for one in found if isinstance(one, dict) and not one.get("was_cancelled")]
        if isinstance(found, list)
        else []
    )


def _labels(annotation: dict[str, Any]) -> dict[str, Any]:
    """What was chosen in each control, sorted where it is a list."""
    labels: dict[str, Any] = {}
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        if not isinstance(result, dict) or not isinstance(value := result.get("value"), dict):
            continue
        name = str(result.get("from_name", "label"))
        if isinstance(choices := value.get("choices"), list):
            labels[name] = sorted(map(str, choices))
        elif isinstance(paths := value.get("taxonomy"), list):
            labels[name] = sorted("/".join(map(str, path)) for path in paths if isinstance(path, list))
        else:
            found = next((value[key] for key in ("selected", "rating", "number") if key in value), None)
            if found is not None:
                labels[name] = found
    return labels
