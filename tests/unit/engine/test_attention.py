"""Attention: layout of packed rows, masks, and the choice of the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from service.domain import Check
from service.engine import attention_backends
from service.engine.attention import TYPICAL, AttentionConfig, Backend, choose, make_trial, measure, split_by_mask
from service.engine.attention_backends import (
    DENSE,
    FLEX,
    VARLEN,
    Attend,
    added_mask,
    prepare_flex,
    prepare_sdpa,
    prepare_varlen,
)
from service.engine.device import Call, CudaRecorder
from service.engine.packing import Layout, Row
from service.errors import SettingError
from tests.fakes import FakeClock
from tests.unit.engine.attentions import packed_reference

CPU = torch.device("cpu")
CONFIG = AttentionConfig(CPU, torch.float32, num_heads=2, head_size=8)
GPU = torch.device("cuda", 0)
BLOCKS = ((1, 3), (3, 6))
MIXED = Layout(((2, ()), (3, ()), (8, BLOCKS)), 16)
LONG = Layout(((100, ()), (29, ()), (300, ()), (200, ((1, 90), (90, 150))), (5, (BLOCKS[0], (3, 4)))), 640)


def random_qkv(layout: Layout) -> torch.Tensor:
    generator = torch.Generator().manual_seed(layout.num_tokens)
    return torch.randn(layout.num_tokens, 3, CONFIG.num_heads, CONFIG.head_size, generator=generator)


def wanted(qkv: torch.Tensor, layout: Layout) -> torch.Tensor:
    [owners] = DENSE.arrays(layout) or ()
    return DENSE.attend([torch.from_numpy(owners)], torch.float32)(qkv)


def test_owners_number_rows_and_blocks_of_each_token() -> None:
    assert MIXED.owners(17).tolist() == [
        [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3],
        [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0],
    ]


def test_padding_of_the_pack_is_a_last_row() -> None:
    assert (MIXED.offsets, MIXED.ends) == ((0, 2, 5, 13), (0, 2, 5, 13, 16))
    full = Layout(MIXED.rows, 13)
    assert full.ends == full.offsets


def test_split_puts_rows_with_blocks_and_the_padding_in_the_second_layout() -> None:
    assert MIXED.split() == (Layout(MIXED.rows[:2], 5), Layout(MIXED.rows[2:], 11))
    plain = Layout(MIXED.rows[:2], 8)
    assert plain.split() == (plain, Layout((), 0))
    masked = Layout(MIXED.rows[2:], 16)
    assert masked.split() == (Layout((), 0), masked)


@pytest.mark.parametrize("layout", [MIXED, LONG, TYPICAL, Layout(((128, ()), (128, ())), 256), Layout(((1, ()),), 8)])
def test_flex_blocks_cover_every_pair_of_tokens_that_attend(layout: Layout) -> None:
    counts, indices = attention_backends.flex_blocks(layout)
    seen = added_mask(torch.from_numpy(layout.owners(layout.num_tokens)), torch.float32) == 0
    size = attention_backends.FLEX_BLOCK
    for number, (count, order) in enumerate(zip(counts, indices, strict=True)):
        queries = seen[number * size : (number + 1) * size]
        needed = {key // size for key in queries.any(0).nonzero()[:, 0].tolist()}
        assert needed <= set(order[:count].tolist())
        assert count <= max(needed) - min(needed) + 1
        assert sorted(order.tolist()) == list(range(len(indices)))


@pytest.mark.parametrize("layout", [MIXED, LONG])
def test_flex_matches_the_dense_mask(layout: Layout) -> None:
    qkv = random_qkv(layout)
    out = prepare_flex(layout, CPU, torch.float32)(qkv)
    torch.testing.assert_close(out, wanted(qkv, layout), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_matches_torchs_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention_backends, "_flex_kernel", lambda device_type: flex_attention)
    qkv = random_qkv(MIXED)
    with torch.inference_mode():
        out = prepare_flex(MIXED, CPU, torch.float32)(qkv)
    torch.testing.assert_close(out, wanted(qkv, MIXED), atol=1e-6, rtol=0)


@pytest.mark.parametrize("masked", [prepare_sdpa, prepare_flex])
@pytest.mark.parametrize("rows", [MIXED.rows, MIXED.rows[:2], MIXED.rows[2:], LONG.rows])
def test_split_by_mask_matches_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[object, ...], masked: Callable[..., object]
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_reference)
    layout = Layout(rows, 8 * (sum(length for length, _ in rows) // 8 + 1))  # type: ignore[misc, arg-type]
    qkv = random_qkv(layout)
    out = split_by_mask(prepare_varlen, masked)(layout, CPU, torch.float32)(qkv)  # type: ignore[arg-type]
    end = layout.offsets[-1]
    torch.testing.assert_close(out[:end], wanted(qkv, layout)[:end], atol=1e-6, rtol=0)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "capability", "expected"),
    [
        (GPU, torch.bfloat16, 256, (8, 0), True),
        (GPU, torch.float16, 64, (9, 0), True),
        (GPU, torch.bfloat16, 512, (9, 0), False),
        (GPU, torch.bfloat16, 60, (9, 0), False),
        (GPU, torch.float32, 64, (9, 0), False),
        (GPU, torch.bfloat16, 64, (7, 5), False),
        (CPU, torch.bfloat16, 64, (9, 0), False),
    ],
)
def test_varlen_runs_on_supported_devices_dtypes_and_head_sizes(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    capability: tuple[int, int],
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention_backends.varlen_runs_on(device, dtype, head_size) is expected


def run_for(clock: FakeClock, *seconds: float) -> Callable[[], None]:
    """A function that advances the clock by the next of `seconds` on each call; the last one repeats."""
    left = list(seconds)

    def run() -> None:
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_measure_ignores_the_time_of_the_first_run() -> None:
    clock = FakeClock()
    runs = {"slow": run_for(clock, 3), "compiled": run_for(clock, 60, 1), "steady": run_for(clock, 2)}
    assert measure(runs, clock) == {"slow": 3, "compiled": 1, "steady": 2}


def test_measure_ignores_one_slow_run() -> None:
    clock = FakeClock()
    assert measure({"a": run_for(clock, 1, 9, 1), "b": run_for(clock, 2)}, clock) == {"a": 1, "b": 2}


def test_measure_skips_and_logs_a_backend_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler\nand a long story")

    clock = FakeClock()
    with caplog.at_level(logging.INFO):
        assert measure({"broken": fail, "slow": run_for(clock, 3)}, clock) == {"slow": 3}
    [warning, measured] = caplog.records
    assert (warning.__dict__["attention"], warning.__dict__["reason"]) == ("broken", "no compiler")
    assert measured.__dict__["slow"] == 3000
    with pytest.raises(SettingError, match="every attention backend failed"):
        measure({"broken": fail}, clock)


def test_a_trial_runs_every_layer_of_a_typical_batch() -> None:
    seen: list[tuple[int, ...]] = []

    def prepare_counting(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
        assert layout is TYPICAL

        def attend(qkv: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(qkv.shape))
            return qkv

        return attend

    make_trial(Backend(prepare_counting, lambda config: True), random_qkv(TYPICAL), num_layers=3)()
    assert seen == [(TYPICAL.num_tokens, 3, 2, 8)] * 3
    assert TYPICAL.num_plain < len(TYPICAL.rows)
    assert TYPICAL.offsets[-1] <= TYPICAL.num_tokens


class OnGpu:
    """Numbers that say that they are on a GPU."""

    device, dtype = GPU, torch.bfloat16


@pytest.mark.parametrize("can_record", [True, False])
def test_the_trial_of_a_backend_that_graphs_repeat_times_its_kernels_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, can_record: bool
) -> None:
    prepared: list[Layout] = []
    calls: list[str] = []

    def record(self: CudaRecorder, call: Call) -> Call:
        if not can_record:
            raise RuntimeError("operation not permitted when stream is capturing")
        call()
        return lambda: calls.append("replayed")  # type: ignore[func-returns-value, return-value]

    def prepare(layout: Layout, *_: object) -> Attend:
        prepared.append(layout)
        return lambda qkv: calls.append("launched")  # type: ignore[func-returns-value, return-value]

    monkeypatch.setattr(CudaRecorder, "__call__", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    run = make_trial(Backend(prepare, lambda config: True, (FLEX,)), OnGpu(), num_layers=1)  # type: ignore[arg-type]
    run()
    run()
    assert prepared == [TYPICAL]
    assert calls == (["launched", "replayed", "replayed"] if can_record else ["launched", "launched"])
    assert ("cannot be recorded" in caplog.text) is not can_record


@pytest.mark.parametrize(
    ("rows", "ends"),
    [
        (((5, ()), (40, ())), [0, 5, 45, 128, 128]),
        (((30, ()), (98, ())), [0, 30, 128, 128, 128]),
        ((), [0, 128, 128, 128, 128]),
        (((5, ()),) * 4, None),  # with the padding more rows than the array has room for
        (((8, BLOCKS),), None),
    ],
)
def test_the_rows_of_varlen_fill_an_array_of_one_size(rows: tuple[Row, ...], ends: list[int] | None) -> None:
    arrays = VARLEN.arrays(Layout(rows, 128))
    assert (None if arrays is None else arrays[0].tolist()) == ends


def test_varlen_divides_a_long_padding_and_refuses_a_long_row() -> None:
    [ends] = VARLEN.arrays(Layout(((600 - 88, ()),), 2048)) or ()
    assert ends[:5].tolist() == [0, 512, 1024, 1536, 2048]
    assert max(np.diff(ends)) == 512
    assert VARLEN.arrays(Layout(((513, ()),), 2048)) is None


def test_a_cpu_uses_sdpa_and_refuses_varlen() -> None:
    assert choose("auto", CONFIG).name == "sdpa"
    assert choose("flex", CONFIG).name == "flex"
    with pytest.raises(SettingError, match="'varlen' does not run on cpu; wanted auto, plain, sdpa, flex"):
        choose("varlen", CONFIG)


def test_choose_disables_cudnn_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", seen.append)
    choose("sdpa", CONFIG)
    assert seen == [False]


def test_a_gpu_uses_the_fastest_backend_that_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def last(runs: dict[str, object]) -> dict[str, float]:
        seen.extend(runs)
        return {name: 1.0 / number for number, name in enumerate(runs, start=1)}

    monkeypatch.setattr("service.engine.attention.measure", last)
    monkeypatch.setattr("service.engine.attention.check_attention", lambda name, *_: Check("attention", name, 0.0, 0.0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: torch.empty(0))
    chosen = choose("auto", AttentionConfig(GPU, torch.bfloat16, 8, 256))
    assert chosen.name == "varlen+flex"
    assert {check.name: check.seconds for check in chosen.checks}["flex"] == 1.0
    assert seen == ["flex", "varlen+flex"]  # a graph cannot repeat the others
    assert all(check.is_sound for check in chosen.checks)
    seen.clear()
    assert choose("auto", AttentionConfig(GPU, torch.float32, 8, 256)).name == "flex"
    assert seen == []
