"""CUDA graphs, tested without a GPU: choice of the bucket, content of the buffers, parity with the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Mean
from service.engine.cuda_graphs import Call, Graphs, dense_forward
from service.engine.engine import Engine
from service.engine.packing import Layout, Packed, pack
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import choice_row, plain_row

CPU = torch.device("cpu")
ROWS = [plain_row(5, Mean()), choice_row((2, 3), 9), plain_row(5, Mean(), seed=1)]


class Recorder:
    """Keeps the recorded calls. A replay calls the function again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.num_replays = 0

    def __call__(self, call: Call) -> Call:
        self.calls.append(call)

        def replay() -> torch.Tensor:
            self.num_replays += 1
            return call()

        return replay


def echo(tokens: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """A forward that returns its inputs."""
    return torch.cat([tokens, owners]).T.clone()


def packed_of(*encodings: Encoding) -> Packed:
    return pack(encodings, CPU)


def make(*buckets: int) -> tuple[Graphs, Recorder]:
    recorder = Recorder()
    return Graphs(echo, recorder, CPU, buckets), recorder


def test_run_returns_none_before_record() -> None:
    graphs, recorder = make(32)
    packed = packed_of(*ROWS)
    assert graphs.run(packed.tokens, packed.layout) is None
    graphs.record()
    assert graphs.run(packed.tokens, packed.layout) is not None
    assert (len(recorder.calls), recorder.num_replays) == (1, 1)


def test_record_captures_every_bucket_once_largest_first() -> None:
    graphs, recorder = make(16, 64, 32)
    graphs.record()
    graphs.record()
    assert [len(call()) for call in recorder.calls] == [64, 32, 16]


@pytest.mark.parametrize(("num_tokens", "bucket"), [(8, 16), (16, 16), (24, 32), (32, 32), (40, None)])
def test_run_uses_the_smallest_bucket_that_fits(num_tokens: int, bucket: int | None) -> None:
    graphs, _ = make(16, 32)
    graphs.record()
    tokens = torch.ones(3, num_tokens, dtype=torch.int32)
    out = graphs.run(tokens, Layout(((num_tokens, ()),), num_tokens))
    assert (None if out is None else len(out)) == bucket


def test_graphs_without_buckets_do_nothing() -> None:
    graphs, recorder = make()
    graphs.record()
    packed = packed_of(*ROWS)
    assert graphs.run(packed.tokens, packed.layout) is None
    assert not graphs.is_wanted
    assert not recorder.calls


def test_tokens_of_an_earlier_pack_are_a_separate_row() -> None:
    graphs, _ = make(32)
    graphs.record()
    long, short = packed_of(plain_row(32, Mean())), packed_of(*ROWS[:1])
    assert graphs.run(long.tokens, long.layout) is not None
    out = graphs.run(short.tokens, short.layout)
    assert out is not None
    assert torch.equal(out[:8, :3].T, short.tokens)
    assert torch.equal(out[8:, :3].T, long.tokens[:, 8:])
    assert out[:, 3].tolist() == [0] * 5 + [1] * 27
    assert out[:, 4].tolist() == [0] * 32


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_the_forward_of_a_graph_matches_the_engine(tmp_path: Path, family: str) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path, family=family), "test"), precision="float32")
    recorder = Recorder()
    graphs = Graphs(dense_forward(engine.weights, engine.shape), recorder, CPU, (64, 128))
    with torch.inference_mode():
        graphs.record()
        for packed in (packed_of(*ROWS), packed_of(plain_row(100, Mean())), packed_of(*ROWS[::-1])):
            end = packed.offsets[-1]
            ours = graphs.run(packed.tokens, packed.layout)
            assert ours is not None
            eager = engine.hidden_states(replace(packed, selected=None))
            torch.testing.assert_close(ours[:end], eager[:end], atol=2e-5, rtol=0)
            assert torch.isfinite(ours).all()


def test_after_warm_up_small_batches_replay_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), precision="float32")
    recorder = Recorder()
    graphs = Graphs(dense_forward(engine.weights, engine.shape), recorder, CPU, (32, 64))
    monkeypatch.setattr(engine, "_graphs", graphs)
    cold = engine.run(ROWS)
    engine.warm_up()
    assert len(recorder.calls) == 2
    before = recorder.num_replays
    for ours, wanted in zip(engine.run(ROWS), cold, strict=True):
        assert abs(ours.scores - wanted.scores).max() < 2e-5
    engine.run([plain_row(100, Mean())])
    assert recorder.num_replays == before + 1
