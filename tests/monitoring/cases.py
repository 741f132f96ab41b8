"""Cases in which each alert fires or does not. Series are values per minute in promtool's notation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOB = 'job="erlangshen"'
HERE = f'{JOB},instance="a"'
THERE = f'{JOB},instance="b"'
PROD, STAGING = (f'{JOB},namespace="{name}",pod="{name}-1",instance="{name}"' for name in ("prod", "staging"))
CPU = f'{HERE},replica="cpu"'
MODEL = f'{HERE},model="m"'
NO_SERIES: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Case:
    """Input series and the alerts that fire at `minute`; `fires` maps a window ("" without one) to the severity.

    `names` are labels that every alert has, such as the pod; `step` is the interval of the series."""

    alert: str
    series: Mapping[str, str]
    minute: int
    fires: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    step: str = "1m"


def requests(good: int, bad: int, code: str = "500") -> dict[str, str]:
    """`good` and `bad` requests per minute, for eighty minutes."""
    name = "erlangshen_requests_total"
    return {f'{name}{{{JOB},code="200"}}': f"0+{good}x80", f'{name}{{{JOB},code="{code}"}}': f"0+{bad}x80"}


def models(**counts: tuple[int, int]) -> dict[str, str]:
    """Good and bad requests per minute of each model."""
    name = "erlangshen_requests_total"
    return {
        f'{name}{{{JOB},model="{model}",code="{code}"}}': f"0+{count}x80"
        for model, both in counts.items()
        for code, count in zip(("200", "500"), both, strict=True)
    }


def night(failures: int) -> dict[str, str]:
    """Forty requests in the last forty minutes, of which the last ones fail."""
    name = "erlangshen_requests_total"
    return {
        f'{name}{{{JOB},code="200"}}': f"0x60 0+1x{40 - failures} {40 - failures}x30",
        f'{name}{{{JOB},code="500"}}': f"0x{100 - failures} 1+1x{failures - 1} {failures}x30",
    }


def canary(runs: str, interval: int = 60, is_up: int = 1) -> dict[str, str]:
    return {
        f'{CANARY}ok"}}': runs,
        f"erlangshen_canary_interval_seconds{{{HERE}}}": f"{interval}x90",
        f"erlangshen_replica_up{{{CPU}}}": f"{is_up}x90",
    }


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
ALL_BURNS = {"1h": "critical", "6h": "critical", "1d": "warning", "3d": "warning"}
LOST = f'erlangshen_replica_losses_total{{{CPU},reason="killed"}}'
CANARY = f'erlangshen_canary_runs_total{{{CPU},result="'

STARTED = "process_start_time_seconds"
EVERY_FOUR_MINUTES = " ".join(f"{240 * start}x15" for start in range(9))
KUBE_RESTARTS = 'kube_pod_container_status_restarts_total{namespace="prod",pod="prod-1",container="erlangshen"}'
EXPIRY = f"erlangshen_certificate_expiry_timestamp_seconds{{{HERE}}}"
DAY = 86400
KEYS = f"erlangshen_key_refused_total{{{JOB},"

CASES = (
    Case("ErlangshenDown", {f"up{{{HERE}}}": "0x5"}, 2, CRITICAL),
    Case("ErlangshenDown", NO_SERIES, 2, CRITICAL),
    Case("ErlangshenDown", {f"up{{{HERE}}}": "0x5", f"up{{{THERE}}}": "1x5"}, 5),
    # Another namespace or cluster does not hide an outage, nor do targets that are gone or have a prefix.
    Case("ErlangshenDown", {f"up{{{PROD}}}": "0x9", f"up{{{STAGING}}}": "1x9"}, 5, CRITICAL, {"namespace": "prod"}),
    Case(
        "ErlangshenDown", {f"up{{{PROD}}}": "1x9 _x30", f"up{{{STAGING}}}": "1x40"}, 30, CRITICAL, {"namespace": "prod"}
    ),
    Case(
        "ErlangshenDown",
        {f'up{{{PROD},cluster="a"}}': "0x9", f'up{{{PROD},cluster="b"}}': "1x9"},
        5,
        CRITICAL,
        {"cluster": "a"},
    ),
    Case("ErlangshenDown", {'up{job="gpu-erlangshen",instance="a"}': "1x9"}, 5),
    Case("ErlangshenDown", {'up{job="erlangshen-service",instance="a"}': "1x9"}, 5),
    # The exporter of the black-box probe is up when the service is not.
    Case(
        "ErlangshenDown",
        {f"up{{{HERE}}}": "0x9", 'up{job="erlangshen-probe",instance="https://nlp"}': "1x9"},
        5,
        CRITICAL,
    ),
    Case("ErlangshenProbeFails", {'probe_success{job="erlangshen-probe",instance="https://nlp"}': "0x9"}, 5, CRITICAL),
    Case("ErlangshenProbeFails", {'probe_success{job="erlangshen-probe",instance="https://nlp"}': "1x9"}, 5),
    Case("ErlangshenProbeFails", {'probe_success{job="other-probe",instance="https://other"}': "0x9"}, 5),
    Case("ErlangshenInstanceDown", {f"up{{{HERE}}}": "0x5", f"up{{{THERE}}}": "1x5"}, 4, WARNING),
    Case("ErlangshenInstanceDown", {f"up{{{HERE}}}": "0 1x5"}, 4),
    Case(
        "ErlangshenInstanceDown",
        {f"up{{{PROD}}}": "0x5", f"up{{{STAGING}}}": "1x5"},
        4,
        WARNING,
        {"namespace": "prod", "pod": "prod-1"},
    ),
    Case("ErlangshenRestarting", {f"{STARTED}{{{PROD}}}": EVERY_FOUR_MINUTES}, 30, CRITICAL, {"pod": "prod-1"}, "15s"),
    Case("ErlangshenRestarting", {f"{STARTED}{{{PROD}}}": "0x10 600x10 1200x40"}, 40),
    # A container that exits before it can be scraped.
    Case("ErlangshenRestarting", {KUBE_RESTARTS: "0+1x10"}, 10, CRITICAL, {"pod": "prod-1", "namespace": "prod"}),
    Case("ErlangshenRestarting", {KUBE_RESTARTS.replace("erlangshen", "other"): "0+1x10"}, 10),
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
    Case(
        "ErlangshenReplicaLost",
        {f'erlangshen_replica_losses_total{{{PROD},replica="cuda:0",reason="oom"}}': "0x3 1x10"},
        5,
        WARNING,
        {"namespace": "prod", "pod": "prod-1", "reason": "oom"},
    ),
    Case("ErlangshenReplicaCrashLoop", {LOST: "0+1x10"}, 10, CRITICAL),
    Case("ErlangshenReplicaCrashLoop", {LOST: "0 1 2 2x10"}, 10),
    Case("ErlangshenWrongAnswers", {f'{CANARY}wrong"}}': "0x3 1x10"}, 10, CRITICAL),
    Case("ErlangshenWrongAnswers", {f'{CANARY}wrong"}}': "0x20", f'{CANARY}ok"}}': "0+1x20"}, 10),
    Case("ErlangshenCanaryStopped", canary("0+1x10 10x60"), 60, WARNING),
    Case("ErlangshenCanaryStopped", canary("0x60"), 60, WARNING),
    Case("ErlangshenCanaryStopped", canary("0+1x80"), 60),
    Case("ErlangshenCanaryStopped", canary("0x60", interval=0), 60),
    Case("ErlangshenCanaryStopped", canary("0x60", interval=3600), 60),
    Case("ErlangshenCanaryStopped", canary("0x60", is_up=0), 60),
    Case("ErlangshenKernelLeftOut", {f'erlangshen_kernels_left_out{{{CPU},kind="linear"}}': "1x20"}, 15, WARNING),
    Case("ErlangshenKernelLeftOut", {f'erlangshen_kernels_left_out{{{CPU},kind="linear"}}': "0x20"}, 15),
    Case("ErlangshenRowsFailing", {f"erlangshen_failed_rows_total{{{MODEL}}}": "0x3 2x10"}, 5, WARNING),
    Case("ErlangshenRowsFailing", {f"erlangshen_failed_rows_total{{{MODEL}}}": "2x20"}, 5),
    Case("ErlangshenOutOfMemory", {f"erlangshen_out_of_memory_total{{{MODEL}}}": "0x3 1x10"}, 10, WARNING),
    Case("ErlangshenOutOfMemory", {f"erlangshen_out_of_memory_total{{{MODEL}}}": "1x20"}, 10),
    Case("ErlangshenMemoryShort", memory(96), 12, WARNING),
    Case("ErlangshenMemoryShort", memory(90), 12),
    Case("ErlangshenRefusing", requests(5, 95, "429"), 40, CRITICAL),
    Case("ErlangshenRefusing", requests(60, 40, "429"), 40),
    Case("ErlangshenRefusing", requests(1, 3, "429"), 40),
    Case("ErlangshenRefusing", requests(5, 95, "422"), 40),
    Case("ErlangshenOverloaded", refusals(10, 90), 5, WARNING),
    Case("ErlangshenOverloaded", refusals(1, 2), 5),
    Case("ErlangshenOverloaded", refusals(2, 98), 5),
    Case("ErlangshenOverloaded", refusals(10, 90, "draining"), 5),
    Case("ErlangshenLongWait", {f"erlangshen_queue_predicted_wait_seconds{{{HERE}}}": "15x10"}, 7, WARNING),
    Case("ErlangshenLongWait", {f"erlangshen_queue_predicted_wait_seconds{{{HERE}}}": "15x10"}, 3),
    Case("ErlangshenDeadlinesMissed", requests(98, 2, "504"), 12, WARNING),
    Case("ErlangshenDeadlinesMissed", requests(995, 5, "504"), 12),
    Case("ErlangshenDeadlinesMissed", {f'erlangshen_requests_total{{{JOB},code="504"}}': "0x5 1x20"}, 11),
    Case("ErlangshenHttpSaturated", {f"process_cpu_seconds_total{{{HERE}}}": "0+58x30"}, 25, WARNING),
    Case("ErlangshenHttpSaturated", {f"process_cpu_seconds_total{{{HERE}}}": "0+40x30"}, 25),
    Case("ErlangshenHttpSaturated", {'process_cpu_seconds_total{job="node",instance="a"}': "0+58x30"}, 25),
    Case(
        "ErlangshenConnectionsFull",
        {f'erlangshen_connections_refused_total{{{HERE},reason="too_many_connections"}}': "0+5x15"},
        12,
        WARNING,
    ),
    Case(
        "ErlangshenConnectionsFull",
        {f'erlangshen_connections_refused_total{{{HERE},reason="malformed_request"}}': "0+5x15"},
        12,
    ),
    Case("ErlangshenSaturated", {f"erlangshen_replica_busy_seconds_total{{{CPU}}}": "0+57x30"}, 25, INFO),
    Case("ErlangshenSaturated", {f"erlangshen_replica_busy_seconds_total{{{CPU}}}": "0+40x30"}, 25),
    Case("ErlangshenSlowBatches", ratios(25), 25, WARNING),
    Case("ErlangshenSlowBatches", ratios(11), 25),
    Case("ErlangshenKeyAbuse", {f'{KEYS}key="none",reason="unauthorized"}}': "0+30x15"}, 12, WARNING, {"key": "none"}),
    Case("ErlangshenKeyAbuse", {f'{KEYS}key="web",reason="forbidden"}}': "0+30x15"}, 12, WARNING, {"key": "web"}),
    Case("ErlangshenKeyAbuse", {f'{KEYS}key="none",reason="unauthorized"}}': "0+2x15"}, 12),
    Case("ErlangshenKeyAbuse", {f'{KEYS}key="web",reason="requests"}}': "0+30x15"}, 12),
    Case("ErlangshenCertificateExpires", {EXPIRY: f"{10 * DAY}x90"}, 80, WARNING),
    Case("ErlangshenCertificateExpires", {EXPIRY: f"{20 * DAY}x90"}, 80),
    Case("ErlangshenCertificateExpires", {EXPIRY: "0x90"}, 80),
    Case(
        "ErlangshenCertificateExpires",
        {'probe_ssl_earliest_cert_expiry{job="erlangshen-probe",instance="https://nlp"}': f"{10 * DAY}x90"},
        80,
        WARNING,
        {"instance": "https://nlp"},
    ),
    Case("ErlangshenCertificateExpiresNow", {EXPIRY: f"{DAY}x20"}, 10, CRITICAL),
    Case("ErlangshenCertificateExpiresNow", {EXPIRY: f"{3 * DAY}x20"}, 10),
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
        ALL_BURNS,
    ),
    Case("ErlangshenAvailabilityBurn", requests(992, 8), 70, {"6h": "critical", "1d": "warning", "3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(996, 4), 70, {"1d": "warning", "3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(998, 2), 70, {"3d": "warning"}),
    Case("ErlangshenAvailabilityBurn", requests(9995, 5), 70),
    Case("ErlangshenAvailabilityBurn", night(1), 101),
    Case("ErlangshenAvailabilityBurn", night(9), 101),
    Case("ErlangshenAvailabilityBurn", night(20), 101, ALL_BURNS),
    Case("ErlangshenAvailabilityBurn", models(big=(10000, 0), small=(0, 5)), 70, ALL_BURNS, {"model": "small"}),
    Case("ErlangshenAvailabilityBurn", models(big=(10000, 0), none=(0, 5)), 70),
    Case("ErlangshenAvailabilityBurn", models(none=(0, 500), big=(10000, 0)), 70, ALL_BURNS),
    Case("ErlangshenAcceptanceBurn", requests(20, 80, "429"), 70, ALL_BURNS),
    Case("ErlangshenAcceptanceBurn", requests(90, 10, "429"), 70, {"3d": "warning"}),
    Case("ErlangshenAcceptanceBurn", requests(97, 3, "429"), 70),
    Case("ErlangshenAcceptanceBurn", requests(50, 50, "422"), 70),
    Case("ErlangshenAvailabilityBurn", requests(50, 50, "429"), 70),
    Case("ErlangshenAvailabilityBurn", requests(50, 50, "422"), 70),
    Case(
        "ErlangshenLatencyBurn",
        latencies(80, 20),
        70,
        ALL_BURNS,
    ),
    Case("ErlangshenLatencyBurn", latencies(98, 2), 70, {"3d": "warning"}),
    Case("ErlangshenLatencyBurn", latencies(995, 5), 70),
    Case("ErlangshenLatencyBurn", latencies(0, 100, "none"), 70),
)
