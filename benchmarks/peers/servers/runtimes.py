"""ONNX Runtime and OpenVINO behind one call: the padded arrays of a batch in, the output of the graph out.

    python runtimes.py quantize RUNTIME FOLDER

writes the int8 file of a runtime beside FOLDER/model.onnx, each in the way that the runtime's own documentation names
first for transformers: dynamic scales for ONNX Runtime, static scales (nncf, from the rows of FOLDER/calibration.npz)
for OpenVINO. Runs in the environment of requirements/runtimes.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Forward = Callable[[Arrays], np.ndarray[Any, Any]]


def file_of(runtime: str, folder: Path, precision: str) -> Path:
    if precision != "int8":
        return folder / "model.onnx"
    return folder / f"{runtime}-int8.{'onnx' if runtime == 'onnxruntime' else 'xml'}"


def load(runtime: str, folder: Path, precision: str, threads: int) -> Forward:
    """RuntimeError for a precision that the runtime does not compute in on this CPU."""
    file = file_of(runtime, folder, precision)
    return LOADERS[runtime](file, precision, threads)


def _load_onnxruntime(file: Path, precision: str, threads: int) -> Forward:
    import onnxruntime

    if precision == "bfloat16":
        raise RuntimeError("onnxruntime has no bfloat16 on a CPU")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, dict(arrays))[0]


def _load_openvino(file: Path, precision: str, threads: int) -> Forward:
    import openvino

    core = openvino.Core()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # What is not in 8 bits is computed in the quicker of the two.
    hint = "bf16" if precision == "bfloat16" or (precision == "int8" and has_bfloat16) else "f32"
    wanted = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(core.read_model(file), "CPU", wanted)
    if (found := model.get_property("INFERENCE_PRECISION_HINT").to_string()) != hint:
        raise RuntimeError(f"openvino computes in {found} on this CPU, not in {hint}")
    request = model.create_infer_request()

    def forward(arrays: Arrays) -> np.ndarray[Any, Any]:
        # A copy of the output: the next call writes into the same memory.
        return np.array(request.infer(dict(arrays), share_inputs=True)[0])

    return forward


LOADERS: dict[str, Callable[[Path, str, int], Forward]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}


def quantize(runtime: str, folder: Path) -> None:
    source, target = folder / "model.onnx", file_of(runtime, folder, "int8")
    if runtime == "onnxruntime":
        _quantize_dynamic(source, target)
    else:
        _quantize_static(source, target, list(read_batches(folder / "calibration.npz")))


def _quantize_dynamic(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the quantizer infers shapes itself, and objects to those that torch has noted
    is_large = source.stat().st_size < sum(file.stat().st_size for file in source.parent.glob("model.onnx.*"))
    quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=is_large)


def _quantize_static(source: Path, target: Path, rows: list[Arrays]) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    data = nncf.Dataset(rows, dict)
    quantized = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, target, compress_to_fp16=False)


def read_batches(file: Path) -> Iterator[Arrays]:
    """The batches of a file, in which an array is named NUMBER/INPUT."""
    batches: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            batches.setdefault(int(number), {})[name] = arrays[key]
    return (batches[number] for number in sorted(batches))


if __name__ == "__main__":
    quantize(sys.argv[2], Path(sys.argv[3]))
