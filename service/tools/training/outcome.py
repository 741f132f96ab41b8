"""The end of a fine-tuning run: measures the model on the dev set, writes it as a hub folder, returns the result."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.tasks.calibration import FILE_NAME, Entry, write_entry
from service.tools.confidence import fit_report
from service.tools.training import adapters
from service.tools.training.finetuning import Trained
from service.tools.training.hyperparameters import ALL_LAYERS
from service.tools.training.measures import intervals, measure, per_class, warnings
from service.tools.training.model_card import Card, render
from service.tools.training.model_folder import Described, probabilities_of, write_model_folder
from service.tools.training.run_file import Json, RunFile, write_text
from service.tools.training.session import Session

MIN_CALIBRATION = 100
"""Examples of the dev set, below which a temperature is not fitted: it would be noise."""
PLACES = 4


def write_outcome(session: Session, trained: Trained, run_file: RunFile) -> Json:
    """Writes model, card and calibration, and completes run.json. Only the first process calls it."""
    output, problem = session.request.output, session.problem
    result = measure_outcome(session, trained)
    network = trained.network.network
    if session.request.save_adapter:
        base = adapters.Base.of(session.request.model, session.start)
        save = partial(adapters.save, network, rank=session.values.lora, base=base)
    else:
        save = None
        adapters.merge(network)
    described = Described(problem, trained.max_length, session.question)
    calibration = _calibrate(session, trained)
    write_model_folder(network, session.start.path, output, described, save)
    _write_calibration(output, calibration, is_multi_label=problem.target == "several")
    write_text(output / "README.md", render(_card(session, trained, result, calibration)))
    result |= {"calibration": calibration}
    run_file.finish(result)
    return result


def measure_outcome(session: Session, trained: Trained) -> Json:
    """Measures with intervals, of each class, and warnings; JSON-ready."""
    problem, labels = session.problem, session.problem.labels
    logits, targets = trained.logits, trained.targets
    measures = measure(problem.target, logits, targets, len(labels))
    bounds = intervals(problem.target, logits, targets, len(labels))
    found: Json = {
        "dev": {name: _round(value) for name, value in measures.items()},
        "intervals_95": {name: [_round(low), _round(high)] for name, (low, high) in bounds.items()},
        "examples": {"train": len(session.data.train), "dev": len(targets)},
        "steps": trained.num_steps,
        "best_step": trained.best_step,
        "resumed_from": trained.resumed_from,
        "seconds": round(trained.seconds, 1),
        "max_length": trained.max_length,
        "learning_rate": trained.values.learning_rate,
        "warnings": [],
    }
    if trained.test is not None:
        tested = measure(problem.target, *trained.test, len(labels))
        found["test"] = {name: _round(value) for name, value in tested.items()}
        found["examples"]["test"] = len(trained.test[1])
    if problem.target == "one" and labels:
        chosen = logits.argmax(-1)
        rows = per_class(chosen, targets, len(labels))
        found["per_class"] = {
            label: {name: _round(value) for name, value in row.items()} for label, row in zip(labels, rows, strict=True)
        }
        found["majority"] = _round(max(Counter(targets.tolist()).values()) / len(targets))
        found["warnings"] = warnings(chosen, targets, labels)
    if problem.target == "number" and measures["spearman"] <= 0:
        found["warnings"] = ["the result is at chance: the scores do not follow the grades"]
    return found


def _round(value: float) -> float:
    return round(float(value), PLACES)


def _calibrate(session: Session, trained: Trained) -> Json | None:
    """The temperature of a head on the dev set; None for grades and for a small dev set."""
    problem = session.problem
    if problem.form != "head" or problem.target == "number" or len(trained.targets) < MIN_CALIBRATION:
        return None
    is_multi_label = problem.target == "several"
    probabilities = probabilities_of(trained.logits[:, : len(problem.labels)], is_multi_label=is_multi_label)
    answers = trained.targets.astype(np.int64)
    return dict(fit_report(probabilities, answers))


def _write_calibration(output: Path, fitted: Json | None, *, is_multi_label: bool) -> None:
    """The file that `serve` reads beside the weights, for the labels of the model's own head."""
    file = output / FILE_NAME
    file.unlink(missing_ok=True)
    if fitted is not None:
        write_entry(file, Entry(name=output.name, method="classifier", multi_label=is_multi_label, **fitted))
        file.chmod(0o644)


def _card(session: Session, trained: Trained, result: Json, calibration: Json | None) -> Card:
    values: dict[str, Any] = trained.values.model_dump(exclude_defaults=True)
    values |= {name: getattr(trained.values, name) for name in ("learning_rate", "epochs", "batch_size", "seed")}
    if values.get("freeze") == ALL_LAYERS:
        values["freeze"] = "all"
    return Card(
        title=session.request.output.name,
        base=session.request.model,
        problem=session.problem,
        max_length=trained.max_length,
        question=session.question,
        measures=result["dev"],
        intervals={name: (low, high) for name, (low, high) in result["intervals_95"].items()},
        chance=result.get("majority"),
        per_class=list(result.get("per_class", {}).values()),
        num_train=len(session.data.train),
        num_dev=len(session.data.dev),
        data=Path(session.data.read.source).name,
        values=values | {"steps": trained.num_steps, "best_step": trained.best_step},
        warnings=result["warnings"][:-1] if len(result["warnings"]) > 1 else result["warnings"],
        temperature=calibration["temperature"] if calibration else None,
        calibration_error=(calibration["ece_before"], calibration["ece_after"]) if calibration else None,
    )
