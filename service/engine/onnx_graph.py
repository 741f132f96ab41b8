"""Graphs of ONNX Runtime: made node by node of arrays, and computed on a CPU.

Imported only where it is used: it takes 0.15 s to import onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Array = NDArray[Any]

Run = Callable[[str, Mapping[str, Any]], Array]
"""From the name of a result and the inputs of the graph by name, to the result. Raises RuntimeError with ONNX Runtime's
message when it cannot be computed, as without memory."""

onnxruntime.set_default_logger_severity(4)  # its log is no JSON, and its errors are raised

FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
"""Types of the elements of inputs."""

CONTRIB = "com.microsoft"
_OPSETS = {"": 23, CONTRIB: 1}
_IR_VERSION = 11
"""Those of the operator Attention."""
_MIN_EXTERNAL_BYTES = 4096
"""Larger arrays are not in the serialized graph, which has at most 2 GB, and are not copied into it."""

_RUN_OPTIONS = onnxruntime.RunOptions()
_RUN_OPTIONS.only_execute_path_to_fetches = True  # else each run would compute all results


class Graph:
    """The inputs, nodes and arrays of a graph. Nodes run in the order in which they are added; values have numbers."""

    def __init__(self) -> None:
        self._inputs: list[Any] = []
        self._nodes: list[Any] = []
        self._arrays: dict[str, Array] = {}
        self._num_values = 0

    def input(self, name: str, element_type: int, *sizes: int | str) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, element_type, sizes))
        return name

    def sequence(self, name: str) -> str:
        """An input that is a list of arrays."""
        self._inputs.append(_declare_sequence(name))
        return name

    def array(self, array: Array | Tensor) -> str:
        name = f"array{len(self._arrays)}"
        self._arrays[name] = array.numpy() if isinstance(array, Tensor) else array
        return name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds an operator and returns the name of its result; "" stands for an input that is left out."""
        result = self._name_values(1)[0]
        self._nodes.append(helper.make_node(kind, inputs, [result], domain=domain, **attributes))
        return result

    def _name_values(self, count: int) -> list[str]:
        self._num_values += count
        return [f"value{self._num_values - number}" for number in range(count)]

    def choose(self, condition: str, if_true: Callable[[], str], if_false: Callable[[], str]) -> str:
        """What one of two functions computes. They may use all values before it."""
        then_branch, else_branch = (self._subgraph([], each, _declare) for each in (if_true, if_false))
        return self.node("If", condition, then_branch=then_branch, else_branch=else_branch)

    def extend(self, sequence: str, count: str, compute: Callable[[str], str]) -> str:
        """The sequence, followed by what `compute` makes of each number from 0 to `count`."""
        number, goes_on, before = self._name_values(3)

        def insert() -> str:
            return self.node("SequenceInsert", before, compute(number))

        inputs = [
            helper.make_tensor_value_info(number, INT64, ()),
            helper.make_tensor_value_info(goes_on, BOOL, ()),
            _declare_sequence(before),
        ]
        body = self._subgraph(inputs, insert, _declare_sequence)
        body.output.insert(0, inputs[1])
        return self.node("Loop", count, "", sequence, body=body)

    def _subgraph(self, inputs: Sequence[Any], compute: Callable[[], str], declare: Callable[[str], Any]) -> Any:
        outer, self._nodes = self._nodes, []
        result = compute()
        inner, self._nodes = self._nodes, outer
        return helper.make_graph(inner, result, inputs, [declare(result)])

    def open(self, results: Sequence[str], num_threads: int) -> Run:
        """What computes each of `results`."""
        external = {name: array for name, array in self._arrays.items() if array.nbytes >= _MIN_EXTERNAL_BYTES}
        constants = [
            _declare_external(name, array) if name in external else numpy_helper.from_array(array, name)
            for name, array in self._arrays.items()
        ]
        graph = helper.make_graph(self._nodes, "graph", self._inputs, list(map(_declare, results)), constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.enable_cpu_mem_arena = False  # an arena keeps the memory of the largest batch, and saves no time
        # Threads wait for each other busily, but not for the next batch: that would take the cores from requests.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in external.values()]
        options.add_external_initializers(list(external), values)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        def run(result: str, inputs: Mapping[str, Any]) -> Array:
            try:
                [out] = session.run([result], inputs, _RUN_OPTIONS)
            except Exception as error:
                raise RuntimeError(str(error)) from error  # its own errors are no RuntimeErrors
            return out  # type: ignore[no-any-return]

        return run


def _declare(name: str) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, None)


def _declare_sequence(name: str) -> Any:
    return helper.make_tensor_sequence_value_info(name, FLOAT, None)


def _declare_external(name: str, array: Array) -> Any:
    """An array without its content, which the session gets by its name."""
    element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, dims=array.shape, data_type=element_type, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="memory")
    return tensor
