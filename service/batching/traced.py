"""A batch is run, and the tracer is told what became of it and which requests were in it.

Knows no queue. With the null tracer nothing is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from service.batching.job import Job
from service.batching.run import Ran, Run
from service.tracing.trace import BatchTrace, Trace, Tracer, replica


async def traced(tracer: Tracer, clock: Callable[[], float], run: Run, batch: Sequence[Job], tokens: int) -> Ran:
    """Raises what `run` raises."""
    taken, compute_s, error = clock(), 0.0, ""
    try:
        ran = await run([job.encoding for job in batch])
        compute_s = ran.compute_s
        return ran
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        now = clock()
        fields = {
            "model": batch[0].encoding.model,
            "rows": len(batch),
            "tokens": tokens,
            "replica": replica.get(),
        }
        tracer.batch(BatchTrace(now - taken, compute_s, error, fields), _waiting(batch, now))


def _waiting(batch: Sequence[Job], now: float) -> Iterator[tuple[Trace, float]]:
    return ((ticket.trace, now - ticket.arrived) for job in batch for ticket, _ in job.waiters)
