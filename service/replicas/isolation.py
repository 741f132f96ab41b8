"""Isolation: computes the rows of a batch, halved while the forward fails or runs out of memory, until the row at fault
is alone.

A row that fails is computed once more before it counts as failed: a device may have a transient fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, Failure, Output
from service.errors import DeviceFailure, OutOfMemory
from service.replicas.runner import Runner

logger = logging.getLogger(__name__)

Finish = Callable[[], list[Output]]


@dataclass(slots=True)
class MemoryProbe:
    """What a batch showed of its device: whether a forward failed, and which numbers of tokens fit into memory."""

    has_failed: bool = False
    max_fitting: int = 0
    min_exceeding: int | None = None

    def fits(self, tokens: int) -> None:
        self.max_fitting = max(self.max_fitting, tokens)

    def exceeds(self, tokens: int) -> None:
        self.min_exceeding = min(tokens, self.min_exceeding or tokens)

    @property
    def fitting_tokens(self) -> int | None:
        """None while everything fitted. What is left of a batch next to one long row may be too few tokens to go by."""
        return None if self.min_exceeding is None else max(self.max_fitting, self.min_exceeding // 2)


def run_rows(
    engine: Runner, encodings: Sequence[Encoding], probe: MemoryProbe, finish: Finish
) -> list[Output | Failure]:
    """Outputs in the order of the rows; `finish` is the prepared forward of all of them."""
    outputs = _run_or_halve(engine, encodings, probe, finish)
    if failed := [index for index, output in enumerate(outputs) if output == "failed"]:
        probe.has_failed = True
        again = _run_or_halve(engine, [encodings[index] for index in failed], probe)
        for index, output in zip(failed, again, strict=True):
            outputs[index] = output
    return outputs


def _run_or_halve(
    engine: Runner, encodings: Sequence[Encoding], probe: MemoryProbe, finish: Finish | None = None
) -> list[Output | Failure]:
    extra = {"rows": len(encodings), "tokens": sum(encoding.num_tokens for encoding in encodings)}
    failure: Failure = "failed"
    try:
        outputs = (finish or engine.prepare(encodings))()
        probe.fits(extra["tokens"])
        return _check_finite(outputs)
    except DeviceFailure:
        raise
    except OutOfMemory as error:
        probe.exceeds(extra["tokens"])
        failure = "out_of_memory"
        logger.warning("batch ran out of memory", extra={**extra, "reason": error.detail})
    except Exception:  # a forward fails because of one of its rows, or of too many together
        probe.has_failed = True
        logger.exception("forward failed", extra=extra)
    if len(encodings) == 1:
        return [failure]
    middle = len(encodings) // 2
    return _run_or_halve(engine, encodings[:middle], probe) + _run_or_halve(engine, encodings[middle:], probe)


def _check_finite(outputs: Sequence[Output]) -> list[Output | Failure]:
    """Rows with NaN or infinity have failed. That is rare, so all rows are checked together first."""
    if np.isfinite(np.concatenate([each.scores for each in outputs], axis=None)).all():
        return list(outputs)
    checked: list[Output | Failure] = [each if np.isfinite(each.scores).all() else "failed" for each in outputs]
    logger.error("outputs are not finite", extra={"rows": checked.count("failed")})
    return checked
