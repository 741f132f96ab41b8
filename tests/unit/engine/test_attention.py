"""Where rows lie, who sees whom, and which way of computing attention is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from service.engine import attention_backends
from service.engine.attention import TYPICAL, AttentionConfig, choose, fastest, split_by_mask, trial
from service.engine.attention_backends import added_mask, dense, prepare_sdpa
from service.engine.packing import Layout
from service.errors import SettingError
from tests.fakes import FakeClock

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
    owners = torch.from_numpy(layout.owners(layout.num_tokens))
    return dense(added_mask(owners, torch.float32))(qkv)


def test_owners_are_rows_and_the_blocks_inside() -> None:
    assert MIXED.owners(17).tolist() == [
        [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3],
        [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0],
    ]


def test_the_filling_is_a_row_at_the_end() -> None:
    assert (MIXED.offsets, MIXED.ends) == ((0, 2, 5, 13), (0, 2, 5, 13, 16))
    full = Layout(MIXED.rows, 13)
    assert full.ends == full.offsets


def test_rows_with_blocks_are_split_off_and_take_the_filling() -> None:
    assert MIXED.split() == (Layout(MIXED.rows[:2], 5), Layout(MIXED.rows[2:], 11))
    plain = Layout(MIXED.rows[:2], 8)
    assert plain.split() == (plain, Layout((), 0))
    masked = Layout(MIXED.rows[2:], 16)
    assert masked.split() == (Layout((), 0), masked)


@pytest.mark.parametrize("layout", [MIXED, LONG, TYPICAL, Layout(((128, ()), (128, ())), 256), Layout(((1, ()),), 8)])
def test_no_square_of_tokens_that_see_each_other_is_left_out(layout: Layout) -> None:
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
def test_flex_sees_what_it_should(layout: Layout) -> None:
    qkv = random_qkv(layout)
    out = attention_backends.prepare_flex(layout, CPU, torch.float32)(qkv)
    torch.testing.assert_close(out, wanted(qkv, layout), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_our_reference_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention_backends, "_flex_kernel", lambda device_type: flex_attention)
    qkv = random_qkv(MIXED)
    with torch.inference_mode():
        out = attention_backends.prepare_flex(MIXED, CPU, torch.float32)(qkv)
    torch.testing.assert_close(out, wanted(qkv, MIXED), atol=1e-6, rtol=0)


def packed_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor:
    """What torch's varlen_attn promises, row by row."""
    assert query_ends.dtype == torch.int32
    assert query_ends is key_ends
    lengths = query_ends.diff().tolist()
    assert max(lengths) <= longest_query == longest_key
    parts = [each.split(lengths) for each in (query, key, value)]
    rows = [F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in row)) for row in zip(*parts, strict=True)]
    return torch.cat([row.transpose(0, 1) for row in rows])


@pytest.mark.parametrize("masked", [prepare_sdpa, attention_backends.prepare_flex])
@pytest.mark.parametrize("rows", [MIXED.rows, MIXED.rows[:2], MIXED.rows[2:], LONG.rows])
def test_plain_rows_go_through_the_packed_kernel_and_choices_beside_it(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[object, ...], masked: Callable[..., object]
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_reference)
    layout = Layout(rows, 8 * (sum(length for length, _ in rows) // 8 + 1))  # type: ignore[misc, arg-type]
    qkv = random_qkv(layout)
    out = split_by_mask(attention_backends.prepare_varlen, masked)(layout, CPU, torch.float32)(qkv)  # type: ignore[arg-type]
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
def test_where_the_packed_kernel_runs(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    capability: tuple[int, int],
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention_backends.varlen_runs_on(device, dtype, head_size) is expected


def takes(clock: FakeClock, *seconds: float) -> Callable[[], None]:
    """A run that takes so long, each time; the last for ever after."""
    left = list(seconds)

    def run() -> None:
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_the_quickest_is_kept_whatever_its_first_run_takes() -> None:
    clock = FakeClock()
    runs = {"slow": takes(clock, 3), "compiled": takes(clock, 60, 1), "steady": takes(clock, 2)}
    assert fastest(runs, clock) == "compiled"


def test_one_unlucky_run_does_not_count() -> None:
    clock = FakeClock()
    assert fastest({"a": takes(clock, 1, 9, 1), "b": takes(clock, 2)}, clock) == "a"


def test_what_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler\nand a long story")

    clock = FakeClock()
    with caplog.at_level(logging.INFO):
        assert fastest({"broken": fail, "slow": takes(clock, 3)}, clock) == "slow"
    [warning, measured] = caplog.records
    assert (warning.__dict__["attention"], warning.__dict__["reason"]) == ("broken", "no compiler")
    assert measured.__dict__["slow"] == 3000
    with pytest.raises(SettingError, match="every attention backend failed"):
        fastest({"broken": fail}, clock)


def test_the_trial_takes_every_layer_of_a_typical_batch() -> None:
    seen: list[tuple[int, ...]] = []

    def prepare_counting(layout: Layout, device: torch.device, dtype: torch.dtype) -> Callable[[torch.Tensor], object]:
        assert layout is TYPICAL
        return lambda qkv: seen.append(tuple(qkv.shape))

    trial(prepare_counting, random_qkv(TYPICAL), num_layers=3)  # type: ignore[arg-type]
    assert seen == [(TYPICAL.num_tokens, 3, 2, 8)] * 3
    assert TYPICAL.num_plain < len(TYPICAL.rows)
    assert TYPICAL.offsets[-1] <= TYPICAL.num_tokens


def test_a_cpu_takes_sdpa_and_has_no_packed_kernel() -> None:
    assert choose("auto", CONFIG)[0] == "sdpa"
    assert choose("flex", CONFIG)[0] == "flex"
    with pytest.raises(SettingError, match="'varlen' does not run on cpu; wanted auto, sdpa, flex"):
        choose("varlen", CONFIG)


def test_cudnn_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    choose("sdpa", CONFIG)
    assert asked == [False]


def test_a_gpu_takes_what_is_quickest_of_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def last(runs: dict[str, object]) -> str:
        asked.extend(runs)
        return asked[-1]

    monkeypatch.setattr("service.engine.attention.fastest", last)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: torch.empty(0))
    assert choose("auto", AttentionConfig(GPU, torch.bfloat16, 8, 256))[0] == "varlen+flex"
    assert asked == ["sdpa", "flex", "varlen", "varlen+flex"]
    asked.clear()
    choose("auto", AttentionConfig(GPU, torch.float32, 8, 256))
    assert asked == ["sdpa", "flex"]
