"""The comparison with ONNX Runtime and OpenVINO, as far as it can be tried without them: the ratios, the batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine.runtimes import Round, Seconds, interval, process, summarize, table
from benchmarks.http.load import shipped_checkpoint
from benchmarks.peers.exported import encode, save_batches
from service.checkpoints.checkpoint import resolve
from service.checkpoints.spec import parse_spec
from service.commands.models import locate_shipped
from service.domain import Pooled

RATES = {
    ("engine", "float32", 1): 20.0,
    ("engine", "float32", 16): 40.0,
    ("onnxruntime", "float32", 1): 50.0,
    ("onnxruntime", "float32", 16): 10.0,
    ("openvino", "float32", 1): 40.0,
    ("openvino", "float32", 16): 25.0,
    ("openvino", "int8", 1): 200.0,
}


def make_round(slower: float) -> Round:
    return {key: Seconds(slower * 100 / rate, 100 / rate) for key, rate in RATES.items()}


def test_batches_are_compared_with_the_quickest_way_of_a_runtime() -> None:
    result = summarize([make_round(1.0), make_round(7.0)], 100)
    ratios = {(each["batch_rows"], each["over"]): each["clock"][1] for each in result["ratios"]}
    assert ratios == {
        (1, "onnxruntime"): 0.4,
        (1, "openvino"): 0.5,
        (1, "best"): 0.4,
        (16, "onnxruntime"): 4.0,
        (16, "openvino"): 1.6,
        (16, "best"): 0.8,
    }
    assert "0.40 (0.40 to 0.40)" in table({"model": "small", "left_out": {}, **result})


def test_a_slow_minute_changes_the_rate_but_not_the_one_by_cpu_seconds() -> None:
    first = summarize([make_round(2.0)], 100)["rates"][0]
    assert (first["rows_per_s"], first["rows_per_cpu_s"]) == (10.0, 20.0)


@pytest.mark.parametrize(("num", "low"), [(3, 0), (6, 0), (9, 1), (11, 1), (12, 2), (20, 5)])
def test_the_interval_of_a_median_is_between_ranks(num: int, low: int) -> None:
    values = list(range(num))
    found = interval([float(value) for value in reversed(values)])
    assert (found[0], found[2]) == (values[low], values[-1 - low])


def test_rows_of_a_batch_are_padded_to_the_longest(tmp_path: Path) -> None:
    checkpoint = shipped_checkpoint()
    rows = encode(checkpoint, ["天气", "今天天气很好"])
    save_batches(tmp_path / "rows.npz", checkpoint, rows, 2)
    with np.load(tmp_path / "rows.npz") as arrays:
        mask = arrays["0/attention_mask"]
    assert mask.sum(1).tolist() == [row.num_tokens for row in rows]
    assert mask.shape[1] == max(row.num_tokens for row in rows)


def test_an_embedding_of_the_engine_is_pooled_as_in_the_graph() -> None:
    checkpoint = resolve(locate_shipped(parse_spec("e5-small")))
    [row] = encode(checkpoint, ["天气"])
    assert row.readout == Pooled(("mean",))


def test_a_runtime_that_does_not_load_the_model_says_why(tmp_path: Path) -> None:
    answers = tmp_path / "runtime_engine.py"
    answers.write_text(f"print({json.dumps(json.dumps({'error': 'no bfloat16'}))})")
    with pytest.raises(RuntimeError, match="no bfloat16"), process([sys.executable, str(answers)], "openvino", 1):
        pass
