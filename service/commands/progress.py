"""How far loading is: bars for a person at a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from service.replicas.protocol import Loading

logger = logging.getLogger(__name__)

STEPS = 4
"""Log lines for one model on one replica."""


class LoadingBars:
    """One bar for each model on each replica."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, str], tqdm[None]] = {}

    def __call__(self, replica: str, loading: Loading) -> None:
        bar = self._bars.get((replica, loading.model))
        if bar is None:
            title = f"loading {loading.model} on {replica}"
            bar = tqdm(total=loading.total, desc=title, unit="B", unit_scale=True, leave=False)
            self._bars[replica, loading.model] = bar
        bar.update(loading.done - bar.n)
        if loading.done >= loading.total:
            bar.close()
            del self._bars[replica, loading.model]


class LoadingLines:
    """A line at every quarter; from the start again when a second pass follows, as reading does on converting."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], int] = {}

    def __call__(self, replica: str, loading: Loading) -> None:
        step = STEPS * loading.done // max(loading.total, 1)
        if step != self._steps.get((replica, loading.model)):
            self._steps[replica, loading.model] = step
            percent = 100 * loading.done // max(loading.total, 1)
            logger.info("loading model", extra={"model": loading.model, "replica": replica, "percent": percent})


def loading_progress() -> LoadingBars | LoadingLines:
    return LoadingBars() if sys.stderr.isatty() else LoadingLines()
