"""CUDA graphs, tested without a GPU: choice of the bucket, content of the buffers, parity with the engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Mean
from service.engine import cuda_graphs
from service.engine.attention_backends import FLEX, VARLEN, Attend, prepare_plain
from service.engine.cuda_graphs import BUCKETS, Graphs
from service.engine.device import Call
from service.engine.encoder import encode
from service.engine.engine import Engine
from service.engine.packing import Layout, Packed, pack
from tests.checkpoints import make_checkpoint
from tests.unit.engine.attentions import packed_reference
from tests.unit.engine.rows import choice_row, plain_row

CPU = torch.device("cpu")
ROWS = [plain_row(5, Mean()), choice_row((2, 3), 9), plain_row(5, Mean(), seed=1)]


class Recorder:
    """Keeps the recorded calls. A replay calls the function again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.replayed: list[int] = []

    @property
    def num_replays(self) -> int:
        return len(self.replayed)

    def __call__(self, call: Call) -> Call:
        number = len(self.calls)
        self.calls.append(call)

        def replay() -> torch.Tensor:
            self.replayed.append(number)
            return call()

        return replay


def echo(tokens: torch.Tensor, attend: Attend) -> torch.Tensor:
    """A forward that returns its inputs, and the mean of the ids that each token attends to."""
    qkv = torch.zeros(tokens.shape[1], 3, 1, 1)
    qkv[:, 2, 0, 0] = tokens[0]
    return torch.cat([tokens.T.float(), attend(qkv)], dim=1)


def packed_of(*encodings: Encoding) -> Packed:
    return pack(encodings, CPU)


def make(*buckets: int) -> tuple[Graphs, Recorder]:
    recorder = Recorder()
    return Graphs(echo, recorder, CPU, torch.float32, (FLEX,), buckets), recorder


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


@pytest.mark.parametrize(("bound", "last"), [(0, 896), (1024, 1920), (4096, 7680), (1 << 20, 16_384)])
def test_no_graph_is_recorded_where_the_device_takes_longer_than_the_launches(
    monkeypatch: pytest.MonkeyPatch, bound: int, last: int
) -> None:
    clock = [0.0]

    def launch(tokens: torch.Tensor, layout: Layout, selected: torch.Tensor | None) -> torch.Tensor:
        clock[0] += 1.0
        return tokens if layout.num_tokens <= bound else computing(tokens)

    def computing(tokens: torch.Tensor) -> torch.Tensor:
        pending.append(0.2)
        return tokens

    pending: list[float] = []

    def wait() -> None:
        clock[0] += sum(pending)
        pending.clear()

    monkeypatch.setattr(cuda_graphs, "wait_event", lambda device: wait)
    monkeypatch.setattr(cuda_graphs, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    recorder = Recorder()
    graphs = Graphs(echo, recorder, CPU, torch.float32, (FLEX,))
    graphs.limit(launch, lambda tokens, _: (torch.zeros(3, tokens, dtype=torch.int32), Layout(((tokens, ()),), tokens)))
    graphs.record()
    assert len(recorder.calls[0]()) == last
    assert len(recorder.calls) == sum(bucket <= last for bucket in BUCKETS)


def test_without_an_attention_for_many_tokens_there_are_graphs_for_few_alone() -> None:
    recorder = Recorder()
    graphs = Graphs(echo, recorder, CPU, torch.float32)
    graphs.record()
    assert [len(call()) for call in recorder.calls] == [512, 384, 256, 192, 128, 96, 64, 32]


@pytest.mark.parametrize(
    ("rows", "attention"),
    [
        ((plain_row(300, Mean()), plain_row(290, Mean())), "varlen"),
        ((plain_row(300, Mean()), choice_row((100, 90), 90)), "flex"),
        ((plain_row(5, Mean()),) * 120, "flex"),  # too many rows
    ],
)
def test_a_batch_takes_the_first_attention_that_can_compute_it(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[Encoding, ...], attention: str
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_reference)
    recorder = Recorder()
    graphs = Graphs(echo, recorder, CPU, torch.float32, (VARLEN, FLEX), (640,))
    graphs.record()
    packed = packed_of(*rows)
    end = packed.offsets[-1]
    out = graphs.run(packed.tokens, packed.layout)
    assert out is not None
    torch.testing.assert_close(
        out[:end, 3:], echo(packed.tokens, prepare_plain(packed.layout, CPU, torch.float32))[:end, 3:]
    )
    assert recorder.replayed == [{"varlen": 0, "flex": 1}[attention]]


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
    assert torch.equal(out[:8, :3].T, short.tokens.float())
    assert torch.equal(out[8:, :3].T, long.tokens[:, 8:].float())
    for row in (out[:5], out[5:]):
        torch.testing.assert_close(row[:, 3], row[:, 0].mean().expand(len(row)))


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_the_forward_of_a_graph_matches_the_engine(tmp_path: Path, family: str) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path, family=family), "test"), precision="float32")
    recorder = Recorder()
    graphs = Graphs(
        partial(encode, engine.weights, engine.shape), recorder, CPU, torch.float32, (FLEX,), (64, 128, 640)
    )
    many = [plain_row(130, Mean(), seed=2), choice_row((20, 130, 7), 100), plain_row(200, Mean())]
    with torch.inference_mode():
        graphs.record()
        for packed in (packed_of(*ROWS), packed_of(plain_row(100, Mean())), packed_of(*many), packed_of(*ROWS[::-1])):
            end = packed.offsets[-1]
            ours = graphs.run(packed.tokens, packed.layout)
            assert ours is not None
            eager = engine.hidden_states(replace(packed, selected=None))
            torch.testing.assert_close(ours[:end], eager[:end], atol=2e-5, rtol=0)
            assert torch.isfinite(ours).all()


def test_after_warm_up_small_batches_replay_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), precision="float32")
    recorder = Recorder()
    graphs = Graphs(partial(encode, engine.weights, engine.shape), recorder, CPU, torch.float32, (FLEX,), (32, 64))
    monkeypatch.setattr(engine, "_graphs", graphs)
    cold = engine.run(ROWS)
    engine.warm_up()
    assert len(recorder.calls) == 2
    before = recorder.num_replays
    for ours, wanted in zip(engine.run(ROWS), cold, strict=True):
        assert abs(ours.scores - wanted.scores).max() < 2e-5
    engine.run([plain_row(100, Mean())])
    assert recorder.num_replays == before + 1
