"""Cases in which each alert fires or does not. Series are values per minute in promtool's notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOB = 'job="erlangshen"'
HERE = f'{JOB},instance="a"'
THERE = f'{JOB},instance="b"'
CPU = f'{HERE},replica="cpu"'
MODEL = f'{HERE},model="m"'
NO_SERIES: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Case:
    """Input series and the alerts that fire at `minute`; `fires` maps a window ("" without one) to the severity."""

    alert: str
    series: Mapping[str, str]
    minute: int
    fires: Mapping[str, str] = field(default_factory=dict)


def requests(good: int, bad: int, code: str = "500") -> dict[str, str]:
    """`good` and `bad` requests per minute, for eighty minutes."""
    name = "erlangshen_requests_total"
    return {f'{name}{{{JOB},code="200"}}': f"0+{good}x80", f'{name}{{{JOB},code="{code}"}}': f"0+{bad}x80"}


def latencies(quick: int, slow: int, model: str = "m") -> dict[str, str]:
    labels, name = f'{JOB},model="{model}"', "erlangshen_request_duration_seconds"
    return {
        f'{name}_bucket{{{labels},le="1.0"}}': f"0+{quick}x80",
        f"{name}_count{{{labels}}}": f"0+{quick + slow}x80",
    }


def refusals(refused: int, taken: int, reason: str = "queue_full") -> dict[str, str]:
    return {
        f'erlangshen_jobs_refused_total{{{HERE},reason="{reason}"}}': f"0+{refused}x10",
        f"erlangshen_queue_duration_seconds_count{{{HERE}}}": f"0+{taken}x10",
    }


def memory(allocated: int) -> dict[str, str]:
    name = "erlangshen_replica_device_memory_bytes"
    return {f'{name}{{{CPU},kind="allocated"}}': f"{allocated}x20", f'{name}{{{CPU},kind="total"}}': "100x20"}


def ratios(total: int) -> dict[str, str]:
    """The sum grows by `total` a minute, over ten batches."""
    name = "erlangshen_prediction_ratio"
    return {f"{name}_sum{{{MODEL}}}": f"0+{total}x30", f"{name}_count{{{MODEL}}}": "0+10x30"}


def scores(low_then: int, low_now: int) -> dict[str, str]:
    """Ten predictions a minute: `low_then` of low confidence for a day, `low_now` since then."""
    labels, name = f'{JOB},task="nli",model="m"', "erlangshen_prediction_score"
    return {
        f'{name}_bucket{{{labels},le="0.6"}}': f"0+{low_then}x1440 {1440 * low_then}+{low_now}x120",
        f"{name}_count{{{labels}}}": "0+10x1561",
    }


def labels(same_then: int, same_now: int) -> dict[str, str]:
    """Ten predictions a minute: `same_then` with the label `same` for a week, `same_now` since then."""
    selected = f'erlangshen_predictions_total{{{JOB},task="similarity",model="m",label='
    return {
        f'{selected}"same"}}': f"0+{same_then}x10080 {10080 * same_then}+{same_now}x480",
        f'{selected}"different"}}': f"0+{10 - same_then}x10080 {10080 * (10 - same_then)}+{10 - same_now}x480",
    }


def truncations(cut: int) -> dict[str, str]:
    """Ten inputs a minute, of which `cut` are truncated."""
    name = f'{JOB},task="mrc"'
    return {
        f"erlangshen_truncated_inputs_total{{{name}}}": f"0+{cut}x120",
        f"erlangshen_inputs_total{{{name}}}": "0+10x120",
    }


WARNING = {"": "warning"}
CRITICAL = {"": "critical"}
INFO = {"": "info"}
LOST = f'erlangshen_replica_losses_total{{{CPU},reason="killed"}}'
CANARY = f'erlangshen_canary_runs_total{{{CPU},result="'

CASES = (
    Case("ErlangshenDown", {f"up{{{HERE}}}": "0x5"}, 2, CRITICAL),
    Case("ErlangshenDown", NO_SERIES, 2, CRITICAL),
    Case("ErlangshenDown", {f"up{{{HERE}}}": "0x5", f"up{{{THERE}}}": "1x5"}, 5),
    Case("ErlangshenInstanceDown", {f"up{{{HERE}}}": "0x5", f"up{{{THERE}}}": "1x5"}, 4, WARNING),
    Case("ErlangshenInstanceDown", {f"up{{{HERE}}}": "0 1x5"}, 4),
    Case("ErlangshenNoReplica", {f"erlangshen_replica_up{{{CPU}}}": "0x5"}, 4, CRITICAL),
    Case(
        "ErlangshenNoReplica",
        {f"erlangshen_replica_up{{{CPU}}}": "0x5", f'erlangshen_replica_up{{{THERE},replica="cpu"}}': "1x5"},
        4,
    ),
    Case("ErlangshenReplicaDown", {f"erlangshen_replica_up{{{CPU}}}": "0x15"}, 12, WARNING),
    Case("ErlangshenReplicaDown", {f"erlangshen_replica_up{{{CPU}}}": "0x15"}, 8),
    Case("ErlangshenReplicaLost", {LOST: "0x3 1x10"}, 5, WARNING),
    Case("ErlangshenReplicaLost", {LOST: "0x3 1x20"}, 20),
    Case("ErlangshenReplicaCrashLoop", {LOST: "0+1x10"}, 10, CRITICAL),
    Case("ErlangshenReplicaCrashLoop", {LOST: "0 1 2 2x10"}, 10),
    Case("ErlangshenWrongAnswers", {f'{CANARY}wrong"}}': "0x3 1x10"}, 10, CRITICAL),
    Case("ErlangshenWrongAnswers", {f'{CANARY}wrong"}}': "0x20", f'{CANARY}ok"}}': "0+1x20"}, 10),
    Case("ErlangshenRowsFailing", {f"erlangshen_failed_rows_total{{{MODEL}}}": "0x3 2x10"}, 5, WARNING),
    Case("ErlangshenRowsFailing", {f"erlangshen_failed_rows_total{{{MODEL}}}": "2x20"}, 5),
    Case("ErlangshenOutOfMemory", {f"erlangshen_out_of_memory_total{{{MODEL}}}": "0x3 1x10"}, 10, WARNING),
    Case("ErlangshenOutOfMemory", {f"erlangshen_out_of_memory_total{{{MODEL}}}": "1x20"}, 10),
    Case("ErlangshenMemoryShort", memory(96), 12, WARNING),
    Case("ErlangshenMemoryShort", memory(90), 12),
    Case("ErlangshenOverloaded", refusals(10, 90), 5, WARNING),
    Case("ErlangshenOverloaded", refusals(2, 98), 5),
    Case("ErlangshenOverloaded", refusals(10, 90, "draining"), 5),
    Case("ErlangshenLongWait", {f"erlangshen_queue_predicted_wait_seconds{{{HERE}}}": "15x10"}, 7, WARNING),
    Case("ErlangshenLongWait", {f"erlangshen_queue_predicted_wait_seconds{{{HERE}}}": "15x10"}, 3),
    Case("ErlangshenDeadlinesMissed", requests(98, 2, "504"), 12, WARNING),
    Case("ErlangshenDeadlinesMissed", requests(995, 5, "504"), 12),
    Case("ErlangshenSaturated", {f"erlangshen_replica_busy_seconds_total{{{CPU}}}": "0+57x30"}, 25, INFO),
    Case("ErlangshenSaturated", {f"erlangshen_replica_busy_seconds_total{{{CPU}}}": "0+40x30"}, 25),
    Case("ErlangshenSlowBatches", ratios(25), 25, WARNING),
    Case("ErlangshenSlowBatches", ratios(11), 25),
    Case("ErlangshenLowConfidence", scores(1, 3), 1560, INFO),
    Case("ErlangshenLowConfidence", scores(3, 3), 1560),
    Case("ErlangshenLabelsMoved", labels(9, 4), 10560, INFO),
    Case("ErlangshenLabelsMoved", labels(9, 8), 10560),
    Case("ErlangshenTruncation", truncations(2), 110, INFO),
    Case("ErlangshenTruncation", truncations(1), 110),
    Case(
        "ErlangshenAvailabilityBurn",
        requests(98, 2),
        70,
        {"1h": "critical", "6h": "critical", "1d": "warning", "3d": "warning"},
    ),
    Case("ErlangshenAvailabilityBurn", requests(992, 8), 70, {"6h": "critical", "1d": "warning", "3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(996, 4), 70, {"1d": "warning", "3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(998, 2), 70, {"3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(9995, 5), 70),
    Case("ErlangshenAvailabilityBurn", requests(50, 50, "429"), 70),
    Case("ErlangshenAvailabilityBurn", requests(50, 50, "422"), 70),
    Case(
        "ErlangshenLatencyBurn",
        latencies(80, 20),
        70,
        {"1h": "critical", "6h": "critical", "1d": "warning", "3d": "warning"},
    ),
    Case("ErlangshenLatencyBurn", latencies(98, 2), 70, {"3d": "warning"}),
    Case("ErlangshenLatencyBurn", latencies(995, 5), 70),
    Case("ErlangshenLatencyBurn", latencies(0, 100, "none"), 70),
)
