"""Alerts on symptoms and on their early signs. Each has a section in docs/runbooks.md.

The alerts on the error budgets are in `slo`.
"""

from __future__ import annotations

from monitoring.drift import low_confidence, moved, truncated
from monitoring.rule import Alert, Group

UP = 'up{job="erlangshen"}'
REPLICA = "job, instance, replica"
WHERE = "{{ $labels.instance }}"
OVERLOAD = 'reason!="draining"'


def alerts() -> list[Group]:
    return [
        Group("erlangshen-availability", AVAILABILITY),
        Group("erlangshen-replicas", REPLICAS),
        Group("erlangshen-load", LOAD),
        Group("erlangshen-predictions", PREDICTIONS),
    ]


AVAILABILITY = [
    Alert(
        "ErlangshenDown",
        f"sum by (job) ({UP}) == 0 or absent({UP})",
        "critical",
        "No instance of the service is reachable",
        "Prometheus cannot scrape any instance of {{ $labels.job }}: no request is answered.",
        "1m",
    ),
    Alert(
        "ErlangshenInstanceDown",
        f"{UP} == 0",
        "warning",
        f"{WHERE} is not reachable",
        "Prometheus cannot scrape {{ $labels.instance }} ({{ $labels.job }}). Other instances may still answer.",
        "2m",
    ),
    Alert(
        "ErlangshenNoReplica",
        "sum by (job) (erlangshen_replica_up) == 0",
        "critical",
        "No replica is ready",
        "Every request to {{ $labels.job }} is answered with 503: no replica of any instance is ready.",
        "2m",
    ),
]

REPLICAS = [
    Alert(
        "ErlangshenReplicaDown",
        "erlangshen_replica_up == 0",
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} is not ready",
        "It has not been ready for ten minutes: it fails to start, or loads very slowly. Other replicas take its load.",
        "10m",
    ),
    Alert(
        "ErlangshenReplicaLost",
        f"sum by ({REPLICA}, reason) (increase(erlangshen_replica_losses_total[10m])) > 0",
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} was lost ({{{{ $labels.reason }}}})",
        "Its worker process exited and is being replaced; the batches it was computing run again.",
    ),
    Alert(
        "ErlangshenReplicaCrashLoop",
        f"sum by ({REPLICA}) (increase(erlangshen_replica_losses_total[30m])) > 4",
        "critical",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} keeps crashing",
        "Its worker process exited {{ $value | humanize }} times in 30 minutes: restarting does not help.",
    ),
    Alert(
        "ErlangshenWrongAnswers",
        f'sum by ({REPLICA}) (increase(erlangshen_canary_runs_total{{result="wrong"}}[1h])) > 0',
        "critical",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} failed its canary check",
        "Its output for a row with a known answer was wrong, and it was restarted. Answers since its last successful "
        "canary may be wrong; a hardware fault is likely.",
    ),
    Alert(
        "ErlangshenRowsFailing",
        "sum by (job, instance, model) (increase(erlangshen_failed_rows_total[10m])) > 0",
        "warning",
        f"Rows of {{{{ $labels.model }}}} fail on {WHERE}",
        "The forward pass failed for {{ $value | humanize }} rows in ten minutes; their requests were answered 500.",
    ),
    Alert(
        "ErlangshenOutOfMemory",
        "sum by (job, instance, model) (increase(erlangshen_out_of_memory_total[30m])) > 0",
        "warning",
        f"{{{{ $labels.model }}}} ran out of memory on {WHERE}",
        "The service now forms smaller batches, which lowers throughput.",
    ),
    Alert(
        "ErlangshenMemoryShort",
        'erlangshen_replica_device_memory_bytes{kind="allocated"} / ignoring (kind)'
        ' erlangshen_replica_device_memory_bytes{kind="total"} > 0.95',
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} is low on memory",
        "{{ $value | humanizePercentage }} of the device memory is allocated.",
        "10m",
    ),
]

LOAD = [
    Alert(
        "ErlangshenOverloaded",
        f"sum by (job) (rate(erlangshen_jobs_refused_total{{{OVERLOAD}}}[2m]))"
        f" / (sum by (job) (rate(erlangshen_jobs_refused_total{{{OVERLOAD}}}[2m]))"
        " + sum by (job) (rate(erlangshen_queue_duration_seconds_count[2m]))) > 0.05",
        "warning",
        "{{ $labels.job }} is overloaded",
        "{{ $value | humanizePercentage }} of the rows are refused (429, with Retry-After).",
        "1m",
    ),
    Alert(
        "ErlangshenLongWait",
        "max by (job, instance) (erlangshen_queue_predicted_wait_seconds) > 10",
        "warning",
        f"Long queue on {WHERE}",
        "A new request waits {{ $value | humanizeDuration }} before it is computed.",
        "5m",
    ),
    Alert(
        "ErlangshenDeadlinesMissed",
        'sum by (job) (rate(erlangshen_requests_total{code="504"}[5m]))'
        " / sum by (job) (rate(erlangshen_requests_total[5m])) > 0.01",
        "warning",
        "{{ $labels.job }} misses deadlines",
        "{{ $value | humanizePercentage }} of the requests exceed their deadline (504).",
        "5m",
    ),
    Alert(
        "ErlangshenSaturated",
        "avg by (job) (rate(erlangshen_replica_busy_seconds_total[5m])) > 0.9",
        "info",
        "The replicas of {{ $labels.job }} are saturated",
        "They are busy {{ $value | humanizePercentage }} of the time; any additional load makes requests wait.",
        "15m",
    ),
    Alert(
        "ErlangshenSlowBatches",
        "sum by (job, instance, model) (rate(erlangshen_prediction_ratio_sum[10m]))"
        " / sum by (job, instance, model) (rate(erlangshen_prediction_ratio_count[10m])) > 2",
        "warning",
        f"Batches of {{{{ $labels.model }}}} are slower than predicted on {WHERE}",
        "They take {{ $value | humanize }} times the predicted time.",
        "10m",
    ),
]

PREDICTIONS = [
    Alert(
        "ErlangshenLowConfidence",
        f"{low_confidence('', '0.6', '1h', 'job, task, model')} > 0.1"
        f" and {low_confidence('', '0.6', '1h', 'job, task, model')}"
        f" > 2 * {low_confidence('', '0.6', '1h', 'job, task, model', '1d')}",
        "info",
        "Low confidence of {{ $labels.model }} in {{ $labels.task }}",
        "{{ $value | humanizePercentage }} of its predictions have a score of 0.6 or less, more than twice the share "
        "of a day ago.",
        "30m",
    ),
    Alert(
        "ErlangshenLabelsMoved",
        f"{moved('', '6h', '1w', 'job, task, model')} > 0.2",
        "info",
        "Label drift of {{ $labels.model }} in {{ $labels.task }}",
        "The label distribution of the last six hours differs from a week ago by {{ $value | humanizePercentage }} "
        "(total variation distance).",
        "1h",
    ),
    Alert(
        "ErlangshenTruncation",
        f"{truncated('', '1h', 'job, task')} > 0.1",
        "info",
        "Many inputs of {{ $labels.task }} are truncated",
        "{{ $value | humanizePercentage }} of the inputs exceed the maximum length of the model and are truncated.",
        "30m",
    ),
]
