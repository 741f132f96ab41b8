"""Jobs that wait, and which of them make the next batch: order, token budget, deadline and cancellation.

Pure: time is passed in as `now` (seconds), nothing is awaited, and what was dropped is told to a callable.

Order: jobs given back after a loss, then by priority, then by what each account was given (`share.py`), then by tag
within the account, equals by arrival. The first job always goes in and decides the model of the batch. Later jobs of
that model fill the rest of the budget: one that does not fit is passed over in favour of shorter ones and leads a batch
soon. A job that was at hand when a replica was lost goes alone: if it was what the replica died of, it takes nobody
along the next time.

Every DUE_EVERYth batch is for those who have waited for the age cap, by arrival, whatever their accounts, tags and
priorities; so a low priority, and the last rows of a long request among very many small ones, are served in the end. It
is a part of the device and not a right to go first, or a few long requests that are overdue would hold all others back
again; and it counts as given to the account.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

from service.batching.fair_share import FairShare, Flow, QueuePosition
from service.batching.jobs import Job
from service.domain import DEFAULT_OPTIONS, RequestOptions
from service.metric_labels import DROP_REASONS, DropReason

SLACK = 64
"""Stale entries that are never worth a clearing."""


class LazyHeap:
    """`waiting` holds the numbers of the jobs that wait, in any lane."""

    def __init__(self, waiting: Container[int]) -> None:
        self._waiting = waiting
        self._heap: list[tuple[float, int, Job, QueuePosition]] = []
        self._size_when_cleared = 0

    def __len__(self) -> int:
        """Stale entries too."""
        return len(self._heap)

    def push(self, job: Job) -> None:
        """Puts a job where its place is."""
        if len(self._heap) > 2 * self._size_when_cleared + SLACK:
            self._clear()
        heappush(self._heap, (job.position.tag, job.number, job, job.position))

    def first(self) -> Job | None:
        """The job with the least tag, of equals the one that arrived first; it stays."""
        while self._heap:
            _, number, job, position = self._heap[0]
            if job.position is position and number in self._waiting:
                return job
            heappop(self._heap)
        return None

    def pop(self) -> None:
        """Takes out what `first` has just shown."""
        heappop(self._heap)

    def _clear(self) -> None:
        """At most once in as many pushes as entries are kept, so a push is cheap on average."""
        self._heap = [entry for entry in self._heap if entry[2].position is entry[3] and entry[1] in self._waiting]
        heapify(self._heap)
        self._size_when_cleared = len(self._heap)


Rank = tuple[int, float, float, float, int]
"""Class, then what counts within it, then arrival."""

LOST, OVERDUE, IN_ORDER = 0, 1, 2

NEVER = float("-inf")


class ModelQueue:
    """Every job that waits is here once, and once more in the lane of its share unless it was lost."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._lost: dict[int, Job] = {}
        self._by_arrival: OrderedDict[int, Job] = OrderedDict()
        self._heaps: dict[int, dict[Flow, LazyHeap]] = {}  # the highest priority first

    def __len__(self) -> int:
        return len(self._lost) + len(self._by_arrival)

    def __iter__(self) -> Iterator[Job]:
        """Lost ones first, then by arrival."""
        return chain(self._lost.values(), self._by_arrival.values())

    def __contains__(self, job: Job) -> bool:
        return job.number in (self._lost if job.is_back else self._by_arrival)

    def add(self, job: Job) -> None:
        self.num_tokens += job.num_tokens
        if job.is_back:
            self._lost[job.number] = job
            self._lost = dict(sorted(self._lost.items()))
        else:
            self._by_arrival[job.number] = job
            self.position(job)

    def position(self, job: Job) -> None:
        """Puts a job that is here where its place is; where it was before it is stale."""
        priority, flow = job.position.priority, job.position.flow
        if priority not in self._heaps:
            self._heaps[priority] = {}
            self._heaps = dict(sorted(self._heaps.items(), reverse=True))
        heaps = self._heaps[priority]
        if flow not in heaps:
            heaps[flow] = LazyHeap(self._by_arrival)
        heaps[flow].push(job)

    def remove(self, job: Job) -> None:
        self.num_tokens -= job.num_tokens
        del (self._lost if job.is_back else self._by_arrival)[job.number]

    def first(self, overdue_since: float) -> tuple[Rank, Job] | None:
        """The first job; overdue is what came until then."""
        if self._lost:
            number, job = next(iter(self._lost.items()))
            return (LOST, 0, 0, 0, number), job
        if overdue_since > NEVER and self._by_arrival:
            number, job = next(iter(self._by_arrival.items()))
            if job.arrived <= overdue_since:
                return (OVERDUE, job.arrived, 0, 0, number), job
        for priority, heaps in self._heaps.items():
            if ranked := _ranked(priority, heaps):
                return min(ranked)
        return None

    def pass_over(self, job: Job) -> None:
        """Takes what was first in order out of its lane, so that the next one is first, as if its account had been
        given it."""
        flow = job.position.flow
        flow.passed_over += job.num_tokens
        self._heaps[job.position.priority][flow].pop()

    def put_back(self, job: Job) -> None:
        """Where it was before it was passed over."""
        job.position.flow.passed_over = 0
        self.position(job)


def _ranked(priority: int, heaps: dict[Flow, LazyHeap]) -> list[tuple[Rank, Job]]:
    """The first job of every account; lanes that are empty are cleared away."""
    ranked: list[tuple[Rank, Job]] = []
    for flow, heap in tuple(heaps.items()):
        if job := heap.first():
            ranked.append(((IN_ORDER, -priority, flow.turn, job.position.tag, job.number), job))
        else:
            del heaps[flow]
    return ranked


DUE_EVERY = 4

MAX_PASSED_OVER = 32
"""How many jobs that do not fit are looked at per batch: taking a batch stays cheap however long the queue is."""

Dropped = Callable[[DropReason, Sequence[Job]], None]


class Queue:
    """One queue for all models. `budget` tells the tokens of a full batch of a model."""

    def __init__(self, *, max_age_s: float, budget: Callable[[str], int], dropped: Dropped) -> None:
        self.num_tokens = 0
        self._max_age_s = max_age_s
        self._budget = budget
        self._dropped = dropped
        self._num_pushed = 0
        self._num_batches = 0
        self._model_queues: dict[str, ModelQueue] = {}
        self._fair_share = FairShare()

    def __len__(self) -> int:
        return sum(map(len, self._model_queues.values()))

    def row_tokens(self) -> int:
        """Of those that wait, the mean."""
        return self.num_tokens // max(1, len(self))

    def oldest_arrival(self) -> float | None:
        return min((next(iter(model_queue)).arrived for model_queue in self._model_queues.values()), default=None)

    def waiting(self) -> Iterator[tuple[str, int, int]]:
        """Model, tokens and rows of what waits."""
        return ((model, model_queue.num_tokens, len(model_queue)) for model, model_queue in self._model_queues.items())

    def tokens_ahead(self, options: RequestOptions, tokens: float) -> float:
        """Tokens that wait and are computed before a new request of so many, about."""
        lost = self.num_tokens - self._fair_share.num_tokens
        return lost + self._fair_share.tokens_ahead(options, tokens)

    def exceeds_share(self, options: RequestOptions, tokens: int, limit: int) -> bool:
        """Whether the account would have more waiting than is its part of `limit`."""
        return self._fair_share.exceeds_share(options, tokens, limit)

    def push(self, jobs: Iterable[Job], options: RequestOptions = DEFAULT_OPTIONS) -> None:
        """One request's jobs, in order. One that waits already, for another request, takes the better of its places;
        one that is being computed stays there."""
        entry = self._fair_share.entry(options)
        tag = entry.flow.virtual
        for job in jobs:
            position = QueuePosition(entry, tag)
            tag += job.num_tokens
            if job.is_new:
                job.number, job.position = self._num_pushed, position
                self._num_pushed += 1
                self._link(job)
            elif self._waits(job) and not job.is_back and position.is_before(job.position):
                self._move(job, position)

    def give_back(self, jobs: Iterable[Job]) -> None:
        """Lost jobs go to the head of the queue, in order of arrival among all that were given back."""
        for job in jobs:
            job.is_back = True
            self._link(job)

    def remove(self, jobs: Iterable[Job], reason: DropReason) -> None:
        """Drops those of the jobs that still wait."""
        waiting = [job for job in jobs if self._waits(job)]
        for job in waiting:
            self._unlink(job)
        if waiting:
            self._dropped(reason, waiting)

    def drain(self) -> list[Job]:
        """Every job that waits, in order of arrival; the queue is empty afterwards."""
        jobs = [job for model_queue in self._model_queues.values() for job in model_queue]
        for job in jobs:
            self._unlink(job)
        return sorted(jobs, key=lambda job: job.number)

    def take(self, now: float) -> list[Job]:
        """The next batch, in order; empty when nobody waits. Dead jobs on the way are dropped."""
        if not self._model_queues:
            return []
        dead: list[Job] = []
        is_due_turn = self._num_batches % DUE_EVERY == DUE_EVERY - 1
        overdue_since = now - self._max_age_s if is_due_turn else NEVER
        model_queue = self._leading(now, overdue_since, dead)
        batch = self._fill(model_queue, now, overdue_since, dead) if model_queue else []
        self._num_batches += bool(batch)
        # Grouped before any is dropped: who is told of a drop may close its ticket, for that reason.
        reasons = [job.drop_reason() for job in dead]
        for reason in DROP_REASONS:
            if gone := [job for job, its in zip(dead, reasons, strict=True) if its == reason]:
                self._dropped(reason, gone)
        return batch

    def _leading(self, now: float, overdue_since: float, dead: list[Job]) -> ModelQueue | None:
        """The model whose first job is before those of all others."""
        model_queues = list(self._model_queues.values())
        if len(model_queues) == 1:
            return model_queues[0]
        ranked = [
            (found[0], model_queue)
            for model_queue in model_queues
            if (found := self._first_living(model_queue, now, overdue_since, dead))
        ]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None

    def _fill(self, model_queue: ModelQueue, now: float, overdue_since: float, dead: list[Job]) -> list[Job]:
        batch: list[Job] = []
        passed_over: list[Job] = []
        room = 0
        while found := self._first_living(model_queue, now, overdue_since, dead):
            (kind, *_), job = found
            room = room if batch else max(self._budget(job.encoding.model), job.num_tokens)
            if not room or len(passed_over) >= MAX_PASSED_OVER:
                break
            if job.num_tokens <= room and not (batch and job.is_suspect):
                if kind != LOST:
                    self._fair_share.charge(job.position, job.num_tokens, in_order=kind == IN_ORDER and not passed_over)
                self._unlink(job)
                batch.append(job)
                room = 0 if job.is_suspect else room - job.num_tokens
            elif kind == IN_ORDER:
                model_queue.pass_over(job)
                passed_over.append(job)
            elif kind == LOST:
                break  # it leads the next batch
            else:
                overdue_since = NEVER  # the rest of this batch is filled in order
        for job in passed_over:
            model_queue.put_back(job)
        return batch

    def _first_living(
        self, model_queue: ModelQueue, now: float, overdue_since: float, dead: list[Job]
    ) -> tuple[Rank, Job] | None:
        """The line's first job; those before it that need no answer any more leave the queue."""
        while found := model_queue.first(overdue_since):
            if found[1].is_wanted(now):
                return found
            self._unlink(found[1])
            dead.append(found[1])
        return None

    def _move(self, job: Job, position: QueuePosition) -> None:
        job.position.entry.drop(job.num_tokens)
        job.position = position
        position.entry.add(job.num_tokens)
        self._model_queues[job.encoding.model].position(job)

    def _waits(self, job: Job) -> bool:
        model_queue = self._model_queues.get(job.encoding.model)
        return model_queue is not None and job in model_queue

    def _link(self, job: Job) -> None:
        model = job.encoding.model
        if model not in self._model_queues:
            self._model_queues[model] = ModelQueue()
        self._model_queues[model].add(job)
        self.num_tokens += job.num_tokens
        if not job.is_back:
            job.position.entry.add(job.num_tokens)

    def _unlink(self, job: Job) -> None:
        model_queue = self._model_queues[job.encoding.model]
        model_queue.remove(job)
        self.num_tokens -= job.num_tokens
        if not job.is_back:
            job.position.entry.drop(job.num_tokens)
        if not model_queue:
            del self._model_queues[job.encoding.model]
        if not self._model_queues:
            self._fair_share.forget()
