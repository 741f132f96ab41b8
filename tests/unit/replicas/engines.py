"""An engine without torch that counts its calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.domain import Encoding, Failure, Output
from tests.fakes import FakeEngine


class CountingEngine(FakeEngine):
    """Records the number of rows of each forward. Every forward raises while `is_broken`."""

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__(Path())
        self.sizes: list[int] = []
        self.num_warm_ups = 0
        self.is_broken = is_broken

    def warm_up(self) -> None:
        self.num_warm_ups += 1

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self.sizes.append(len(encodings))
        if self.is_broken:
            raise RuntimeError("the device is lost")
        return super().run(encodings)


def sums(outputs: Sequence[Output | Failure]) -> list[float | Failure]:
    return [float(output.scores[0, 0]) if isinstance(output, Output) else output for output in outputs]
