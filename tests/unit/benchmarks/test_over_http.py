"""What the comparison with the bare engine sends and reports; a server and an engine are not started here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.front_client import LABELS
from benchmarks.over_http import NUM_ROWS, Load, Turn, _entry, engine_rows_per_s, make_texts
from service.checkpoints.checkpoint import describe
from service.domain import Cls, Encoding
from service.tasks.classification import CLASSIFY, ClassifyQuery, Text
from service.tasks.text_model import TextModel
from tests.checkpoints import make_checkpoint
from tests.fakes import FakeClock
from tests.unit.engine.rows import plain_row


@pytest.mark.parametrize("row_tokens", [32, 128])
def test_every_text_is_a_row_of_so_many_tokens_and_another_one(tmp_path: Path, row_tokens: int) -> None:
    model = TextModel.load(describe(make_checkpoint(tmp_path), "m"))
    texts = make_texts(model, row_tokens)
    assert len(set(texts)) == len(texts) == NUM_ROWS
    rows = CLASSIFY.encode(model, ClassifyQuery(tuple(map(Text, texts[:100])), LABELS))
    assert {row.num_tokens for row in rows} == {row_tokens}


class Engine:
    """Takes a second for each batch, and remembers who was waited for and when."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.events: list[tuple[str, tuple[int, ...]]] = []

    def prepare(self, rows: Sequence[Encoding]) -> Callable[[], list[object]]:
        lengths = tuple(row.num_tokens for row in rows)
        self.events.append(("prepared", lengths))

        def finish() -> list[object]:
            self.clock.now += 1
            self.events.append(("finished", lengths))
            return []

        return finish


def test_the_engine_has_the_next_batch_while_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("benchmarks.over_http.time.perf_counter", clock)
    engine = Engine(clock)
    rows = [plain_row(length, Cls()) for length in (1, 2, 3)]
    assert engine_rows_per_s(engine, rows, 2, seconds=1.5) == 2.0  # type: ignore[arg-type]
    batches = [(1, 2), (3, 1), (2, 3)]
    assert engine.events[:4] == [
        ("prepared", batches[0]),
        ("prepared", batches[1]),
        ("finished", batches[0]),
        ("prepared", batches[2]),
    ]
    assert [lengths for what, lengths in engine.events if what == "finished"] == batches


def test_the_ratio_is_of_a_round_and_rates_are_medians() -> None:
    turns = [Turn(90, 100, 8, 0.1), Turn(50, 100, 6, 0.1), Turn(200, 250, 7, 0.1)]
    entry = _entry(Load(32, 4, 2), "bfloat16", turns)
    assert (entry["http_rows_per_s"], entry["http_tokens_per_s"], entry["engine_rows_per_s"]) == (90, 2880, 100)
    assert entry["http_over_engine"] == 0.8
    assert entry["http_over_engine_least_and_largest"] == [0.5, 0.9]
    assert entry["batch_rows"] == 7
