"""The queue: jobs that wait, and which of them make the next batch.

Pure: time is passed in as `now` (seconds), nothing is awaited, and dropped jobs go to a callable.

Order: jobs that were given back after a loss; then by priority; then between accounts and within each by fair queueing
(`fair_share`); equals by arrival. The first job always goes in and decides the model of the batch. Later jobs of that
model fill the rest of the token budget: a job that does not fit is passed over in favour of shorter ones and leads a
batch soon. A job that was being computed when a replica was lost goes alone: if it crashes the process, it crashes it
alone the second time.

Every DUE_EVERYth batch is for jobs older than the age limit, by arrival, whatever their accounts and priorities. So a
low priority, and the last rows of a long request among very many small ones, are served in the end. It is a share of
the device and not a right to go first, or a few long overdue requests would hold all others back again; and it is
charged to the account.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

from service.batching.batch import Batch
from service.batching.fair_share import FairShare, Flow, QueuePosition
from service.batching.jobs import Job
from service.batching.latency_model import LatencyModels
from service.domain import DEFAULT_OPTIONS, RequestOptions
from service.metric_labels import DROP_REASONS, DropReason

DUE_EVERY = 4

MAX_PASSED_OVER = 32
"""Jobs that do not fit and are skipped per batch: taking a batch stays cheap however long the queue is."""

SLACK = 64
"""Stale heap entries that are never worth a clean-up."""

OnDropped = Callable[[DropReason, Sequence[Job]], None]

Rank = tuple[int, float, float, float, int]
"""Class (below), then what counts within the class, then arrival. The smallest rank goes first."""

GIVEN_BACK, OVERDUE, IN_ORDER = 0, 1, 2

NEVER = float("-inf")


class LazyHeap:
    """Jobs of one flow in the order of their start tags, any of which may leave at any time.

    An entry is stale once its job waits no more or has another position. Push and pop cost the logarithm of the number
    of jobs; stale entries are skipped, and removed when they are the majority. `waiting` holds the numbers of the jobs
    that wait, in any heap.
    """

    def __init__(self, waiting: Container[int]) -> None:
        self._waiting = waiting
        self._heap: list[tuple[float, int, Job, QueuePosition]] = []
        self._size_when_cleared = 0

    def __len__(self) -> int:
        """Stale entries included."""
        return len(self._heap)

    def push(self, job: Job) -> None:
        if len(self._heap) > 2 * self._size_when_cleared + SLACK:
            self._clear()
        heappush(self._heap, (job.position.start_tag, job.number, job, job.position))

    def first(self) -> Job | None:
        """The job with the smallest start tag, of equals the one that arrived first; it stays."""
        while self._heap:
            _, number, job, position = self._heap[0]
            if job.position is position and number in self._waiting:
                return job
            heappop(self._heap)
        return None

    def pop(self) -> None:
        """Removes what `first` has just returned."""
        heappop(self._heap)

    def _clear(self) -> None:
        """Runs at most once in as many pushes as entries are kept, so a push is cheap on average."""
        self._heap = [entry for entry in self._heap if entry[2].position is entry[3] and entry[1] in self._waiting]
        heapify(self._heap)
        self._size_when_cleared = len(self._heap)


class ModelQueue:
    """The jobs of one model that wait.

    Each is here once, and once more in the heap of its flow unless it was given back. To find the first one costs a
    look at every flow that waits at the highest priority.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._given_back: dict[int, Job] = {}
        self._by_arrival: OrderedDict[int, Job] = OrderedDict()
        self._heaps: dict[int, dict[Flow, LazyHeap]] = {}  # the highest priority first

    def __len__(self) -> int:
        return len(self._given_back) + len(self._by_arrival)

    def __iter__(self) -> Iterator[Job]:
        """Jobs that were given back first, then by arrival."""
        return chain(self._given_back.values(), self._by_arrival.values())

    def __contains__(self, job: Job) -> bool:
        return job.number in (self._given_back if job.is_given_back else self._by_arrival)

    def add(self, job: Job) -> None:
        self.num_tokens += job.num_tokens
        if job.is_given_back:
            self._given_back[job.number] = job
            self._given_back = dict(sorted(self._given_back.items()))
        else:
            self._by_arrival[job.number] = job
            self.place(job)

    def place(self, job: Job) -> None:
        """Enters a job that is here at its position; its earlier entry becomes stale."""
        priority, flow = job.position.entry.priority, job.position.entry.flow
        if priority not in self._heaps:
            self._heaps[priority] = {}
            self._heaps = dict(sorted(self._heaps.items(), reverse=True))
        heaps = self._heaps[priority]
        if flow not in heaps:
            heaps[flow] = LazyHeap(self._by_arrival)
        heaps[flow].push(job)

    def remove(self, job: Job) -> None:
        self.num_tokens -= job.num_tokens
        del (self._given_back if job.is_given_back else self._by_arrival)[job.number]

    def first(self, overdue_since: float) -> tuple[Rank, Job] | None:
        """The first job and its rank; jobs that arrived until `overdue_since` are overdue."""
        if self._given_back:
            number, job = next(iter(self._given_back.items()))
            return (GIVEN_BACK, 0, 0, 0, number), job
        if overdue_since > NEVER and self._by_arrival:
            number, job = next(iter(self._by_arrival.items()))
            if job.arrived <= overdue_since:
                return (OVERDUE, job.arrived, 0, 0, number), job
        for priority, heaps in self._heaps.items():
            if ranked := _rank_flows(priority, heaps):
                return min(ranked)
        return None

    def pass_over(self, job: Job) -> None:
        """Takes the first job in order out of its heap, so that the next one is first; its flow is ordered as if it had
        been given the job."""
        flow = job.position.entry.flow
        flow.passed_over += job.num_tokens
        self._heaps[job.position.entry.priority][flow].pop()

    def put_back(self, job: Job) -> None:
        """Undoes `pass_over`."""
        job.position.entry.flow.passed_over = 0
        self.place(job)


def _rank_flows(priority: int, heaps: dict[Flow, LazyHeap]) -> list[tuple[Rank, Job]]:
    """The first job of every flow; empty heaps are removed."""
    ranked: list[tuple[Rank, Job]] = []
    for flow, heap in tuple(heaps.items()):
        if job := heap.first():
            tag = flow.start_tag + flow.passed_over / flow.weight
            ranked.append(((IN_ORDER, -priority, tag, job.position.start_tag, job.number), job))
        else:
            del heaps[flow]
    return ranked


class Queue:
    """One queue for all models; `latency_models` give the token budget of a batch and predict its time."""

    def __init__(self, *, latency_models: LatencyModels, max_age_s: float, on_dropped: OnDropped) -> None:
        self.num_tokens = 0
        self._latency_models = latency_models
        self._max_age_s = max_age_s
        self._on_dropped = on_dropped
        self._num_pushed = 0
        self._num_batches = 0
        self._model_queues: dict[str, ModelQueue] = {}
        self._fair_share = FairShare()

    def __len__(self) -> int:
        return sum(map(len, self._model_queues.values()))

    def row_tokens(self) -> int:
        """Mean tokens of the rows that wait."""
        return self.num_tokens // max(1, len(self))

    def oldest_arrival(self) -> float | None:
        return min((next(iter(model_queue)).arrived for model_queue in self._model_queues.values()), default=None)

    def waiting(self) -> Iterator[tuple[str, int, int]]:
        """Model, tokens and rows of what waits."""
        return ((model, queue.num_tokens, len(queue)) for model, queue in self._model_queues.items())

    def tokens_ahead(self, options: RequestOptions, tokens: float) -> float:
        """About how many tokens that wait are computed before a new request of `tokens`."""
        given_back = self.num_tokens - self._fair_share.num_tokens
        return given_back + self._fair_share.tokens_ahead(options, tokens)

    def exceeds_share(self, options: RequestOptions, tokens: int, limit: int) -> bool:
        """Whether the account would have more tokens waiting than its share of `limit`."""
        return self._fair_share.exceeds_share(options, tokens, limit)

    def push(self, jobs: Iterable[Job], options: RequestOptions = DEFAULT_OPTIONS) -> None:
        """Queues the jobs of one request, in order.

        A job that waits already, for another request, keeps the better of its two positions; one that is being computed
        is left alone.
        """
        entry = self._fair_share.enter(options)
        tag = entry.flow.virtual_time
        for job in jobs:
            position = QueuePosition(entry, tag)
            tag += job.num_tokens
            if job.is_new:
                job.number, job.position = self._num_pushed, position
                self._num_pushed += 1
                self._link(job)
            elif self._waits(job) and not job.is_given_back and position.is_before(job.position):
                self._move(job, position)

    def give_back(self, jobs: Iterable[Job]) -> None:
        """Puts jobs whose replica was lost at the head of the queue, by arrival among all that were given back."""
        for job in jobs:
            job.is_given_back = True
            self._link(job)

    def remove(self, jobs: Iterable[Job], reason: DropReason) -> None:
        """Drops those of the jobs that still wait."""
        waiting = [job for job in jobs if self._waits(job)]
        for job in waiting:
            self._unlink(job)
        if waiting:
            self._on_dropped(reason, waiting)

    def drain(self) -> list[Job]:
        """Removes and returns every job that waits, by arrival."""
        jobs = [job for model_queue in self._model_queues.values() for job in model_queue]
        for job in jobs:
            self._unlink(job)
        return sorted(jobs, key=lambda job: job.number)

    def take(self, now: float) -> Batch | None:
        """The next batch; None when nothing waits. Jobs that are no longer wanted are dropped on the way."""
        if not self._model_queues:
            return None
        unwanted: list[Job] = []
        is_due_turn = self._num_batches % DUE_EVERY == DUE_EVERY - 1
        overdue_since = now - self._max_age_s if is_due_turn else NEVER
        leading = self._leading(now, overdue_since, unwanted)
        jobs = self._fill(*leading, now, overdue_since, unwanted) if leading else []
        self._num_batches += bool(jobs)
        if unwanted:
            self._drop(unwanted)
        return self._batch(jobs) if jobs else None

    def _batch(self, jobs: list[Job]) -> Batch:
        model, num_tokens = jobs[0].encoding.model, sum([job.num_tokens for job in jobs])
        expected_s = self._latency_models.predict(model, num_tokens, len(jobs))
        return Batch(model, jobs, [job.encoding for job in jobs], num_tokens, expected_s)

    def _drop(self, unwanted: Sequence[Job]) -> None:
        # Grouped before any is dropped: `on_dropped` may close a request, and with it give other jobs a reason.
        reasons = [job.drop_reason() for job in unwanted]
        for reason in DROP_REASONS:
            if dropped := [job for job, its in zip(unwanted, reasons, strict=True) if its == reason]:
                self._on_dropped(reason, dropped)

    def _leading(
        self, now: float, overdue_since: float, unwanted: list[Job]
    ) -> tuple[str, ModelQueue, tuple[Rank, Job]] | None:
        """The model whose first job has the smallest rank, and that job."""
        ranked = [
            (found, model, model_queue)
            for model, model_queue in tuple(self._model_queues.items())
            if (found := self._first_wanted(model_queue, now, overdue_since, unwanted))
        ]
        if not ranked:
            return None
        found, model, model_queue = min(ranked, key=lambda each: each[0][0])
        return model, model_queue, found

    def _fill(
        self,
        model: str,
        model_queue: ModelQueue,
        found: tuple[Rank, Job] | None,
        now: float,
        overdue_since: float,
        unwanted: list[Job],
    ) -> list[Job]:
        """Jobs of one model, from its first one on, up to the token budget; each leaves the queue."""
        batch: list[Job] = []
        passed_over: list[Job] = []
        left = self._latency_models.budget(model)
        while found:
            (kind, *_), job = found
            is_suspect = job.num_losses > 0
            if (not batch or job.num_tokens <= left) and not (batch and is_suspect):
                is_in_order = kind == IN_ORDER and not passed_over
                self._take_out(job, is_in_order=is_in_order)
                batch.append(job)
                left = 0 if is_suspect else max(0, left - job.num_tokens)
            elif kind == IN_ORDER:
                model_queue.pass_over(job)
                passed_over.append(job)
            elif kind == OVERDUE:
                overdue_since = NEVER  # the rest of this batch is filled in order
            else:
                break  # the job that was given back leads the next batch
            found = self._first_wanted(model_queue, now, overdue_since, unwanted)
            if not left or len(passed_over) >= MAX_PASSED_OVER:
                break
        for job in passed_over:
            model_queue.put_back(job)
        return batch

    def _take_out(self, job: Job, *, is_in_order: bool) -> None:
        if not job.is_given_back:  # else it was charged when it was taken the first time
            self._fair_share.take(job.position, job.num_tokens, in_order=is_in_order)
        self._remove(job)

    def _first_wanted(
        self, model_queue: ModelQueue, now: float, overdue_since: float, unwanted: list[Job]
    ) -> tuple[Rank, Job] | None:
        """The first job of the model that is wanted; unwanted jobs before it leave the queue."""
        while found := model_queue.first(overdue_since):
            if found[1].is_wanted(now):
                return found
            self._unlink(found[1])
            unwanted.append(found[1])
        return None

    def _move(self, job: Job, position: QueuePosition) -> None:
        job.position.entry.drop(job.num_tokens)
        job.position = position
        position.entry.add(job.num_tokens)
        self._model_queues[job.encoding.model].place(job)

    def _waits(self, job: Job) -> bool:
        model_queue = self._model_queues.get(job.encoding.model)
        return model_queue is not None and job in model_queue

    def _link(self, job: Job) -> None:
        model = job.encoding.model
        if model not in self._model_queues:
            self._model_queues[model] = ModelQueue()
        self._model_queues[model].add(job)
        self.num_tokens += job.num_tokens
        if not job.is_given_back:
            job.position.entry.add(job.num_tokens)

    def _unlink(self, job: Job) -> None:
        if not job.is_given_back:
            job.position.entry.drop(job.num_tokens)
        self._remove(job)

    def _remove(self, job: Job) -> None:
        model = job.encoding.model
        model_queue = self._model_queues[model]
        model_queue.remove(job)
        self.num_tokens -= job.num_tokens
        if not len(model_queue):
            del self._model_queues[model]
        if not self._model_queues:
            self._fair_share.forget()
