"""Metrics: declared series exist before the first request under their documented names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from service.domain import Timing
from service.metric_labels import DECISIONS, NO_MODEL, OTHER_LABEL
from service.metrics import Metrics
from tests.fakes import make_metrics, value

TASKS = ("classify", "embed")


def declared() -> Metrics:
    metrics = Metrics(CollectorRegistry())
    metrics.declare(models=["m"], replicas=["cpu"], tasks=TASKS)
    metrics.declare_model("m", family="bert", kind="encoder", source="folder", revision="")
    metrics.declare_predictions("classify", "m", ["负面", "正面"])
    metrics.declare_keys(["app"])
    metrics.declare_build(version="1", python="3.11")
    metrics.replica_holds("cpu", device="cpu", precisions={"m": "float32"}, memory_bytes=1)
    return metrics


def test_every_metric_has_a_series_after_declaring() -> None:
    text = generate_latest(declared().registry).decode()
    series = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    for entry in declared().entries():
        name = f"{entry.name}_count" if entry.kind == "histogram" else entry.name
        assert name in series, f"{entry.name} has no series before the first request"


def test_entries_have_name_kind_help_and_labels() -> None:
    entries = {entry.name: entry for entry in declared().entries()}
    entry = entries["erlangshen_compute_duration_seconds"]
    assert (entry.kind, entry.labels) == ("histogram", ("model",))
    assert all(entry.help.endswith(".") for entry in entries.values())
    assert len(entries) == len(declared().entries())


def test_every_entry_is_exposed_under_its_name() -> None:
    metrics = declared()
    families = {family.name for family in metrics.registry.collect()}
    assert families == {entry.name.removesuffix("_total") for entry in metrics.entries()}


def test_requests_are_counted_by_code_and_refusals_have_no_model() -> None:
    metrics = make_metrics()
    with metrics.in_progress("classify"):
        assert value(metrics, "requests_in_progress", task="classify") == 1
    metrics.request_done("classify", "m", 200, 0.5)
    metrics.request_done("classify", None, 404, 0.5)
    assert value(metrics, "requests_in_progress", task="classify") == 0
    assert value(metrics, "requests_total", task="classify", model="m", code="200") == 1
    assert value(metrics, "requests_total", task="classify", model=NO_MODEL, code="404") == 1
    assert value(metrics, "request_duration_seconds_sum", task="classify", model="m") == 0.5
    assert value(metrics, "request_duration_seconds_sum", task="classify", model=NO_MODEL) == 0.5


def test_prediction_series_exist_before_the_first_prediction() -> None:
    metrics = make_metrics()
    metrics.declare_predictions("classify", "m", ["负面", "正面"])
    metrics.declare_predictions("mrc", "m", [])
    assert value(metrics, "predictions_total", task="classify", model="m", label="负面") == 0
    assert value(metrics, "predictions_total", task="mrc", model="m", label=OTHER_LABEL) == 0
    assert value(metrics, "prediction_score_count", task="mrc", model="m") == 0
    metrics.answered("mrc", "m", 1, Timing(), [(None, 0.25, None)])
    assert value(metrics, "predictions_total", task="mrc", model="m", label=OTHER_LABEL) == 1
    assert value(metrics, "prediction_score_bucket", task="mrc", model="m", le="0.3") == 1


def test_decisions_are_counted_by_kind() -> None:
    metrics = make_metrics()
    metrics.declare_predictions("classify", "m", [])
    assert value(metrics, "decisions_total", task="classify", model="m", decision="ambiguous") == 0
    metrics.answered("classify", "m", 3, Timing(), [(None, 0.2, "none"), (None, 0.3, "none"), (None, 0.9, "label")])
    found = {kind: value(metrics, "decisions_total", task="classify", model="m", decision=kind) for kind in DECISIONS}
    assert found == {"label": 1, "none": 2, "ambiguous": 0}


def test_a_replica_is_in_exactly_one_state() -> None:
    metrics = make_metrics()
    metrics.replica_is("cpu", "loading")
    metrics.replica_is("cpu", "ready")
    assert value(metrics, "replica_up", replica="cpu") == 1
    assert value(metrics, "replica_state", replica="cpu", state="ready") == 1
    assert value(metrics, "replica_state", replica="cpu", state="loading") == 0
