"""The dashboard for who runs the machines: what waits, what batches look like, and what the devices do."""

from __future__ import annotations

from monitoring.board import Board, Section
from monitoring.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Query, heat, lines, number, timeline
from monitoring.promql import HERE, WINDOW, increase, mean, quantile, rate, select, share, total

MODEL = 'model=~"$model"'
REPLICA = "instance, replica"
BY_REPLICA = "{{instance}} {{replica}}"
STATES = (("starting", BLUE), ("loading", YELLOW), ("ready", GREEN), ("restarting", RED), ("stopped", "dark-red"))


def of_state(number: int, name: str) -> str:
    """A replica is in one state: the sum over all states is the number of that one."""
    matched = select("replica_state", f'state="{name}"')
    return f"{number} * max by ({REPLICA}) ({matched})"


def cost(of: str) -> str:
    matched = select("predicted_cost_seconds", f'{MODEL},of="{of}"')
    return f"max by (model) ({matched})"


PARTS = tuple(
    f"{rate(counted, MODEL, 'model')} * {cost(of)}"
    for counted, of in (("batch_tokens_sum", "token"), ("batches_total", "batch"), ("batch_rows_sum", "row"))
)
EFFICIENCY = f"{PARTS[0]} / ({' + '.join(PARTS)})"

GLANCE = Section(
    "At a glance",
    [
        number(
            "Predicted wait",
            "Seconds until what waits now is computed, at the server where it is longest.",
            Query(f"max({select('queue_predicted_wait_seconds')})"),
            unit="s",
            steps=((None, GREEN), (2, ORANGE), (10, RED)),
        ),
        number("Tokens waiting", "Tokens of the rows in the queue.", Query(total(select("queue_tokens")))),
        number(
            "Utilisation",
            "Share of the time in which replicas compute. Near 100 % more load only makes the queue longer.",
            Query(f"avg({rate('replica_busy_seconds_total', by=REPLICA)})"),
            unit="percentunit",
            steps=((None, GREEN), (0.8, ORANGE), (0.95, RED)),
        ),
        number("Tokens computed a second", "What the devices achieve.", Query(rate("batch_tokens_sum", MODEL))),
        number("Rows of a batch", "How many texts share a forward pass, on average.", Query(mean("batch_rows", MODEL))),
        number(
            "Replicas lost",
            "Child processes that ended over the time shown.",
            Query(f"round({increase('replica_losses_total')})"),
            steps=((None, GREEN), (0.5, ORANGE), (3, RED)),
        ),
    ],
)

QUEUE = Section(
    "Queue",
    [
        lines(
            "Waiting",
            "Tokens of the rows in the queue, and of those at a replica.",
            Query(total(select("queue_tokens")), "in the queue"),
            Query(total(select("tokens_in_flight")), "at a replica"),
            stacked=True,
            width=8,
        ),
        lines(
            "How long is the wait",
            "What the latency model expects against the age of the row that waits longest: far apart, the model "
            "is wrong or a priority starves.",
            Query(f"max({select('queue_predicted_wait_seconds')})", "predicted"),
            Query(f"max({select('queue_oldest_age_seconds')})", "oldest row"),
            unit="s",
            width=8,
        ),
        lines(
            "Wait, percentiles",
            "Half, 95 and 99 of 100 rows waited no longer before a batch took them.",
            *(Query(quantile(q, "queue_duration_seconds"), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
            unit="s",
            width=8,
            colors={"p50": GREEN, "p95": ORANGE, "p99": RED},
        ),
    ],
)

BATCHES = Section(
    "Batches",
    [
        heat(
            "Tokens of a batch",
            "How many batches a second had how many tokens.",
            rate("batch_tokens_bucket", MODEL, "le"),
            unit="short",
        ),
        heat(
            "Seconds of a batch",
            "How many batches a second computed how long.",
            rate("compute_duration_seconds_bucket", MODEL, "le"),
        ),
        lines(
            "Batch against budget",
            "The mean batch, and what a full one may have. A mean near the budget: the service is at its limit.",
            Query(mean("batch_tokens", MODEL, "model"), "{{model}} mean"),
            Query(f"max by (model) ({select('batch_budget_tokens', MODEL)})", "{{model}} budget"),
            width=8,
            dashed=".* budget",
        ),
        lines(
            "Rows of a batch by model",
            "How many rows share a forward pass.",
            Query(mean("batch_rows", MODEL, "model"), "{{model}} mean"),
            Query(quantile(0.95, "batch_rows", MODEL, "model"), "{{model}} p95"),
            width=8,
        ),
        lines(
            "Batches a second",
            "By model.",
            Query(rate("batches_total", MODEL, "model"), "{{model}}"),
            unit="ops",
            stacked=True,
            width=8,
        ),
    ],
)

DEVICES = Section(
    "Devices",
    [
        lines(
            "Utilisation by replica",
            "Share of the time in which a replica computes.",
            Query(rate("replica_busy_seconds_total", by=REPLICA), BY_REPLICA),
            unit="percentunit",
            most=1,
            width=8,
        ),
        lines(
            "Tokens a second, against the limit",
            "While computing. The limit is what the latency model expects of an endless batch: one token after "
            "the other, no fixed cost.",
            Query(
                share(rate("batch_tokens_sum", MODEL, "model"), rate("compute_duration_seconds_sum", MODEL, "model")),
                "{{model}}",
            ),
            Query(f"1 / ({cost('token')} > 0)", "{{model}} limit"),
            width=8,
            dashed=".* limit",
        ),
        lines(
            "Efficiency",
            "Of the time that batches are expected to take, what their tokens take; the rest is fixed cost of "
            "batches and rows. Low with little load, when batches are small.",
            Query(EFFICIENCY, "{{model}}"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Took, over what was expected",
            "1 is as predicted. For long above it: the device is throttled or shared.",
            Query(mean("prediction_ratio", MODEL, "model"), "{{model}} mean"),
            Query(quantile(0.95, "prediction_ratio", MODEL, "model"), "{{model}} p95"),
            width=8,
        ),
        lines(
            "Device memory",
            "What a replica has allocated of the device's memory (of a GPU), or its resident memory and the "
            "limit (on a CPU).",
            Query(f"max by ({REPLICA}, kind) ({select('replica_device_memory_bytes')})", f"{BY_REPLICA} {{{{kind}}}}"),
            unit="bytes",
            width=8,
            dashed=".* total",
        ),
        lines(
            "Memory of the HTTP process",
            "It holds the vocabulary, the queue and the connections; the weights are with the replicas.",
            Query(total(f"process_resident_memory_bytes{{{HERE}}}", "instance"), "{{instance}}"),
            unit="bytes",
            width=8,
        ),
        lines(
            "Processor time of the HTTP process",
            "Cores in use. It is one process: near 1 it is the bottleneck, and another instance helps more than "
            "a replica.",
            Query(total(f"rate(process_cpu_seconds_total{{{HERE}}}[{WINDOW}])", "instance"), "{{instance}}"),
            limit=1,
            width=8,
        ),
        lines(
            "Memory of the replicas",
            "Resident memory of the child processes when they became ready.",
            Query(total(select("replica_memory_bytes"), REPLICA), BY_REPLICA),
            unit="bytes",
            width=8,
        ),
        lines(
            "Failed rows",
            "Rows a second that the forward failed on: their requests are answered 500.",
            Query(rate("failed_rows_total", MODEL, "model"), "{{model}}"),
            unit="rowsps",
            width=8,
        ),
    ],
)

REPLICAS = Section(
    "Replicas",
    [
        timeline(
            "State",
            "What each replica was doing.",
            Query(" + ".join(of_state(number, name) for number, (name, _) in enumerate(STATES)), BY_REPLICA),
            {str(number): state for number, state in enumerate(STATES)},
        ),
        lines(
            "Losses by reason",
            "Child processes that ended, in five minutes: killed, oom, hang, exit, crash, wrong (the canary), start.",
            Query(increase("replica_losses_total", by="reason", window="5m"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Canary",
            "Runs a second of the fixed row whose answer is known. A wrong one restarts the replica.",
            Query(rate("canary_runs_total", by="result"), "{{result}}"),
            unit="ops",
            width=8,
            colors={"ok": GREEN, "wrong": RED},
        ),
        lines(
            "What a loss cost",
            "Rows a second that were put back into the queue and computed again, that the forward failed on, and "
            "forwards that ran out of memory.",
            Query(rate("jobs_given_back_total"), "given back"),
            Query(rate("failed_rows_total", MODEL), "failed"),
            Query(rate("out_of_memory_total", MODEL), "out of memory"),
            unit="rowsps",
            width=8,
            colors={"given back": ORANGE, "failed": RED},
        ),
        lines(
            "Restarts",
            "Child processes replaced, ever since the server started.",
            Query(total(select("replica_restarts_total"), REPLICA), BY_REPLICA),
            width=8,
        ),
    ],
)

SAVED = Section(
    "Computed once",
    [
        lines(
            "Rows that need no computing",
            "Share of the rows that got the output of an identical row in flight, and of those asked of the "
            "cache that were there.",
            Query(
                share(
                    rate("shared_rows_total", MODEL),
                    f"({rate('shared_rows_total', MODEL)} + {rate('batch_rows_sum', MODEL)})",
                ),
                "shared",
            ),
            Query(
                share(
                    rate("cache_hits_total", MODEL),
                    f"({rate('cache_hits_total', MODEL)} + {rate('cache_misses_total', MODEL)})",
                ),
                "cache hits",
            ),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Kept outputs",
            "How many the cache holds; 0 where it is off.",
            Query(total(select("cache_entries")), "outputs"),
            width=8,
        ),
        lines(
            "Memory of the cache",
            "Bytes of the outputs that are kept.",
            Query(total(select("cache_size_bytes")), "bytes"),
            unit="bytes",
            width=8,
        ),
    ],
)

BATCHING = Board(
    "erlangshen-batching",
    "Erlangshen / Batching and device",
    "What the machines do: what waits, how large batches are, how busy and how efficient the devices, what was lost.",
    [GLANCE, QUEUE, BATCHES, DEVICES, REPLICAS, SAVED],
)
