"""Alerts on symptoms and on their early signs. Each has a section in docs/runbooks.md.

The alerts on the error budgets are in `slo`.
"""

from __future__ import annotations

from monitoring.drift import low_confidence, moved, truncated
from monitoring.rule import Alert, Group, Recording
from monitoring.settings import SETTINGS
from monitoring.slo import BY, REQUESTS

JOB = f'job=~"{SETTINGS.job}"'
UP = f"up{{{JOB}}}"
INSTANCES = "erlangshen:instances:up"
INSTANCE = f"{BY}, pod, instance"
REPLICA = f"{INSTANCE}, replica"
WHERE = "{{ with $labels.pod }}{{ . }}{{ else }}{{ $labels.instance }}{{ end }}"
"""The pod, which a log can be read of; its address outside of Kubernetes."""
DEPLOYMENT = "{{ $labels.job }}{{ with $labels.namespace }} in {{ . }}{{ end }}"
OVERLOAD = 'reason!="draining"'
REFUSED_ROWS = f"sum by ({BY}) (rate(erlangshen_jobs_refused_total{{{OVERLOAD}}}[2m]))"
TAKEN_ROWS = f"sum by ({BY}) (rate(erlangshen_queue_duration_seconds_count[2m]))"
CERTIFICATES = (
    "(erlangshen_certificate_expiry_timestamp_seconds > 0"
    f' or probe_ssl_earliest_cert_expiry{{job=~"{SETTINGS.probe_job}"}}) - time()'
)
REFUSED, DECIDED, LATE = 'code="429"', 'code=~"2..|429|5.."', 'code="504"'
SLOW = "2m"
"""Evaluation interval of rules on hours and days."""


def alerts() -> list[Group]:
    return [
        Group("erlangshen-availability", AVAILABILITY),
        Group("erlangshen-replicas", REPLICAS, "30s"),
        Group("erlangshen-load", LOAD, "30s"),
        Group("erlangshen-security", SECURITY, "1m"),
        Group("erlangshen-predictions", PREDICTIONS, SLOW),
    ]


def requests(code: str = "") -> str:
    """Requests per second of a deployment, from the recorded rates."""
    return f"sum by ({BY}) ({REQUESTS}{f'{{{code}}}' if code else ''})"


AVAILABILITY: list[Recording | Alert] = [
    Recording(INSTANCES, f"sum by ({BY}) ({UP})"),
    # The targets of a deployment without pods are gone, so its `up` is absent and not 0.
    Alert(
        "ErlangshenDown",
        f"{INSTANCES} == 0"
        f" or (group by ({BY}) (last_over_time({INSTANCES}[1d])) unless group by ({BY}) ({UP}))"
        f" or (absent({UP}) unless on () last_over_time({INSTANCES}[1d]))",
        "critical",
        f"No instance of {DEPLOYMENT} is reachable",
        "Prometheus cannot scrape any instance, or has no targets any more: no request is answered.",
        "1m",
    ),
    Alert(
        "ErlangshenProbeFails",
        f'max by ({BY}, instance) (probe_success{{job=~"{SETTINGS.probe_job}"}}) == 0',
        "critical",
        "{{ $labels.instance }} does not answer from outside",
        "The black-box probe of the address that clients use fails. The metrics of the service do not show requests "
        "that never reach it.",
        "2m",
    ),
    Alert(
        "ErlangshenInstanceDown",
        f"{UP} == 0",
        "warning",
        f"{WHERE} is not reachable",
        f"Prometheus cannot scrape {{{{ $labels.instance }}}} of {DEPLOYMENT}. Other instances may still answer.",
        "2m",
    ),
    Alert(
        "ErlangshenRestarting",
        f"sum by ({INSTANCE}) (changes(process_start_time_seconds{{{JOB}}}[30m])) > 2"
        " or on (cluster, namespace, pod) sum by (cluster, namespace, pod)"
        f' (increase(kube_pod_container_status_restarts_total{{container="{SETTINGS.container}"}}[30m])) > 2',
        "critical",
        f"{WHERE} keeps restarting",
        "Its HTTP process was started {{ $value | humanize }} times in 30 minutes. Each time its requests are lost, "
        "and it answers none until its models are loaded.",
    ),
    Alert(
        "ErlangshenNoReplica",
        f"sum by ({BY}) (erlangshen_replica_up) == 0",
        "critical",
        f"No replica of {DEPLOYMENT} is ready",
        "Every request is answered with 503: no replica of any instance is ready.",
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
        "ErlangshenCanaryStopped",
        f"sum by ({REPLICA}) (increase(erlangshen_canary_runs_total[30m])) == 0"
        f" and on ({REPLICA}) erlangshen_replica_up == 1"
        f" and on ({INSTANCE}) (erlangshen_canary_interval_seconds > 0 < 601)",
        "warning",
        f"The canary of replica {{{{ $labels.replica }}}} of {WHERE} has stopped",
        "The replica is ready and has not checked a known answer for more than half an hour: a device that computes "
        "wrong numbers would not be noticed.",
        "15m",
    ),
    Alert(
        "ErlangshenKernelLeftOut",
        f"sum by ({REPLICA}, model, kind) (erlangshen_kernels_left_out) > 0",
        "warning",
        f"Replica {{{{ $labels.replica }}}} of {WHERE} runs {{{{ $labels.model }}}} without its fastest kernels",
        "The self-test at load found {{ $value | humanize }} kernels ({{ $labels.kind }}) wrong or failing. Answers "
        "are right, and slower.",
        "10m",
    ),
    Alert(
        "ErlangshenRowsFailing",
        f"sum by ({INSTANCE}, model) (increase(erlangshen_failed_rows_total[10m])) > 0",
        "warning",
        f"Rows of {{{{ $labels.model }}}} fail on {WHERE}",
        "The forward pass failed for {{ $value | humanize }} rows in ten minutes; their requests were answered 500.",
    ),
    Alert(
        "ErlangshenOutOfMemory",
        f"sum by ({INSTANCE}, model) (increase(erlangshen_out_of_memory_total[30m])) > 0",
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
        "ErlangshenRefusing",
        f"{requests(REFUSED)} / {requests(DECIDED)} > 0.5 and {requests(REFUSED)} * 300 >= 50",
        "critical",
        f"{DEPLOYMENT} refuses most of its requests",
        "{{ $value | humanizePercentage }} of the requests of five minutes were refused because of load (429).",
        "5m",
    ),
    Alert(
        "ErlangshenOverloaded",
        f"{REFUSED_ROWS} / ({REFUSED_ROWS} + {TAKEN_ROWS}) > 0.05 and {REFUSED_ROWS} * 120 >= 10",
        "warning",
        f"{DEPLOYMENT} is overloaded",
        "{{ $value | humanizePercentage }} of the rows are refused (429, with Retry-After).",
        "1m",
    ),
    Alert(
        "ErlangshenLongWait",
        f"max by ({INSTANCE}) (erlangshen_queue_predicted_wait_seconds) > 10",
        "warning",
        f"Long queue on {WHERE}",
        "A new request waits {{ $value | humanizeDuration }} before it is computed.",
        "5m",
    ),
    Alert(
        "ErlangshenDeadlinesMissed",
        f"{requests(LATE)} / {requests()} > 0.01 and {requests(LATE)} * 300 >= 3",
        "warning",
        f"{DEPLOYMENT} misses deadlines",
        "{{ $value | humanizePercentage }} of the requests exceed their deadline (504).",
        "5m",
    ),
    Alert(
        "ErlangshenSaturated",
        f"avg by ({BY}) (rate(erlangshen_replica_busy_seconds_total[5m])) > 0.9",
        "info",
        f"The replicas of {DEPLOYMENT} are saturated",
        "They are busy {{ $value | humanizePercentage }} of the time; any additional load makes requests wait.",
        "15m",
    ),
    Alert(
        "ErlangshenHttpSaturated",
        f"sum by ({INSTANCE}) (rate(process_cpu_seconds_total{{{JOB}}}[5m])) > 0.9",
        "warning",
        f"The HTTP process of {WHERE} is saturated",
        "It uses {{ $value | humanize }} cores and cannot use more than one: requests wait before they are read.",
        "10m",
    ),
    Alert(
        "ErlangshenConnectionsFull",
        f"sum by ({INSTANCE}) "
        '(increase(erlangshen_connections_refused_total{reason="too_many_connections"}[10m])) > 10',
        "warning",
        f"{WHERE} refuses connections",
        "{{ $value | humanize }} connections were closed in ten minutes because as many as allowed are open.",
    ),
    Alert(
        "ErlangshenSlowBatches",
        f"sum by ({INSTANCE}, model) (rate(erlangshen_prediction_ratio_sum[10m]))"
        f" / sum by ({INSTANCE}, model) (rate(erlangshen_prediction_ratio_count[10m])) > 2",
        "warning",
        f"Batches of {{{{ $labels.model }}}} are slower than predicted on {WHERE}",
        "They take {{ $value | humanize }} times the predicted time.",
        "10m",
    ),
]

SECURITY = [
    Alert(
        "ErlangshenKeyAbuse",
        f"sum by ({BY}, key, reason)"
        ' (increase(erlangshen_key_refused_total{reason=~"unauthorized|forbidden"}[10m])) > 100',
        "warning",
        f"{DEPLOYMENT} gets many requests with wrong API keys",
        "{{ $value | humanize }} requests in ten minutes were refused ({{ $labels.reason }}, key {{ $labels.key }}): a "
        "client with an old key or without the scope, or an attempt to guess keys.",
    ),
    Alert(
        "ErlangshenCertificateExpires",
        f"{CERTIFICATES} < 14 * 86400",
        "warning",
        f"The certificate of {WHERE} expires soon",
        "It is valid for another {{ $value | humanizeDuration }}; it should have been renewed.",
        "1h",
    ),
    Alert(
        "ErlangshenCertificateExpiresNow",
        f"{CERTIFICATES} < 2 * 86400",
        "critical",
        f"The certificate of {WHERE} is about to expire",
        "It is valid for another {{ $value | humanizeDuration }}; after that clients refuse to connect.",
        "5m",
    ),
]

PREDICTIONS = [
    Alert(
        "ErlangshenLowConfidence",
        f"{low_confidence('', '0.6', '1h', f'{BY}, task, model')} > 0.1"
        f" and {low_confidence('', '0.6', '1h', f'{BY}, task, model')}"
        f" > 2 * {low_confidence('', '0.6', '1h', f'{BY}, task, model', '1d')}",
        "info",
        "Low confidence of {{ $labels.model }} in {{ $labels.task }}",
        "{{ $value | humanizePercentage }} of its predictions have a score of 0.6 or less, more than twice the share "
        "of a day ago.",
        "30m",
    ),
    Alert(
        "ErlangshenLabelsMoved",
        f"{moved('', '6h', '1w', f'{BY}, task, model')} > 0.2",
        "info",
        "Label drift of {{ $labels.model }} in {{ $labels.task }}",
        "The label distribution of the last six hours differs from a week ago by {{ $value | humanizePercentage }} "
        "(total variation distance).",
        "1h",
    ),
    Alert(
        "ErlangshenTruncation",
        f"{truncated('', '1h', f'{BY}, task')} > 0.1",
        "info",
        "Many inputs of {{ $labels.task }} are truncated",
        "{{ $value | humanizePercentage }} of the inputs exceed the maximum length of the model and are truncated.",
        "30m",
    ),
]
