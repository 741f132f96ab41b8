"""The dashboard *Batching and device*: the queue, batches, devices, replicas and reuse of results."""

from __future__ import annotations

from monitoring.board import Board, Section
from monitoring.infrastructure_sections import AROUND, GPUS
from monitoring.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Query, heat, lines, number, timeline
from monitoring.promql import HERE, WINDOW, increase, mean, quantile, rate, select, share, total

MODEL = 'model=~"$model"'
REPLICA = "instance, replica"
BY_REPLICA = "{{instance}} {{replica}}"
STATES = (("starting", BLUE), ("loading", YELLOW), ("ready", GREEN), ("restarting", RED), ("stopped", "dark-red"))


def of_state(number: int, name: str) -> str:
    """A replica is in exactly one state: the sum over all states is the number of that state."""
    matched = select("replica_state", f'state="{name}"')
    return f"{number} * max by ({REPLICA}) ({matched})"


def cost(of: str) -> str:
    matched = select("predicted_cost_seconds", f'{MODEL},of="{of}"')
    return f"max by (model) ({matched})"


PARTS = tuple(
    f"{rate(counted, MODEL, 'model')} * {cost(of)}"
    for counted, of in (("batch_tokens_sum", "token"), ("batches_total", "batch"), ("batch_rows_sum", "row"))
)
EFFICIENCY = share(PARTS[0], f"({' + '.join(PARTS)})")

GLANCE = Section(
    "Overview",
    [
        number(
            "Predicted wait",
            "Predicted seconds until the queued rows are computed; the maximum over all instances.",
            Query(f"max({select('queue_predicted_wait_seconds')})"),
            unit="s",
            steps=((None, GREEN), (2, ORANGE), (10, RED)),
        ),
        number("Queued tokens", "Tokens of the rows in the queue.", Query(total(select("queue_tokens")))),
        number(
            "Utilisation",
            "Share of the time in which the replicas compute. Near 100 %, additional load only makes the queue longer.",
            Query(f"avg({rate('replica_busy_seconds_total', by=REPLICA)})"),
            unit="percentunit",
            steps=((None, GREEN), (0.8, ORANGE), (0.95, RED)),
        ),
        number("Tokens per second", "Tokens that the devices compute.", Query(rate("batch_tokens_sum", MODEL))),
        number("Rows per batch", "Mean number of rows in a forward pass.", Query(mean("batch_rows", MODEL))),
        number(
            "Lost replicas",
            "Worker processes that exited unexpectedly, over the time range.",
            Query(f"round({increase('replica_losses_total')})"),
            steps=((None, GREEN), (0.5, ORANGE), (3, RED)),
        ),
    ],
)

QUEUE = Section(
    "Queue",
    [
        lines(
            "Queued and in-flight tokens",
            "Tokens of the rows in the queue, and of those sent to a replica.",
            Query(total(select("queue_tokens")), "queued"),
            Query(total(select("tokens_in_flight")), "in flight"),
            stacked=True,
            width=8,
        ),
        lines(
            "Predicted wait and oldest row",
            "The prediction of the latency model, and the age of the oldest queued row. A large difference means "
            "that the prediction is wrong or that a priority starves.",
            Query(f"max({select('queue_predicted_wait_seconds')})", "predicted"),
            Query(f"max({select('queue_oldest_age_seconds')})", "oldest row"),
            unit="s",
            width=8,
        ),
        lines(
            "Wait percentiles",
            "50, 95 and 99 % of the rows waited at most this long in the queue.",
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
            "Tokens per batch",
            "Batches per second by their number of tokens.",
            rate("batch_tokens_bucket", MODEL, "le"),
            unit="short",
        ),
        heat(
            "Batch duration",
            "Batches per second by their compute time.",
            rate("compute_duration_seconds_bucket", MODEL, "le"),
        ),
        lines(
            "Batch size and budget",
            "Mean tokens of a batch, and the token budget. Near the budget the service is at its limit.",
            Query(mean("batch_tokens", MODEL, "model"), "{{model}} mean"),
            Query(f"max by (model) ({select('batch_budget_tokens', MODEL)})", "{{model}} budget"),
            width=8,
            dashed=".* budget",
        ),
        lines(
            "Rows per batch by model",
            "Number of rows in a forward pass.",
            Query(mean("batch_rows", MODEL, "model"), "{{model}} mean"),
            Query(quantile(0.95, "batch_rows", MODEL, "model"), "{{model}} p95"),
            width=8,
        ),
        lines(
            "Batches per second",
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
            "Share of the time in which the replica computes.",
            Query(rate("replica_busy_seconds_total", by=REPLICA), BY_REPLICA),
            unit="percentunit",
            most=1,
            width=8,
        ),
        lines(
            "Tokens per second and limit",
            "While computing. The limit is the rate that the latency model predicts for an infinitely large batch, "
            "without fixed costs.",
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
            "Share of the tokens in the predicted time of the batches; the rest is the fixed cost of batches and rows. "
            "Low under low load, when batches are small.",
            Query(EFFICIENCY, "{{model}}"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Actual over predicted time",
            "1 is as predicted. Above 1 for long: the device is throttled or shared.",
            Query(mean("prediction_ratio", MODEL, "model"), "{{model}} mean"),
            Query(quantile(0.95, "prediction_ratio", MODEL, "model"), "{{model}} p95"),
            width=8,
        ),
        lines(
            "Device memory",
            "GPU: allocated and total device memory of the replica. CPU: its resident memory and the limit.",
            Query(f"max by ({REPLICA}, kind) ({select('replica_device_memory_bytes')})", f"{BY_REPLICA} {{{{kind}}}}"),
            unit="bytes",
            width=8,
            dashed=".* total",
        ),
        lines(
            "Memory of the HTTP process",
            "Resident memory, without weights; and the counted memory of requests in progress with its budget, above "
            "which requests get 503.",
            Query(total(f"process_resident_memory_bytes{{{HERE}}}", "instance"), "{{instance}}"),
            Query(total(select("request_memory_bytes"), "instance, kind"), "{{instance}} requests {{kind}}"),
            unit="bytes",
            width=8,
        ),
        lines(
            "CPU time of the HTTP process",
            "Cores in use. It is a single process: near 1 it is the bottleneck, and another instance helps more than "
            "another replica.",
            Query(total(f"rate(process_cpu_seconds_total{{{HERE}}}[{WINDOW}])", "instance"), "{{instance}}"),
            limit=1,
            width=8,
        ),
        lines(
            "Memory of the replicas",
            "Resident memory of the worker processes when they became ready.",
            Query(total(select("replica_memory_bytes"), REPLICA), BY_REPLICA),
            unit="bytes",
            width=8,
        ),
        lines(
            "Failed rows",
            "Rows per second whose forward pass failed: their requests are answered with 500.",
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
            "State of each replica.",
            Query(" + ".join(of_state(number, name) for number, (name, _) in enumerate(STATES)), BY_REPLICA),
            {str(number): state for number, state in enumerate(STATES)},
        ),
        lines(
            "Losses by reason",
            "Worker processes that exited in five minutes: killed, oom, hang, exit, crash, wrong (canary), start.",
            Query(increase("replica_losses_total", by="reason", window="5m"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Canary",
            "Canary runs per second: a fixed row with a known answer. A wrong answer restarts the replica.",
            Query(rate("canary_runs_total", by="result"), "{{result}}"),
            unit="ops",
            width=8,
            colors={"ok": GREEN, "wrong": RED},
        ),
        lines(
            "Kernels left out",
            "Kernels that the self-test of a replica found wrong or failing: slower ones serve in their place. "
            "0 is normal; the log names each one (kernel left out).",
            Query(total(select("kernels_left_out"), by="kind"), "{{kind}}"),
            width=8,
        ),
        lines(
            "Retried and failed rows",
            "Rows per second that went back to the queue after a loss, rows whose forward pass failed, and forward "
            "passes that ran out of memory.",
            Query(rate("jobs_given_back_total"), "given back"),
            Query(rate("failed_rows_total", MODEL), "failed"),
            Query(rate("out_of_memory_total", MODEL), "out of memory"),
            unit="rowsps",
            width=8,
            colors={"given back": ORANGE, "failed": RED},
        ),
        lines(
            "Restarts",
            "Worker processes replaced since the server started.",
            Query(total(select("replica_restarts_total"), REPLICA), BY_REPLICA),
            width=8,
        ),
    ],
)

SAVED = Section(
    "Reuse of results",
    [
        lines(
            "Rows answered without computing",
            "Share of the rows that shared the output of an identical row in flight, and hit rates of the result cache "
            "and the label cache.",
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
            Query(
                share(
                    rate("label_cache_hits_total", MODEL),
                    f"({rate('label_cache_hits_total', MODEL)} + {rate('label_cache_misses_total', MODEL)})",
                ),
                "label cache hits",
            ),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Cached results",
            "Results in the result cache (0 when it is off), and embeddings in the label cache.",
            Query(total(select("cache_entries")), "results"),
            Query(total(select("label_cache_entries")), "labels"),
            width=8,
        ),
        lines(
            "Memory of the caches",
            "Bytes of the cached results, and of the embeddings of labels.",
            Query(total(select("cache_size_bytes")), "results"),
            Query(total(select("label_cache_size_bytes")), "labels"),
            unit="bytes",
            width=8,
        ),
    ],
)

BATCHING = Board(
    "erlangshen-batching",
    "Erlangshen / Batching and device",
    "Load of the devices: queue, batch sizes, utilisation, efficiency, memory and lost replicas.",
    [GLANCE, QUEUE, BATCHES, DEVICES, REPLICAS, SAVED, AROUND, GPUS],
)
