"""Alerts on symptoms and on what will become one. Each has a section in docs/runbooks.md.

Knows the metrics of the service; the alerts on the error budgets are in `slo`.
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
        "No instance of the service can be reached",
        "Prometheus reaches no instance of {{ $labels.job }}: nobody is answered.",
        "1m",
    ),
    Alert(
        "ErlangshenInstanceDown",
        f"{UP} == 0",
        "warning",
        f"{WHERE} cannot be reached",
        "Prometheus cannot read the metrics of {{ $labels.instance }} ({{ $labels.job }}). Others may still answer.",
        "2m",
    ),
    Alert(
        "ErlangshenNoReplica",
        "sum by (job) (erlangshen_replica_up) == 0",
        "critical",
        "No replica computes",
        "Every request to {{ $labels.job }} is answered 503: no replica of any instance is ready.",
        "2m",
    ),
]

REPLICAS = [
    Alert(
        "ErlangshenReplicaDown",
        "erlangshen_replica_up == 0",
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} does not compute",
        "It has not been ready for ten minutes: it cannot start, or loads very slowly. The others carry its load.",
        "10m",
    ),
    Alert(
        "ErlangshenReplicaLost",
        f"sum by ({REPLICA}, reason) (increase(erlangshen_replica_losses_total[10m])) > 0",
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} was lost ({{{{ $labels.reason }}}})",
        "Its process ended and is being replaced; what it had in hand was computed again.",
    ),
    Alert(
        "ErlangshenReplicaCrashLoop",
        f"sum by ({REPLICA}) (increase(erlangshen_replica_losses_total[30m])) > 4",
        "critical",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} is lost again and again",
        "It was lost {{ $value | humanize }} times in half an hour: restarting does not mend it.",
    ),
    Alert(
        "ErlangshenWrongAnswers",
        f'sum by ({REPLICA}) (increase(erlangshen_canary_runs_total{{result="wrong"}}[1h])) > 0',
        "critical",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} computed a known row wrongly",
        "The replica was restarted. Answers since its last good canary may be wrong: suspect the hardware.",
    ),
    Alert(
        "ErlangshenRowsFailing",
        "sum by (job, instance, model) (increase(erlangshen_failed_rows_total[10m])) > 0",
        "warning",
        f"{{{{ $labels.model }}}} fails on rows at {WHERE}",
        "The forward failed on {{ $value | humanize }} rows in ten minutes; their requests were answered 500.",
    ),
    Alert(
        "ErlangshenOutOfMemory",
        "sum by (job, instance, model) (increase(erlangshen_out_of_memory_total[30m])) > 0",
        "warning",
        f"{{{{ $labels.model }}}} ran out of memory at {WHERE}",
        "Batches are smaller from now on: throughput is lower than it could be.",
    ),
    Alert(
        "ErlangshenMemoryShort",
        'erlangshen_replica_device_memory_bytes{kind="allocated"} / ignoring (kind)'
        ' erlangshen_replica_device_memory_bytes{kind="total"} > 0.95',
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} has little memory left",
        "{{ $value | humanizePercentage }} of the memory is allocated.",
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
        "{{ $labels.job }} is asked for more than it can compute",
        "{{ $value | humanizePercentage }} of the rows are refused (429, with Retry-After).",
        "1m",
    ),
    Alert(
        "ErlangshenLongWait",
        "max by (job, instance) (erlangshen_queue_predicted_wait_seconds) > 10",
        "warning",
        f"Requests wait long at {WHERE}",
        "What comes now is computed in {{ $value | humanizeDuration }}.",
        "5m",
    ),
    Alert(
        "ErlangshenDeadlinesMissed",
        'sum by (job) (rate(erlangshen_requests_total{code="504"}[5m]))'
        " / sum by (job) (rate(erlangshen_requests_total[5m])) > 0.01",
        "warning",
        "{{ $labels.job }} misses deadlines",
        "{{ $value | humanizePercentage }} of the requests are not answered in time (504).",
        "5m",
    ),
    Alert(
        "ErlangshenSaturated",
        "avg by (job) (rate(erlangshen_replica_busy_seconds_total[5m])) > 0.9",
        "info",
        "The replicas of {{ $labels.job }} are never idle",
        "They compute {{ $value | humanizePercentage }} of the time: a little more load, and requests wait.",
        "15m",
    ),
    Alert(
        "ErlangshenSlowBatches",
        "sum by (job, instance, model) (rate(erlangshen_prediction_ratio_sum[10m]))"
        " / sum by (job, instance, model) (rate(erlangshen_prediction_ratio_count[10m])) > 2",
        "warning",
        f"Batches of {{{{ $labels.model }}}} take longer than they should at {WHERE}",
        "They take {{ $value | humanize }} times what was measured.",
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
        "{{ $labels.model }} is less sure of {{ $labels.task }} than it was",
        "{{ $value | humanizePercentage }} of its decisions have a score of 0.6 or less, twice as many as a day ago.",
        "30m",
    ),
    Alert(
        "ErlangshenLabelsMoved",
        f"{moved('', '6h', '1w', 'job, task, model')} > 0.2",
        "info",
        "{{ $labels.model }} decides {{ $labels.task }} otherwise than a week ago",
        "{{ $value | humanizePercentage }} of the decisions of six hours would have had another label.",
        "1h",
    ),
    Alert(
        "ErlangshenTruncation",
        f"{truncated('', '1h', 'job, task')} > 0.1",
        "info",
        "Many inputs of {{ $labels.task }} are cut",
        "{{ $value | humanizePercentage }} of the inputs do not fit the model; their ends are not read.",
        "30m",
    ),
]
