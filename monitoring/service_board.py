"""The dashboard *Service*: request rate, errors, duration, objectives and callers."""

from __future__ import annotations

from monitoring.board import Board, Section
from monitoring.instances_section import INSTANCES
from monitoring.objectives_section import PROMISED
from monitoring.panels import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, YELLOW, Query, heat, lines, number, rows
from monitoring.promql import increase, mean, quantile, rate, select, share, total
from monitoring.slo import AVAILABILITY, LATENCY_S

CHOSEN = 'task=~"$task",model=~"$model"'
REACHED = f'{CHOSEN},model!="none"'
"""Leaves out requests that were refused before a model was chosen: they take almost no time."""
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
    "Overview",
    [
        number(
            "Requests per second",
            "All requests, whatever their status.",
            Query(rate("requests_total", CHOSEN)),
            unit="reqps",
        ),
        number(
            "Availability",
            "Share of 2xx among the responses with 2xx or 5xx, over the time range.",
            Query(f"1 - {share(increase('requests_total', FAULT), increase('requests_total', OURS))}"),
            unit="percentunit",
            steps=((None, RED), (AVAILABILITY.target - AVAILABILITY.budget, ORANGE), (AVAILABILITY.target, GREEN)),
        ),
        number(
            "p95 latency",
            "95 % of the requests took at most this long.",
            Query(quantile(0.95, "request_duration_seconds", REACHED)),
            unit="s",
            steps=((None, GREEN), (LATENCY_S, ORANGE), (5 * LATENCY_S, RED)),
        ),
        number(
            "Refused (429)",
            "Share of requests answered with 429: the queue was full, the wait too long, or a key at its rate limit.",
            Query(share(rate("requests_total", REFUSED), rate("requests_total", CHOSEN))),
            unit="percentunit",
            steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
        ),
        number("In progress", "Requests without a response yet.", Query(total(select("requests_in_progress", TASK)))),
    ],
)

RATE = Section(
    "Rate and errors",
    [
        lines(
            "Requests by task",
            "Requests per second.",
            Query(rate("requests_total", CHOSEN, "task"), "{{task}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Requests by status",
            "Requests per second by HTTP status; 499 means that the client disconnected before the response.",
            Query(f"{rate('requests_total', CHOSEN, 'code')} > 0", "{{code}}"),
            unit="reqps",
            stacked=True,
            width=8,
            colors=CODES,
        ),
        lines(
            "Errors by kind",
            "Share of requests: server errors (5xx), refusals because of load or rate limits (429), client errors "
            "(other 4xx).",
            Query(share(rate("requests_total", FAULT), rate("requests_total", CHOSEN)), "server errors"),
            Query(share(rate("requests_total", REFUSED), rate("requests_total", CHOSEN)), "refused"),
            Query(share(rate("requests_total", WRONG), rate("requests_total", CHOSEN)), "client errors"),
            unit="percentunit",
            width=8,
            colors={"server errors": RED, "refused": ORANGE, "client errors": YELLOW},
        ),
        lines(
            "Refused rows by reason",
            "Rows per second that admission refused.",
            Query(rate("jobs_refused_total", by="reason"), "{{reason}}"),
            unit="rowsps",
            stacked=True,
            width=8,
        ),
        lines(
            "Dropped rows by reason",
            "Rows per second that were queued but not computed: the client disconnected, the deadline passed, or "
            "another row of the request failed.",
            Query(rate("jobs_dropped_total", by="reason"), "{{reason}}"),
            unit="rowsps",
            stacked=True,
            width=8,
        ),
        lines(
            "Inputs per request",
            "Mean number of inputs in a request.",
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
            "Requests per second by duration.",
            rate("request_duration_seconds_bucket", REACHED, "le"),
        ),
        lines(
            "Latency, percentiles",
            "50, 95 and 99 % of the requests took at most this long. With tracing on, points link to traces.",
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
            "95 % of the requests took at most this long.",
            Query(quantile(0.95, "request_duration_seconds", REACHED, "task"), "{{task}}"),
            unit="s",
            width=8,
        ),
        lines(
            "p95 latency by model",
            "95 % of the requests took at most this long.",
            Query(quantile(0.95, "request_duration_seconds", REACHED, "model"), "{{model}}"),
            unit="s",
            width=8,
        ),
        lines(
            "Request time by stage",
            "Mean seconds of an answered request by stage, as in Server-Timing. Reading, validating and writing are "
            "not included.",
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
            "Tasks and models",
            "Rate, server errors and duration over the time range.",
            {
                "Requests per second": (f"{rate('requests_total', REACHED, BY_BOTH, '$__range')} > 0", "reqps"),
                "Server errors": (
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
            "Requests per second; without API keys all clients count as one.",
            Query(rate("key_requests_total", by="key"), "{{key}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Tokens by key",
            "Tokens per second: the cost of a caller.",
            Query(rate("key_tokens_total", by="key"), "{{key}}"),
            stacked=True,
            width=8,
        ),
        lines(
            "Refused requests by key",
            "Requests per second refused by the limits of a key, by reason.",
            Query(f"{rate('key_refused_total', by='key, reason')}", "{{key}} {{reason}}"),
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Bulk lines by result",
            "Lines of bulk requests per second, and how many bulk requests are in progress.",
            Query(rate("bulk_lines_total", by="result"), "{{result}}"),
            Query(total(select("bulk_streams")), "requests in progress"),
        ),
        lines(
            "Bulk requests by end",
            "Bulk requests that end per second; all but complete ones say with which line to go on.",
            Query(rate("bulk_ends_total", by="reason"), "{{reason}}"),
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Connections",
            "Open connections. Each takes a little memory, also when idle.",
            Query(total(select("connections"), "instance"), "{{instance}}"),
        ),
        lines(
            "Refused connections by reason",
            "Connections per second closed because of the client's behaviour or a limit.",
            Query(rate("connections_refused_total", by="reason"), "{{reason}}"),
            unit="ops",
            stacked=True,
        ),
    ],
)

SERVICE = Board(
    "erlangshen-service",
    "Erlangshen / Service",
    "Health of the service: request rate, errors, latency, error budgets and callers.",
    [INSTANCES, GLANCE, RATE, DURATION, PROMISED, CALLERS],
)
