"""The rows of a batch, computed: halved while the forward fails or finds no memory, until what is at fault is alone.

What failed is computed once more before it counts: a device may stumble. Knows no pipe and no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, Failure, Output
from service.errors import Died, OutOfMemory
from service.replicas.runner import Runner

logger = logging.getLogger(__name__)

Finish = Callable[[], list[Output]]


@dataclass(slots=True)
class MemoryProbe:
    """What was seen of the device while a batch was computed: whether it stumbled, and in tokens at a time, what there
    is memory for."""

    has_failed: bool = False
    most: int = 0
    least_too_many: int | None = None

    def fits(self, tokens: int) -> None:
        self.most = max(self.most, tokens)

    def exceeds(self, tokens: int) -> None:
        self.least_too_many = min(tokens, self.least_too_many or tokens)

    @property
    def fitting_tokens(self) -> int | None:
        """None while there was room for all. What is left of a batch beside one long row may be too few to go by."""
        return None if self.least_too_many is None else max(self.most, self.least_too_many // 2)


def run_rows(
    engine: Runner, encodings: Sequence[Encoding], seen: MemoryProbe, finish: Finish
) -> list[Output | Failure]:
    """`finish` is what the engine made of these rows already."""
    outputs = _halved(engine, encodings, seen, finish)
    if failed := [place for place, output in enumerate(outputs) if output == "failed"]:
        seen.has_failed = True
        again = _halved(engine, [encodings[place] for place in failed], seen)
        for place, output in zip(failed, again, strict=True):
            outputs[place] = output
    return outputs


def _halved(
    engine: Runner, encodings: Sequence[Encoding], seen: MemoryProbe, finish: Finish | None = None
) -> list[Output | Failure]:
    extra = {"rows": len(encodings), "tokens": sum(encoding.num_tokens for encoding in encodings)}
    failure: Failure = "failed"
    try:
        outputs = (finish or engine.prepare(encodings))()
        seen.fits(extra["tokens"])
        return _checked(outputs)
    except Died:
        raise
    except OutOfMemory as error:
        seen.exceeds(extra["tokens"])
        failure = "out_of_memory"
        logger.warning("no memory for a batch", extra={**extra, "reason": error.detail})
    except Exception:  # any error of a forward is that of one of its rows, or of too many together
        seen.has_failed = True
        logger.exception("forward failed", extra=extra)
    if len(encodings) == 1:
        return [failure]
    middle = len(encodings) // 2
    return _halved(engine, encodings[:middle], seen) + _halved(engine, encodings[middle:], seen)


def _checked(outputs: Sequence[Output]) -> list[Output | Failure]:
    """A row whose numbers are none has failed. There is hardly ever one, so all are looked at together first."""
    if np.isfinite(np.concatenate([each.scores for each in outputs], axis=None)).all():
        return list(outputs)
    checked: list[Output | Failure] = [each if np.isfinite(each.scores).all() else "failed" for each in outputs]
    logger.error("outputs are not finite", extra={"rows": checked.count("failed")})
    return checked
