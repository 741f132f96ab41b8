"""Every metric of the service, declared once: name, unit, help, labels and buckets; and small verbs to count with.

Knows no HTTP and no batching: others call its verbs. Every series is made before the first request, so that a rate over
a counter is right from its first increment and a dashboard is never empty. Child processes own no registry: their
seconds come back with the outputs and are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry

from service.declared import Declared, make

NO_MODEL = "none"
"""The `model` label of a request that was refused before it was routed: names sent by callers never become labels."""

DropReason = Literal["cancelled", "expired", "abandoned"]
RefusalReason = Literal["queue_full", "draining"]
EvictionReason = Literal["full", "expired"]
ReplicaState = Literal["starting", "loading", "ready", "restarting", "stopped"]

DROP_REASONS: tuple[DropReason, ...] = ("cancelled", "expired", "abandoned")
REFUSAL_REASONS: tuple[RefusalReason, ...] = ("queue_full", "draining")
EVICTION_REASONS: tuple[EvictionReason, ...] = ("full", "expired")
REPLICA_STATES: tuple[ReplicaState, ...] = ("starting", "loading", "ready", "restarting", "stopped")
CODES = ("200", "400", "404", "413", "422", "429", "499", "500", "503", "504")
SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LONG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)
COSTS = ("batch", "token", "row")
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics(Declared):
    """All metrics on one registry. `declare` makes the series whose labels are known at start only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._declare_requests()
        self._declare_batching()
        self._declare_replicas()

    # requests

    def _declare_requests(self) -> None:
        self.requests = self._counter("requests", "Requests finished, by HTTP status.", ("task", "model", "code"))
        self.request_duration = self._histogram(
            "request_duration", "Seconds from a request's first byte read to its reply.", LONG_S, ("task",), "seconds"
        )
        self.request_inputs = self._histogram(
            "request_inputs", "Inputs of a request that was answered.", COUNTS, ("task",)
        )
        self.requests_in_progress = self._gauge("requests_in_progress", "Requests not yet replied to.", ("task",))
        self.input_tokens = self._counter("input_tokens", "Tokens of the inputs that were encoded.", ("task", "model"))
        self.truncated_inputs = self._counter("truncated_inputs", "Inputs that were cut to fit the model.", ("task",))
        self.tokenize_duration = self._histogram(
            "tokenize_duration", "Seconds to make the encodings of a request.", SHORT_S, unit="seconds"
        )

    def request_done(self, task: str, model: str | None, code: int, seconds: float) -> None:
        self.requests.labels(task, model or NO_MODEL, str(code)).inc()
        self.request_duration.labels(task).observe(seconds)

    @contextmanager
    def in_progress(self, task: str) -> Iterator[None]:
        gauge = self.requests_in_progress.labels(task)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def encoded(self, task: str, model: str, *, tokens: int, truncated: int, seconds: float) -> None:
        self.input_tokens.labels(task, model).inc(tokens)
        self.truncated_inputs.labels(task).inc(truncated)
        self.tokenize_duration.observe(seconds)

    def answered(self, task: str, inputs: int) -> None:
        self.request_inputs.labels(task).observe(inputs)

    # queue and batches

    def _declare_batching(self) -> None:
        self.queue_jobs = self._gauge("queue_jobs", "Jobs (rows) that wait to be taken into a batch.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens of the jobs that wait.")
        self.queue_oldest_age = self._gauge("queue_oldest_age", "Age of the job that waits longest.", unit="seconds")
        self.queue_duration = self._histogram(
            "queue_duration", "Seconds a job waited before a batch took it.", LONG_S, unit="seconds"
        )
        self.jobs_dropped = self._counter(
            "jobs_dropped", "Jobs never computed: caller gone, deadline passed, or request failed.", ("reason",)
        )
        self.jobs_refused = self._counter("jobs_refused", "Jobs not let into the queue.", ("reason",))
        self.jobs_given_back = self._counter("jobs_given_back", "Jobs put back into the queue after a replica's loss.")
        self.batches = self._counter("batches", "Batches computed.", ("model",))
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", TOKENS)
        self.batch_rows = self._histogram("batch_rows", "Rows in a batch.", COUNTS)
        self.batches_in_flight = self._gauge("batches_in_flight", "Batches computing or waiting at a replica.")
        self.tokens_in_flight = self._gauge("tokens_in_flight", "Tokens of the batches in flight.")
        self.compute_duration = self._histogram(
            "compute_duration", "Seconds a replica computed a batch.", LONG_S, ("model",), "seconds"
        )
        self.failed_rows = self._counter("failed_rows", "Rows that the forward failed on.", ("model",))
        self._declare_pace()
        self._declare_sharing()
        make(self.jobs_dropped, DROP_REASONS)
        make(self.jobs_refused, REFUSAL_REASONS)

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

    def taken(self, waited_s: Iterable[float], tokens: int) -> None:
        """A batch was taken: one wait per row."""
        for seconds in waited_s:
            self.queue_duration.observe(seconds)
        self.batches_in_flight.inc()
        self.tokens_in_flight.inc(tokens)

    def landed(self, tokens: int) -> None:
        """A batch that was taken is no longer in flight, whatever became of it."""
        self.batches_in_flight.dec()
        self.tokens_in_flight.dec(tokens)

    def computed(self, model: str, *, rows: int, failed_rows: int, tokens: int, seconds: float) -> None:
        self.batches.labels(model).inc()
        self.batch_rows.observe(rows)
        self.batch_tokens.observe(tokens)
        self.compute_duration.labels(model).observe(seconds)
        self.failed_rows.labels(model).inc(failed_rows)

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
            "prediction_ratio", "Seconds that a batch took, over what was expected.", RATIOS, ("model",)
        )
        self.queue_predicted_wait = self._gauge(
            "queue_predicted_wait", "Seconds until what waits now is computed, as expected.", unit="seconds"
        )

    def costs(self, model: str, budget: int, *, batch_s: float, token_s: float, row_s: float) -> None:
        self.batch_budget.labels(model).set(budget)
        for of, seconds in zip(COSTS, (batch_s, token_s, row_s), strict=True):
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
        make(self.cache_evicted, EVICTION_REASONS)

    def looked_up(self, model: str, *, is_hit: bool) -> None:
        (self.cache_hits if is_hit else self.cache_misses).labels(model).inc()

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
        make(self.requests, tasks, (*models, NO_MODEL), CODES)
        make(self.input_tokens, tasks, models)
        for by_task in (self.request_duration, self.request_inputs, self.requests_in_progress, self.truncated_inputs):
            make(by_task, tasks)
        for by_model in (self.batches, self.compute_duration, self.failed_rows, self.prediction_ratio):
            make(by_model, models)
        for counted in (self.shared_rows, self.cache_hits, self.cache_misses, self.batch_budget):
            make(counted, models)
        make(self.predicted_cost, models, COSTS)
        for by_replica in (self.replica_up, self.replica_restarts, self.replica_memory):
            make(by_replica, replicas)
        make(self.replica_state, replicas, REPLICA_STATES)

    def declare_model(self, model: str, *, family: str, kind: str, source: str) -> None:
        self.model.labels(model, family, kind, source).set(1)

    def declare_build(self, *, version: str, python: str) -> None:
        self.build.labels(version, python).set(1)

    def replica_is(self, replica: str, state: ReplicaState) -> None:
        self.replica_up.labels(replica).set(state == "ready")
        for known in REPLICA_STATES:
            self.replica_state.labels(replica, known).set(state == known)

    def replica_holds(self, replica: str, *, device: str, precisions: dict[str, str], memory_bytes: int) -> None:
        """`precisions` are by model name."""
        self.replica_memory.labels(replica).set(memory_bytes)
        for model, precision in precisions.items():
            self.replica_model.labels(replica, model, device, precision).set(1)
