"""The dashboard for who is asked whether the service is well: rate, errors, duration, and the objectives."""

from __future__ import annotations

from monitoring.board import Board, Section
from monitoring.objectives_section import PROMISED
from monitoring.panels import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, YELLOW, Query, heat, lines, number, rows
from monitoring.promql import increase, mean, quantile, rate, select, share, total
from monitoring.slo import AVAILABILITY, LATENCY_S

CHOSEN = 'task=~"$task",model=~"$model"'
REACHED = f'{CHOSEN},model!="none"'
"""Requests that were refused before a model was chosen take no time worth telling."""
TASK = 'task=~"$task"'
FAULT = f'{CHOSEN},code=~"5.."'
OURS = f'{CHOSEN},code=~"2..|5.."'
REFUSED = f'{CHOSEN},code="429"'
WRONG = f'{CHOSEN},code!~"2..|429|499|5.."'
BY_BOTH = "task, model"

CODES = {
    "2..": GREEN,
    "4..": YELLOW,
    "429": ORANGE,
    "499": GREY,
    "500": RED,
    "503": "dark-red",
    "504": PURPLE,
}
STAGES = {"tokenize": BLUE, "queue": ORANGE, "compute": GREEN}


GLANCE = Section(
    "At a glance",
    [
        number(
            "Requests a second",
            "All that came, whatever became of them.",
            Query(rate("requests_total", CHOSEN)),
            unit="reqps",
        ),
        number(
            "Answered without a fault",
            "Of the requests that were the service's to answer (2xx and 5xx), those without a 5xx, over the time "
            "shown.",
            Query(f"1 - {share(increase('requests_total', FAULT), increase('requests_total', OURS))}"),
            unit="percentunit",
            steps=((None, RED), (AVAILABILITY.target - AVAILABILITY.budget, ORANGE), (AVAILABILITY.target, GREEN)),
        ),
        number(
            "p95 latency",
            "95 of 100 requests took no longer.",
            Query(quantile(0.95, "request_duration_seconds", REACHED)),
            unit="s",
            steps=((None, GREEN), (LATENCY_S, ORANGE), (5 * LATENCY_S, RED)),
        ),
        number(
            "Refused for load",
            "Share of requests answered 429: the queue was full, the wait too long, or a key at its limit.",
            Query(share(rate("requests_total", REFUSED), rate("requests_total", CHOSEN))),
            unit="percentunit",
            steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
        ),
        number("In progress", "Requests not yet replied to.", Query(total(select("requests_in_progress", TASK)))),
        number(
            "Replicas ready",
            "Share of the replicas that answer batches.",
            Query(share(total(select("replica_up")), f"count({select('replica_up')})")),
            unit="percentunit",
            steps=((None, RED), (0.01, ORANGE), (1, GREEN)),
        ),
    ],
)

RATE = Section(
    "Rate and errors",
    [
        lines(
            "Requests by task",
            "Requests a second.",
            Query(rate("requests_total", CHOSEN, "task"), "{{task}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Requests by status",
            "Requests a second by HTTP status; 499 is a client that went away before its answer.",
            Query(f"{rate('requests_total', CHOSEN, 'code')} > 0", "{{code}}"),
            unit="reqps",
            stacked=True,
            width=8,
            colors=CODES,
        ),
        lines(
            "What went wrong",
            "Share of requests: faults are the service's own (5xx), refusals are for load (429), mistakes the "
            "caller's (other 4xx).",
            Query(share(rate("requests_total", FAULT), rate("requests_total", CHOSEN)), "faults"),
            Query(share(rate("requests_total", REFUSED), rate("requests_total", CHOSEN)), "refusals"),
            Query(share(rate("requests_total", WRONG), rate("requests_total", CHOSEN)), "mistakes"),
            unit="percentunit",
            width=8,
            colors={"faults": RED, "refusals": ORANGE, "mistakes": YELLOW},
        ),
        lines(
            "Rows refused, by reason",
            "Rows a second not let into the queue.",
            Query(rate("jobs_refused_total", by="reason"), "{{reason}}"),
            unit="rowsps",
            stacked=True,
            width=8,
        ),
        lines(
            "Rows dropped, by reason",
            "Rows a second that were let in but never computed: the caller had gone, the deadline had passed, or "
            "another row of the request had failed.",
            Query(rate("jobs_dropped_total", by="reason"), "{{reason}}"),
            unit="rowsps",
            stacked=True,
            width=8,
        ),
        lines(
            "Inputs of a request",
            "How many texts come in one request.",
            Query(mean("request_inputs", TASK, "task"), "{{task}}"),
            width=8,
        ),
    ],
)

DURATION = Section(
    "Duration",
    [
        heat(
            "Latency",
            "How many requests a second took how long.",
            rate("request_duration_seconds_bucket", REACHED, "le"),
        ),
        lines(
            "Latency, percentiles",
            "Half, 95 and 99 of 100 requests took no longer. Points lead to traces where tracing is on.",
            *(
                Query(quantile(q, "request_duration_seconds", REACHED), f"p{q * 100:.0f}", exemplars=True)
                for q in (0.5, 0.95, 0.99)
            ),
            unit="s",
            limit=LATENCY_S,
            colors={"p50": GREEN, "p95": ORANGE, "p99": RED},
        ),
        lines(
            "p95 latency by task",
            "95 of 100 requests took no longer.",
            Query(quantile(0.95, "request_duration_seconds", REACHED, "task"), "{{task}}"),
            unit="s",
            width=8,
        ),
        lines(
            "p95 latency by model",
            "95 of 100 requests took no longer.",
            Query(quantile(0.95, "request_duration_seconds", REACHED, "model"), "{{model}}"),
            unit="s",
            width=8,
        ),
        lines(
            "Where the time of a request goes",
            "Mean seconds of an answered request by stage, as Server-Timing tells them. The rest is reading, "
            "checking and writing.",
            Query(
                share(
                    rate("request_stage_seconds_total", TASK, "stage"),
                    f"ignoring(stage) group_left {rate('request_inputs_count', TASK)}",
                ),
                "{{stage}}",
            ),
            unit="s",
            stacked=True,
            width=8,
            colors=STAGES,
        ),
        rows(
            "Every task of every model",
            "Rate, errors and duration over the time shown.",
            {
                "Requests a second": (f"{rate('requests_total', REACHED, BY_BOTH, '$__range')} > 0", "reqps"),
                "Faults": (
                    share(
                        rate("requests_total", f'{FAULT},model!="none"', BY_BOTH, "$__range"),
                        f"({rate('requests_total', REACHED, BY_BOTH, '$__range')} > 0)",
                    ),
                    "percentunit",
                ),
                "p50": (quantile(0.5, "request_duration_seconds", REACHED, BY_BOTH, "$__range"), "s"),
                "p95": (quantile(0.95, "request_duration_seconds", REACHED, BY_BOTH, "$__range"), "s"),
                "p99": (quantile(0.99, "request_duration_seconds", REACHED, BY_BOTH, "$__range"), "s"),
            },
            {"task": "Task", "model": "Model"},
        ),
    ],
)

CALLERS = Section(
    "Callers",
    [
        lines(
            "Requests by key",
            "Requests a second; without keys everybody is one caller.",
            Query(rate("key_requests_total", by="key"), "{{key}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Tokens by key",
            "Tokens a second: what a caller costs.",
            Query(rate("key_tokens_total", by="key"), "{{key}}"),
            stacked=True,
            width=8,
        ),
        lines(
            "Refused by key",
            "Requests a second refused for their key, by reason.",
            Query(f"{rate('key_refused_total', by='key, reason')}", "{{key}} {{reason}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Connections",
            "Open now: each takes a little memory, asked or not.",
            Query(total(select("connections"), "instance"), "{{instance}}"),
        ),
        lines(
            "Connections refused, by reason",
            "Closed a second for what the client did, or for want of room.",
            Query(rate("connections_refused_total", by="reason"), "{{reason}}"),
            unit="ops",
            stacked=True,
        ),
    ],
)

SERVICE = Board(
    "erlangshen-service",
    "Erlangshen / Service",
    "Is the service well: how much is asked, what fails, how long it takes, and how much of the error budget is left.",
    [GLANCE, RATE, DURATION, PROMISED, CALLERS],
)
