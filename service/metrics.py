"""All metrics of the service: name, unit, help, labels and buckets, with one method per event to record.

Every series is created before the first request, so that the rate of a counter is right from its first increment and a
dashboard is never empty. Worker processes have no registry: their timings come back with the outputs and are recorded
here.
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
from service.domain import KernelKind, Memory, Timing
from service.metric_labels import (
    CacheName,
    CanaryResult,
    Decision,
    DropReason,
    EvictionReason,
    KeyRefusal,
    LineResult,
    LossReason,
    PreparationResult,
    RefusalReason,
    ReplicaState,
    UsedMethod,
)

PREFIX = "erlangshen"

M = TypeVar("M", Counter, Gauge, Histogram)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric, as documented; `name` is the exposed name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CacheMetrics:
    """The metrics of one cache of outputs."""

    hits: Counter
    misses: Counter
    evicted: Counter
    entries: Gauge
    size: Gauge


class DeclaredMetrics:
    """A registry, and the entries of the metrics declared on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # The client would expose a `_created` series for every counter, which Prometheus does not use.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._entries: list[Entry] = []

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        self._entries.append(Entry(f"{PREFIX}_{name}_total", "counter", text, labels))
        return _cache_series(Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = (), unit: str = "") -> Gauge:
        self._entries.append(Entry(_exposed_name(name, unit), "gauge", text, labels))
        return _cache_series(Gauge(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry))

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: tuple[str, ...] = (), unit: str = ""
    ) -> Histogram:
        self._entries.append(Entry(_exposed_name(name, unit), "histogram", text, labels))
        histogram = Histogram(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry, buckets=buckets)
        return _cache_series(histogram)


def _cache_series(metric: M) -> M:
    """Caches the series by label values. The client builds strings and takes a lock on each access, which for the dozen
    series of a request is 5 % of its CPU time."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def _exposed_name(name: str, unit: str) -> str:
    return f"{PREFIX}_{name}_{unit}" if unit else f"{PREFIX}_{name}"


def _tally(values: Sequence[T]) -> Iterable[tuple[T, int]]:
    """Each value with its count. Most requests have one input, and a counter costs as much as the metric."""
    return ((values[0], 1),) if len(values) == 1 else Tally(values).items()


def _create_series(metric: Counter | Gauge | Histogram, *values: Sequence[str]) -> None:
    """Creates a series for every combination of label values."""
    for labels in product(*values):
        metric.labels(*labels)


class Metrics(DeclaredMetrics):
    """All metrics, on one registry. The `declare*` methods create the series whose labels are known only at start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._declare_requests()
        self._declare_batch_jobs()
        self._declare_keys()
        self._declare_predictions()
        self._declare_batching()
        self._declare_replicas()

    # requests

    def _declare_requests(self) -> None:
        self.requests = self._counter("requests", "Requests finished, by HTTP status.", ("task", "model", "code"))
        self.request_duration = self._histogram(
            "request_duration",
            "Seconds from the first byte of a request to its response.",
            known.LONG_S,
            ("task", "model"),
            "seconds",
        )
        self.request_stage = self._counter(
            "request_stage_seconds", "Seconds in a stage, of requests that succeeded.", ("task", "stage")
        )
        self.request_inputs = self._histogram(
            "request_inputs", "Inputs of a request that succeeded.", known.COUNTS, ("task",)
        )
        self.requests_by_method = self._counter(
            "requests_by_method", "Requests that succeeded, by the method that answered.", ("task", "method")
        )
        _create_series(self.requests_by_method, known.TASKS_WITH_METHODS, known.METHODS)
        self.request_labels = self._histogram(
            "request_labels",
            "Labels of a zero-shot classification: all of them, and those that a choice model has read.",
            known.LABEL_COUNTS,
            ("of",),
        )
        _create_series(self.request_labels, known.LABEL_GROUPS)
        self.label_sets_preparing = self._gauge(
            "label_sets_preparing", "Lists of labels whose vectors are being computed in the background."
        )
        self.label_set_vectors = self._counter(
            "label_set_vectors",
            "Lists of labels whose vectors were computed in the background, by result.",
            ("result",),
        )
        self.label_set_vectors_duration = self._histogram(
            "label_set_vectors_duration",
            "Seconds until the vectors of a list of labels were kept.",
            known.PREPARATION_S,
            unit="seconds",
        )
        _create_series(self.label_set_vectors, known.PREPARATION_RESULTS)
        self.bulk_streams = self._gauge("bulk_streams", "Bulk requests in progress.")
        self.bulk_lines = self._counter("bulk_lines", "Lines of bulk requests, by result.", ("result",))
        _create_series(self.bulk_lines, known.LINE_RESULTS)
        self.bulk_ends = self._counter("bulk_ends", "Bulk requests finished, by how they ended.", ("reason",))
        _create_series(self.bulk_ends, known.BULK_ENDS)
        self.connections = self._gauge("connections", "Open connections.")
        self.request_memory = self._gauge(
            "request_memory", "Memory of the requests in progress, as counted, and its budget.", ("kind",), "bytes"
        )
        _create_series(self.request_memory, known.REQUEST_MEMORY_KINDS)
        self.log_lines_dropped = self._counter(
            "log_lines_dropped", "Log lines dropped because stderr did not take them."
        )
        self._num_log_lines_dropped = 0
        self.connections_refused = self._counter(
            "connections_refused",
            "Connections closed for an error of the client or at the connection limit.",
            ("reason",),
        )
        _create_series(self.connections_refused, known.CONNECTION_REASONS)
        self.requests_in_progress = self._gauge("requests_in_progress", "Requests without a response yet.", ("task",))
        self.inputs = self._counter("inputs", "Inputs encoded.", ("task", "model"))
        self.input_tokens = self._counter("input_tokens", "Tokens of the encoded inputs.", ("task", "model"))
        self.truncated_inputs = self._counter("truncated_inputs", "Inputs truncated to fit the model.", ("task",))
        self.tokenize_duration = self._histogram(
            "tokenize_duration", "Seconds to encode the inputs of a request.", known.SHORT_S, unit="seconds"
        )

    def request_done(
        self, task: str, model: str | None, code: int, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """`exemplar` is the trace of this request; the OpenMetrics format exposes it."""
        self.requests.labels(task, model or known.NO_MODEL, str(code)).inc()
        self.request_duration.labels(task, model or known.NO_MODEL).observe(seconds, exemplar)

    def log_lines_are_dropped(self, total: int) -> None:
        """`total` is the number of lines that were dropped since the start of the process."""
        self.log_lines_dropped.inc(total - self._num_log_lines_dropped)
        self._num_log_lines_dropped = total

    def watch_request_memory(self, used: Callable[[], float], budget: int) -> None:
        """`used` is called at scrape time."""
        of_used, of_budget = known.REQUEST_MEMORY_KINDS
        self.request_memory.labels(of_used).set_function(used)
        self.request_memory.labels(of_budget).set(budget)

    def connection_opened(self) -> None:
        self.connections.inc()

    def connection_closed(self) -> None:
        self.connections.dec()

    def connection_refused(self, reason: str) -> None:
        self.connections_refused.labels(reason).inc()

    def in_progress(self, task: str) -> AbstractContextManager[None]:
        return self.requests_in_progress.labels(task).track_inprogress()

    def encoded(self, task: str, model: str, *, inputs: int, tokens: int, truncated: int) -> None:
        self.inputs.labels(task, model).inc(inputs)
        self.input_tokens.labels(task, model).inc(tokens)
        if truncated:
            self.truncated_inputs.labels(task).inc(truncated)

    def tokenized(self, seconds: float) -> None:
        self.tokenize_duration.observe(seconds)

    def answered(
        self,
        task: str,
        model: str,
        inputs: int,
        timing: Timing,
        decisions: Sequence[tuple[str | None, float, Decision | None]],
    ) -> None:
        """Records a successful request. `decisions` has the label and score of each result, for tasks that decide, and
        what was decided, for tasks that may abstain.

        A label is one of the task or of the model's head, never from the request.
        """
        self.request_inputs.labels(task).observe(inputs)
        for stage, seconds in zip(known.STAGES, (timing.tokenize, timing.queue, timing.compute), strict=True):
            self.request_stage.labels(task, stage).inc(seconds)
        if decisions:
            self._decided(task, model, decisions)

    def answered_by(self, task: str, method: UsedMethod) -> None:
        self.requests_by_method.labels(task, method).inc()

    def labels_scored(self, num_scored: int, num_read: int) -> None:
        """`num_read` is 0 where no choice model takes part."""
        self.request_labels.labels("scored").observe(num_scored)
        if num_read:
            self.request_labels.labels("read").observe(num_read)

    def label_set_prepared(self, result: PreparationResult, seconds: float) -> None:
        self.label_set_vectors.labels(result).inc()
        if result == "kept":
            self.label_set_vectors_duration.observe(seconds)

    def bulk_began(self) -> None:
        self.bulk_streams.inc()

    def bulk_answered(self, result: LineResult) -> None:
        self.bulk_lines.labels(result).inc()

    def bulk_ended(self, reason: str) -> None:
        self.bulk_streams.dec()
        self.bulk_ends.labels(reason).inc()

    # files and batch jobs

    def _declare_batch_jobs(self) -> None:
        self.batch_jobs_running = self._gauge("batch_jobs_running", "Batch jobs that are being worked on.")
        self.batch_jobs = self._counter("batch_jobs", "Batch jobs that have ended, by status.", ("status",))
        _create_series(self.batch_jobs, known.BATCH_OUTCOMES)
        self.batch_job_lines = self._counter(
            "batch_job_lines", "Lines of batch jobs that were answered, by result.", ("result",)
        )
        _create_series(self.batch_job_lines, known.BATCH_LINE_RESULTS)
        self.stored_file_bytes = self._gauge(
            "stored_files", "Size of the files and batch jobs of all keys, once a minute.", unit="bytes"
        )

    def batch_lines_done(self, num_completed: int, num_failed: int) -> None:
        for result, number in zip(known.BATCH_LINE_RESULTS, (num_completed, num_failed), strict=True):
            self.batch_job_lines.labels(result).inc(number)

    def batch_ended(self, status: str) -> None:
        self.batch_jobs.labels(status).inc()

    # predictions

    def _declare_predictions(self) -> None:
        self.predictions = self._counter("predictions", "Results by predicted label.", ("task", "model", "label"))
        self.prediction_score = self._histogram(
            "prediction_score", "Confidence of the model in a result, 0 to 1.", known.SCORES, ("task", "model")
        )
        self.decisions = self._counter(
            "decisions", "Results by decision: a label, none, or ambiguous.", ("task", "model", "decision")
        )

    def _decided(self, task: str, model: str, decisions: Sequence[tuple[str | None, float, Decision | None]]) -> None:
        scores = self.prediction_score.labels(task, model)
        for _, score, _ in decisions:
            scores.observe(score)
        for label, count in _tally([label for label, _, _ in decisions]):
            self.predictions.labels(task, model, label or known.OTHER_LABEL).inc(count)
        for decision, count in _tally([decision for _, _, decision in decisions if decision]):
            self.decisions.labels(task, model, decision).inc(count)

    def declare_predictions(self, task: str, model: str, labels: Sequence[str]) -> None:
        if task in known.TASKS_WITH_DECISIONS:
            _create_series(self.decisions, (task,), (model,), known.DECISIONS)
        _create_series(self.predictions, (task,), (model,), labels or (known.OTHER_LABEL,))
        _create_series(self.prediction_score, (task,), (model,))

    # API keys

    def _declare_keys(self) -> None:
        self.key_requests = self._counter("key_requests", "Requests finished, by API key.", ("key", "code"))
        self.key_tokens = self._counter("key_tokens", "Tokens of requests, by API key.", ("key",))
        self.key_refused = self._counter(
            "key_refused",
            "Requests refused because the API key is missing, lacks the scope, or is at a limit.",
            ("key", "reason"),
        )

    def declare_keys(self, names: Iterable[str]) -> None:
        keys = tuple(names)
        _create_series(self.key_requests, keys, known.KEY_CODES)
        _create_series(self.key_tokens, keys)
        _create_series(self.key_refused, keys, known.KEY_REFUSALS[1:])
        _create_series(self.key_refused, (known.NO_KEY,), known.KEY_REFUSALS[:1])

    def key_denied(self, key: str, reason: KeyRefusal) -> None:
        self.key_refused.labels(key, reason).inc()

    def key_done(self, key: str, code: int, tokens: int) -> None:
        self.key_requests.labels(key, str(code)).inc()
        self.key_tokens.labels(key).inc(tokens)

    # queue and batches

    def _declare_batching(self) -> None:
        self.queue_jobs = self._gauge("queue_jobs", "Jobs (rows) waiting for a batch.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens of the waiting jobs.")
        self.queue_oldest_age = self._gauge("queue_oldest_age", "Age of the oldest waiting job.", unit="seconds")
        self.queue_duration = self._histogram(
            "queue_duration", "Seconds from the arrival of a job to its batch.", known.LONG_S, unit="seconds"
        )
        self.jobs_dropped = self._counter(
            "jobs_dropped",
            "Jobs dropped before computing: client gone, deadline passed, or request failed.",
            ("reason",),
        )
        self.jobs_refused = self._counter(
            "jobs_refused", "Jobs refused admission; a request whose body is not read yet counts as one.", ("reason",)
        )
        self.jobs_given_back = self._counter(
            "jobs_given_back", "Jobs returned to the queue after the loss of a replica."
        )
        self.batches = self._counter("batches", "Batches computed.", ("model",))
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", known.TOKENS, ("model",))
        self.batch_rows = self._histogram("batch_rows", "Rows in a batch.", known.COUNTS, ("model",))
        self.batches_in_flight = self._gauge("batches_in_flight", "Batches being computed or waiting at a replica.")
        self.tokens_in_flight = self._gauge("tokens_in_flight", "Tokens of the batches in flight.")
        self.compute_duration = self._histogram(
            "compute_duration", "Seconds of compute per batch.", known.LONG_S, ("model",), "seconds"
        )
        self.failed_rows = self._counter("failed_rows", "Rows for which the forward pass failed.", ("model",))
        self.out_of_memory = self._counter(
            "out_of_memory", "Batches that did not fit into memory as a whole.", ("model",)
        )
        self._declare_latency_model()
        self._declare_sharing()
        _create_series(self.jobs_dropped, known.DROP_REASONS)
        _create_series(self.jobs_refused, known.REFUSAL_REASONS)

    def watch_queue(
        self,
        jobs: Callable[[], float],
        tokens: Callable[[], float],
        oldest_age_s: Callable[[], float],
        wait_s: Callable[[], float],
    ) -> None:
        """Registers functions that are called at scrape time, because the age of a job grows without any event."""
        self.queue_jobs.set_function(jobs)
        self.queue_tokens.set_function(tokens)
        self.queue_oldest_age.set_function(oldest_age_s)
        self.queue_predicted_wait.set_function(wait_s)

    def dropped(self, reason: DropReason, jobs: int) -> None:
        self.jobs_dropped.labels(reason).inc(jobs)

    def refused(self, reason: RefusalReason, jobs: int) -> None:
        self.jobs_refused.labels(reason).inc(jobs)

    def batch_taken(self, waited_s: Iterable[float], tokens: int) -> None:
        """Records that a batch was taken; `waited_s` has the waiting time of each row."""
        for seconds in waited_s:
            self.queue_duration.observe(seconds)
        self.batches_in_flight.inc()
        self.tokens_in_flight.inc(tokens)

    def batch_finished(self, tokens: int) -> None:
        """Records that a batch is no longer in flight, whether it succeeded or not."""
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

    # latency model

    def _declare_latency_model(self) -> None:
        self.batch_budget = self._gauge("batch_budget_tokens", "Token budget of a full batch.", ("model",))
        self.predicted_cost = self._gauge(
            "predicted_cost",
            "Predicted seconds per batch, per token and per row.",
            ("model", "of"),
            "seconds",
        )
        self.prediction_ratio = self._histogram(
            "prediction_ratio", "Measured over predicted seconds of a batch.", known.RATIOS, ("model",)
        )
        self.queue_predicted_wait = self._gauge(
            "queue_predicted_wait",
            "Predicted seconds until all waiting jobs and batches in flight are computed.",
            unit="seconds",
        )

    def costs(self, model: str, budget: int, *, batch_s: float, token_s: float, row_s: float) -> None:
        self.batch_budget.labels(model).set(budget)
        for of, seconds in zip(known.COSTS, (batch_s, token_s, row_s), strict=True):
            self.predicted_cost.labels(model, of).set(seconds)

    def predicted(self, model: str, ratio: float) -> None:
        self.prediction_ratio.labels(model).observe(ratio)

    # single flight and caches

    def _declare_sharing(self) -> None:
        self.shared_rows = self._counter(
            "shared_rows", "Rows that shared the output of an identical row in flight.", ("model",)
        )
        self.caches: dict[CacheName, CacheMetrics] = {
            "results": self._declare_cache("cache", "result cache"),
            "labels": self._declare_cache("label_cache", "label cache"),
        }

    def _declare_cache(self, prefix: str, name: str) -> CacheMetrics:
        declared = CacheMetrics(
            hits=self._counter(f"{prefix}_hits", f"Rows answered from the {name}.", ("model",)),
            misses=self._counter(f"{prefix}_misses", f"Rows not found in the {name}.", ("model",)),
            evicted=self._counter(f"{prefix}_evicted", f"Outputs evicted from the {name}.", ("reason",)),
            entries=self._gauge(f"{prefix}_entries", f"Outputs in the {name}."),
            size=self._gauge(f"{prefix}_size", f"Memory of the {name}.", unit="bytes"),
        )
        _create_series(declared.evicted, known.EVICTION_REASONS)
        return declared

    def shared(self, model: str, rows: int) -> None:
        self.shared_rows.labels(model).inc(rows)

    def looked_up(self, cache: CacheName, model: str, *, hits: int, misses: int) -> None:
        if hits:
            self.caches[cache].hits.labels(model).inc(hits)
        if misses:
            self.caches[cache].misses.labels(model).inc(misses)

    def cache_evicts(self, cache: CacheName, reason: EvictionReason) -> None:
        self.caches[cache].evicted.labels(reason).inc()

    def cache_holds(self, cache: CacheName, entries: int, size: int) -> None:
        self.caches[cache].entries.set(entries)
        self.caches[cache].size.set(size)

    # replicas and the build

    def _declare_replicas(self) -> None:
        self.replica_up = self._gauge("replica_up", "1 if the replica is ready.", ("replica",))
        self.replica_state = self._gauge(
            "replica_state", "1 for the current state of the replica, 0 for the others.", ("replica", "state")
        )
        self.replica_restarts = self._counter(
            "replica_restarts", "Worker processes replaced after a loss.", ("replica",)
        )
        self.replica_losses = self._counter(
            "replica_losses", "Worker processes lost and starts failed, by reason.", ("replica", "reason")
        )
        self.replica_busy = self._counter("replica_busy_seconds", "Seconds of compute of the replica.", ("replica",))
        self.canary_runs = self._counter(
            "canary_runs", "Canary checks: known results computed again.", ("replica", "result")
        )
        self.canary_interval = self._gauge(
            "canary_interval", "Seconds between two canary checks; 0: no checks.", unit="seconds"
        )
        self.kernels_left_out = self._gauge(
            "kernels_left_out",
            "Kernels that the self-test of a replica found wrong or failing, and that it does not use.",
            ("replica", "model", "kind"),
        )
        self.replica_device_memory = self._gauge(
            "replica_device_memory",
            "GPU: memory used by all processes, and its size; CPU: memory of the worker process, and its limit.",
            ("replica", "kind"),
            "bytes",
        )
        self.replica_memory = self._gauge(
            "replica_memory", "Resident memory of the worker process when it became ready.", ("replica",), "bytes"
        )
        self.replica_model = self._gauge(
            "replica_model_info", "1 for each model on each replica.", ("replica", "model", "device", "precision")
        )
        self.model = self._gauge(
            "model_info", "1 for each served model.", ("model", "family", "kind", "source", "revision")
        )
        self.build = self._gauge("build_info", "1 for the running version.", ("version", "python"))
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp",
            "Time at which the TLS certificate in use expires, as seconds since 1970; 0: no TLS.",
            unit="seconds",
        )

    def declare(self, models: Sequence[str], replicas: Sequence[str], tasks: Sequence[str]) -> None:
        """Creates the series whose labels are names of models, replicas and tasks."""
        _create_series(self.requests, tasks, (*models, known.NO_MODEL), known.CODES)
        for by_input in (self.inputs, self.input_tokens):
            _create_series(by_input, tasks, models)
        _create_series(self.request_duration, tasks, (*models, known.NO_MODEL))
        _create_series(self.request_stage, tasks, known.STAGES)
        for by_task in (self.request_inputs, self.requests_in_progress, self.truncated_inputs):
            _create_series(by_task, tasks)
        for by_model in (self.batches, self.compute_duration, self.failed_rows, self.prediction_ratio):
            _create_series(by_model, models)
        _create_series(self.out_of_memory, models)
        for by_size in (self.batch_tokens, self.batch_rows):
            _create_series(by_size, models)
        for counted in (self.shared_rows, self.batch_budget):
            _create_series(counted, models)
        for declared in self.caches.values():
            _create_series(declared.hits, models)
            _create_series(declared.misses, models)
        _create_series(self.predicted_cost, models, known.COSTS)
        for by_replica in (self.replica_up, self.replica_restarts, self.replica_memory, self.replica_busy):
            _create_series(by_replica, replicas)
        _create_series(self.replica_losses, replicas, known.LOSS_REASONS)
        _create_series(self.canary_runs, replicas, known.CANARY_RESULTS)
        _create_series(self.kernels_left_out, replicas, models, known.KERNEL_KINDS)
        _create_series(self.replica_device_memory, replicas, known.MEMORY_KINDS)
        _create_series(self.replica_state, replicas, known.REPLICA_STATES)

    def declare_model(self, model: str, *, family: str, kind: str, source: str, revision: str) -> None:
        self.model.labels(model, family, kind, source, revision).set(1)

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

    def kernels_are_left_out(self, replica: str, model: str, kinds: Sequence[KernelKind]) -> None:
        """`kinds` has one entry for each kernel that the replica's current process does not use."""
        for kind in known.KERNEL_KINDS:
            self.kernels_left_out.labels(replica, model, kind).set(kinds.count(kind))

    def replica_holds(self, replica: str, *, device: str, precisions: dict[str, str], memory_bytes: int) -> None:
        """`precisions` maps a model to its precision on this replica."""
        self.replica_memory.labels(replica).set(memory_bytes)
        for model, precision in precisions.items():
            self.replica_model.labels(replica, model, device, precision).set(1)


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of this process: memory, CPU time and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
