"""Every metric of the service, declared once: name, unit, help, labels and buckets; and small verbs to count with.

Knows no HTTP and no batching: others call its verbs. Every series is made before the first request, so that a rate over
a counter is right from its first increment and a dashboard is never empty. Child processes own no registry: their
seconds come back with the outputs and are counted here.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from service import metric_labels as known
from service.domain import Memory, Timing
from service.metric_labels import (
    CanaryResult,
    DropReason,
    EvictionReason,
    KeyRefusal,
    LossReason,
    RefusalReason,
    ReplicaState,
)

PREFIX = "erlangshen"

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Entry:
    """One declared metric, as its documentation shows it; `name` is the name that is exposed."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


class Declared:
    """The registry and the list of what was declared on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # They would be a second series beside every counter, undocumented, and Prometheus has no use for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._entries: list[Entry] = []

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        self._entries.append(Entry(f"{PREFIX}_{name}_total", "counter", text, labels))
        return _remembering(Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = (), unit: str = "") -> Gauge:
        self._entries.append(Entry(_exposed(name, unit), "gauge", text, labels))
        return _remembering(Gauge(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry))

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: tuple[str, ...] = (), unit: str = ""
    ) -> Histogram:
        self._entries.append(Entry(_exposed(name, unit), "histogram", text, labels))
        histogram = Histogram(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry, buckets=buckets)
        return _remembering(histogram)


def _remembering(metric: M) -> M:
    """Finds a series again by a look into a table: the library makes strings and takes a lock each time, which for the
    dozen series that a request counts in is a twentieth of what the request costs."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def _exposed(name: str, unit: str) -> str:
    return f"{PREFIX}_{name}_{unit}" if unit else f"{PREFIX}_{name}"


def make(metric: Counter | Gauge | Histogram, *values: Sequence[str]) -> None:
    """Creates the series of every combination of label values."""
    for labels in product(*values):
        metric.labels(*labels)


class Metrics(Declared):
    """All metrics on one registry. `declare` makes the series whose labels are known at start only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._declare_requests()
        self._declare_keys()
        self._declare_predictions()
        self._declare_batching()
        self._declare_replicas()

    # requests

    def _declare_requests(self) -> None:
        self.requests = self._counter("requests", "Requests finished, by HTTP status.", ("task", "model", "code"))
        self.request_duration = self._histogram(
            "request_duration",
            "Seconds from a request's first byte read to its reply.",
            known.LONG_S,
            ("task", "model"),
            "seconds",
        )
        self.request_stage = self._counter(
            "request_stage_seconds", "Seconds that answered requests spent in a stage.", ("task", "stage")
        )
        self.request_inputs = self._histogram(
            "request_inputs", "Inputs of a request that was answered.", known.COUNTS, ("task",)
        )
        self.connections = self._gauge("connections", "Open connections.")
        self.connections_refused = self._counter(
            "connections_refused", "Connections closed for what the client did, or for want of room.", ("reason",)
        )
        make(self.connections_refused, known.CONNECTION_REASONS)
        self.requests_in_progress = self._gauge("requests_in_progress", "Requests not yet replied to.", ("task",))
        self.inputs = self._counter("inputs", "Inputs that were encoded.", ("task", "model"))
        self.input_tokens = self._counter("input_tokens", "Tokens of the inputs that were encoded.", ("task", "model"))
        self.truncated_inputs = self._counter("truncated_inputs", "Inputs that were cut to fit the model.", ("task",))
        self.tokenize_duration = self._histogram(
            "tokenize_duration", "Seconds to make the encodings of a request.", known.SHORT_S, unit="seconds"
        )

    def request_done(
        self, task: str, model: str | None, code: int, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """`exemplar` is the trace of this request, for whoever asks for OpenMetrics."""
        self.requests.labels(task, model or known.NO_MODEL, str(code)).inc()
        self.request_duration.labels(task, model or known.NO_MODEL).observe(seconds, exemplar)

    def connection_opened(self) -> None:
        self.connections.inc()

    def connection_closed(self) -> None:
        self.connections.dec()

    def connection_refused(self, reason: str) -> None:
        self.connections_refused.labels(reason).inc()

    def in_progress(self, task: str) -> AbstractContextManager[None]:
        return self.requests_in_progress.labels(task).track_inprogress()

    def encoded(self, task: str, model: str, *, inputs: int, tokens: int, truncated: int, seconds: float) -> None:
        self.inputs.labels(task, model).inc(inputs)
        self.input_tokens.labels(task, model).inc(tokens)
        self.truncated_inputs.labels(task).inc(truncated)
        self.tokenize_duration.observe(seconds)

    def answered(
        self, task: str, model: str, inputs: int, timing: Timing, decisions: Sequence[tuple[str | None, float]]
    ) -> None:
        """A request was answered. `decisions` are the label and score of each result, for tasks that decide; a label is
        the task's or the model's own, never a caller's word."""
        self.request_inputs.labels(task).observe(inputs)
        for stage, seconds in zip(known.STAGES, (timing.tokenize, timing.queue, timing.compute), strict=True):
            self.request_stage.labels(task, stage).inc(seconds)
        if decisions:
            self._decided(task, model, decisions)

    # what the models decide

    def _declare_predictions(self) -> None:
        self.predictions = self._counter("predictions", "Results by what they decide.", ("task", "model", "label"))
        self.prediction_score = self._histogram(
            "prediction_score", "How sure the model is of a result, 0 to 1.", known.SCORES, ("task", "model")
        )

    def _decided(self, task: str, model: str, decisions: Sequence[tuple[str | None, float]]) -> None:
        scores = self.prediction_score.labels(task, model)
        for _, score in decisions:
            scores.observe(score)
        for label, count in Tally(label for label, _ in decisions).items():
            self.predictions.labels(task, model, label or known.OTHER_LABEL).inc(count)

    def declare_predictions(self, task: str, model: str, labels: Sequence[str]) -> None:
        make(self.predictions, (task,), (model,), labels or (known.OTHER_LABEL,))
        make(self.prediction_score, (task,), (model,))

    # API keys

    def _declare_keys(self) -> None:
        self.key_requests = self._counter("key_requests", "Requests finished, by API key.", ("key", "code"))
        self.key_tokens = self._counter("key_tokens", "Tokens of the requests of an API key.", ("key",))
        self.key_refused = self._counter(
            "key_refused", "Requests refused for their API key: it is missing, or at its limits.", ("key", "reason")
        )

    def declare_keys(self, names: Iterable[str]) -> None:
        keys = tuple(names)
        make(self.key_requests, keys, known.KEY_CODES)
        make(self.key_tokens, keys)
        make(self.key_refused, keys, known.KEY_REFUSALS[1:])
        make(self.key_refused, (known.NO_KEY,), known.KEY_REFUSALS[:1])

    def key_denied(self, key: str, reason: KeyRefusal) -> None:
        self.key_refused.labels(key, reason).inc()

    def key_done(self, key: str, code: int, tokens: int) -> None:
        self.key_requests.labels(key, str(code)).inc()
        self.key_tokens.labels(key).inc(tokens)

    # queue and batches

    def _declare_batching(self) -> None:
        self.queue_jobs = self._gauge("queue_jobs", "Jobs (rows) that wait to be taken into a batch.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens of the jobs that wait.")
        self.queue_oldest_age = self._gauge("queue_oldest_age", "Age of the job that waits longest.", unit="seconds")
        self.queue_duration = self._histogram(
            "queue_duration", "Seconds a job waited before a batch took it.", known.LONG_S, unit="seconds"
        )
        self.jobs_dropped = self._counter(
            "jobs_dropped", "Jobs never computed: caller gone, deadline passed, or request failed.", ("reason",)
        )
        self.jobs_refused = self._counter(
            "jobs_refused", "Jobs not let into the queue; a request that is not read yet is one.", ("reason",)
        )
        self.jobs_given_back = self._counter("jobs_given_back", "Jobs put back into the queue after a replica's loss.")
        self.batches = self._counter("batches", "Batches computed.", ("model",))
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", known.TOKENS, ("model",))
        self.batch_rows = self._histogram("batch_rows", "Rows in a batch.", known.COUNTS, ("model",))
        self.batches_in_flight = self._gauge("batches_in_flight", "Batches computing or waiting at a replica.")
        self.tokens_in_flight = self._gauge("tokens_in_flight", "Tokens of the batches in flight.")
        self.compute_duration = self._histogram(
            "compute_duration", "Seconds a replica computed a batch.", known.LONG_S, ("model",), "seconds"
        )
        self.failed_rows = self._counter("failed_rows", "Rows that the forward failed on.", ("model",))
        self.out_of_memory = self._counter("out_of_memory", "Batches that found no memory as a whole.", ("model",))
        self._declare_pace()
        self._declare_sharing()
        make(self.jobs_dropped, known.DROP_REASONS)
        make(self.jobs_refused, known.REFUSAL_REASONS)

    def watch_queue(
        self,
        jobs: Callable[[], float],
        tokens: Callable[[], float],
        oldest_age_s: Callable[[], float],
        wait_s: Callable[[], float],
    ) -> None:
        """The queue is asked at scrape time: its age grows while nothing happens."""
        self.queue_jobs.set_function(jobs)
        self.queue_tokens.set_function(tokens)
        self.queue_oldest_age.set_function(oldest_age_s)
        self.queue_predicted_wait.set_function(wait_s)

    def dropped(self, reason: DropReason, jobs: int) -> None:
        self.jobs_dropped.labels(reason).inc(jobs)

    def refused(self, reason: RefusalReason, jobs: int) -> None:
        self.jobs_refused.labels(reason).inc(jobs)

    def batch_taken(self, waited_s: Iterable[float], tokens: int) -> None:
        """A batch was taken; `waited_s` has one wait per row."""
        for seconds in waited_s:
            self.queue_duration.observe(seconds)
        self.batches_in_flight.inc()
        self.tokens_in_flight.inc(tokens)

    def batch_finished(self, tokens: int) -> None:
        """A batch that was taken is no longer in flight, whatever became of it."""
        self.batches_in_flight.dec()
        self.tokens_in_flight.dec(tokens)

    def batch_computed(
        self, model: str, replica: str, *, rows: int, failed_rows: int, tokens: int, seconds: float
    ) -> None:
        self.batches.labels(model).inc()
        self.batch_rows.labels(model).observe(rows)
        self.batch_tokens.labels(model).observe(tokens)
        self.compute_duration.labels(model).observe(seconds)
        self.failed_rows.labels(model).inc(failed_rows)
        self.replica_busy.labels(replica).inc(seconds)

    def ran_out_of_memory(self, model: str) -> None:
        self.out_of_memory.labels(model).inc()

    def given_back(self, jobs: int) -> None:
        self.jobs_given_back.inc(jobs)

    # how long batches take

    def _declare_pace(self) -> None:
        self.batch_budget = self._gauge("batch_budget_tokens", "Tokens that a full batch may have.", ("model",))
        self.predicted_cost = self._gauge(
            "predicted_cost",
            "Seconds that a batch, a token and a row are expected to take.",
            ("model", "of"),
            "seconds",
        )
        self.prediction_ratio = self._histogram(
            "prediction_ratio", "Seconds that a batch took, over what was expected.", known.RATIOS, ("model",)
        )
        self.queue_predicted_wait = self._gauge(
            "queue_predicted_wait",
            "Seconds until what waits and what is in flight is computed, as expected.",
            unit="seconds",
        )

    def costs(self, model: str, budget: int, *, batch_s: float, token_s: float, row_s: float) -> None:
        self.batch_budget.labels(model).set(budget)
        for of, seconds in zip(known.COSTS, (batch_s, token_s, row_s), strict=True):
            self.predicted_cost.labels(model, of).set(seconds)

    def predicted(self, model: str, ratio: float) -> None:
        self.prediction_ratio.labels(model).observe(ratio)

    # rows that need no computing

    def _declare_sharing(self) -> None:
        self.shared_rows = self._counter(
            "shared_rows", "Rows that got the output of an identical row in flight.", ("model",)
        )
        self.cache_hits = self._counter("cache_hits", "Rows whose output was kept from an earlier time.", ("model",))
        self.cache_misses = self._counter("cache_misses", "Rows whose output was not kept.", ("model",))
        self.cache_evicted = self._counter("cache_evicted", "Outputs that are kept no longer.", ("reason",))
        self.cache_entries = self._gauge("cache_entries", "Outputs that are kept.")
        self.cache_size = self._gauge("cache_size", "Memory of the outputs that are kept.", unit="bytes")
        make(self.cache_evicted, known.EVICTION_REASONS)

    def shared(self, model: str, rows: int) -> None:
        self.shared_rows.labels(model).inc(rows)

    def looked_up(self, model: str, *, is_hit: bool) -> None:
        (self.cache_hits if is_hit else self.cache_misses).labels(model).inc()

    def cache_evicts(self, reason: EvictionReason) -> None:
        self.cache_evicted.labels(reason).inc()

    def cache_holds(self, entries: int, size: int) -> None:
        self.cache_entries.set(entries)
        self.cache_size.set(size)

    # replicas and the build

    def _declare_replicas(self) -> None:
        self.replica_up = self._gauge("replica_up", "1 if the replica answers batches.", ("replica",))
        self.replica_state = self._gauge("replica_state", "1 for the state the replica is in.", ("replica", "state"))
        self.replica_restarts = self._counter(
            "replica_restarts", "Child processes replaced after a loss.", ("replica",)
        )
        self.replica_losses = self._counter(
            "replica_losses", "Child processes lost, and starts that failed, by reason.", ("replica", "reason")
        )
        self.replica_busy = self._counter("replica_busy_seconds", "Seconds that the replica computed.", ("replica",))
        self.canary_runs = self._counter(
            "canary_runs", "Times the canary's known answer was computed again.", ("replica", "result")
        )
        self.replica_device_memory = self._gauge(
            "replica_device_memory",
            "Of a GPU what all hold and its size; of a CPU what the child holds and what all may.",
            ("replica", "kind"),
            "bytes",
        )
        self.replica_memory = self._gauge(
            "replica_memory", "Resident memory of the child process when it became ready.", ("replica",), "bytes"
        )
        self.replica_model = self._gauge(
            "replica_model_info", "1: this replica holds this model.", ("replica", "model", "device", "precision")
        )
        self.model = self._gauge("model_info", "1: this model is served.", ("model", "family", "kind", "source"))
        self.build = self._gauge("build_info", "1: the version that runs.", ("version", "python"))

    def declare(self, models: Sequence[str], replicas: Sequence[str], tasks: Sequence[str]) -> None:
        """Makes every series whose labels are names of models, replicas and tasks."""
        make(self.requests, tasks, (*models, known.NO_MODEL), known.CODES)
        for by_input in (self.inputs, self.input_tokens):
            make(by_input, tasks, models)
        make(self.request_duration, tasks, (*models, known.NO_MODEL))
        make(self.request_stage, tasks, known.STAGES)
        for by_task in (self.request_inputs, self.requests_in_progress, self.truncated_inputs):
            make(by_task, tasks)
        for by_model in (self.batches, self.compute_duration, self.failed_rows, self.prediction_ratio):
            make(by_model, models)
        make(self.out_of_memory, models)
        for by_size in (self.batch_tokens, self.batch_rows):
            make(by_size, models)
        for counted in (self.shared_rows, self.cache_hits, self.cache_misses, self.batch_budget):
            make(counted, models)
        make(self.predicted_cost, models, known.COSTS)
        for by_replica in (self.replica_up, self.replica_restarts, self.replica_memory, self.replica_busy):
            make(by_replica, replicas)
        make(self.replica_losses, replicas, known.LOSS_REASONS)
        make(self.canary_runs, replicas, known.CANARY_RESULTS)
        make(self.replica_device_memory, replicas, known.MEMORY_KINDS)
        make(self.replica_state, replicas, known.REPLICA_STATES)

    def declare_model(self, model: str, *, family: str, kind: str, source: str) -> None:
        self.model.labels(model, family, kind, source).set(1)

    def declare_build(self, *, version: str, python: str) -> None:
        self.build.labels(version, python).set(1)

    def replica_lost(self, replica: str, reason: LossReason) -> None:
        self.replica_losses.labels(replica, reason).inc()

    def replica_restarted(self, replica: str) -> None:
        self.replica_restarts.labels(replica).inc()

    def replica_is(self, replica: str, state: ReplicaState) -> None:
        self.replica_up.labels(replica).set(state == "ready")
        for each in known.REPLICA_STATES:
            self.replica_state.labels(replica, each).set(state == each)

    def device_memory(self, replica: str, memory: Memory) -> None:
        for kind, size in zip(known.MEMORY_KINDS, (memory.allocated, memory.total), strict=True):
            self.replica_device_memory.labels(replica, kind).set(size)

    def canary_ran(self, replica: str, result: CanaryResult) -> None:
        self.canary_runs.labels(replica, result).inc()

    def replica_holds(self, replica: str, *, device: str, precisions: dict[str, str], memory_bytes: int) -> None:
        """`precisions` are by model name."""
        self.replica_memory.labels(replica).set(memory_bytes)
        for model, precision in precisions.items():
            self.replica_model.labels(replica, model, device, precision).set(1)


def new_registry() -> CollectorRegistry:
    """A registry with the memory, CPU and open files of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
