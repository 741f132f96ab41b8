"""torch's private APIs have the signatures that the engine was written for; a torch that changes one fails here."""

from __future__ import annotations

import ast
import inspect
import math
import re
import weakref
from pathlib import Path

import pytest
import torch

import service
from service.engine import torch_private

CHECKED = "2.13.0"
ROOT = Path(service.__file__).parent

needs_onednn = pytest.mark.skipif(
    not torch_private.has_onednn(torch.float32), reason="oneDNN packs no weights on this CPU"
)

PACKED_LINEAR = "__torch__.torch.classes.quantized.LinearPackedParamsBase"

SCHEMAS = {
    "mkldnn::_is_mkldnn_bf16_supported": "() -> bool",
    "mkldnn::_reorder_linear_weight": "(Tensor self, int? batch_size=None) -> Tensor",
    "mkldnn::_linear_pointwise": "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor",
    "mkldnn::_linear_pointwise.binary": "(Tensor X, Tensor other, Tensor W, Tensor? B, str attr) -> Tensor",
    "mkldnn::_nbytes": "(Tensor mkldnn_tensor) -> int",
    "mkldnn::data_ptr": "(Tensor mkldnn_tensor) -> int",
    "mkldnn::_get_mkldnn_serialized_md": "(Tensor mkldnn_tensor) -> Tensor",
    "onednn::qlinear_prepack": "(Tensor weight, int[]? x_shape) -> Tensor",
    "onednn::qlinear_pointwise": "(Tensor qx, float x_scale, int x_zero_point, Tensor qw, Tensor w_scale, "
    "Tensor w_zero_point, Tensor? bias, float output_scale, int output_zero_point, ScalarType? output_dtype, "
    "str post_op_name, Scalar?[] post_op_args, str post_op_algorithm) -> Tensor",
    "onednn::qlinear_pointwise.binary": "(Tensor qx, float x_scale, int x_zero_point, Tensor qw, Tensor w_scale, "
    "Tensor w_zero_point, Tensor? other, Tensor? bias, float output_scale, int output_zero_point, "
    "ScalarType? output_dtype, float other_scale, int other_zp, str binary_post_op, float binary_alpha, "
    "str unary_post_op, Scalar?[] unary_post_op_args, str unary_post_op_algorithm) -> Tensor",
    "aten::_make_per_channel_quantized_tensor": "(Tensor self, Tensor scale, Tensor zero_point, int axis) -> Tensor",
    "quantized::linear_prepack": f"(Tensor W, Tensor? B=None) -> {PACKED_LINEAR}",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32": "(Tensor X, float X_scale, int X_zero_point, "
    f"{PACKED_LINEAR} W_prepack) -> Tensor",
    "aten::_int_mm": "(Tensor self, Tensor mat2) -> Tensor",
    "aten::_scaled_mm": "(Tensor self, Tensor mat2, Tensor scale_a, Tensor scale_b, Tensor? bias=None, "
    "Tensor? scale_result=None, ScalarType? out_dtype=None, bool use_fast_accum=False) -> Tensor",
    "aten::_addmm_activation": "(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1, "
    "bool use_gelu=False) -> Tensor",
}


def schema_of(name: str) -> str:
    """The schema of an operator without the names of its results."""
    qualified, _, overload = name.partition(".")
    namespace, _, operator = qualified.partition("::")
    schema = getattr(getattr(getattr(torch.ops, namespace), operator), overload or "default")._schema
    return re.sub(r"(-> [\w.]+) \w+$", r"\1", str(schema)).removeprefix(name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_operators_have_the_schemas_they_were_checked_with(name: str) -> None:
    assert schema_of(name) == SCHEMAS[name]


def test_functions_have_the_parameters_they_were_checked_with() -> None:
    assert list(inspect.signature(torch._dynamo.mark_static).parameters) == ["t", "index"]
    assert callable(torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr)
    functions = ("create_tensor_from_blob_v2", "delete_tensor_object", "device_type_cpu", "layout__mkldnn")
    for name in (*functions, "dtype_float32", "dtype_bfloat16"):
        assert torch_private._c_function(name)


def test_the_file_names_the_version_it_was_checked_with() -> None:
    assert CHECKED in (torch_private.__doc__ or "")
    assert torch.__version__.partition("+")[0] == CHECKED, "run these tests, then note the new version in both files"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_survives_a_round_trip_through_plain_tensors(dtype: torch.dtype) -> None:
    if not torch_private.has_onednn(dtype):
        pytest.skip("oneDNN packs no such weights on this CPU")
    hidden, weight, bias = (torch.randn(sizes).to(dtype) for sizes in ((5, 48), (32, 48), (32,)))
    packed = torch_private.pack(weight)
    values, layout = torch_private.packed_values(packed), torch_private.packed_layout(packed)
    mapped = torch_private.map_packed(values, layout, weight.shape)
    assert torch_private.packed_values(mapped).data_ptr() == values.data_ptr()
    assert torch.equal(torch_private.linear(hidden, mapped, bias), torch_private.linear(hidden, packed, bias))


@needs_onednn
def test_the_memory_of_a_mapped_weight_is_given_back_with_it() -> None:
    packed = torch_private.pack(torch.randn(32, 48))
    values = torch_private.packed_values(packed).clone()
    mapped = torch_private.map_packed(values, torch_private.packed_layout(packed), (32, 48))
    is_there = weakref.ref(values)
    del values
    assert is_there() is not None, "the weight reads it"
    del mapped
    assert is_there() is None


@needs_onednn
@pytest.mark.parametrize("sizes", [(1, 48), (3, 70), (64, 48), (100, 70), (384, 1536)])
def test_narrow_blocks_hold_the_same_weight(sizes: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    weight, bias = torch.randn(sizes) / math.sqrt(sizes[1]), torch.randn(sizes[0])
    wide = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    narrow = torch_private._narrow(wide)
    is_blocked = torch_private._WIDE in torch_private.packed_layout(wide).numpy().tobytes()
    assert (torch_private._NARROW in torch_private.packed_layout(narrow).numpy().tobytes()) == is_blocked
    for num_tokens in (1, 5, 40, 300):
        hidden = torch.randn(num_tokens, sizes[1])
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            product = torch_private.linear(hidden, narrow, bias)
        assert torch.allclose(product, torch.nn.functional.linear(hidden, weight, bias), atol=1e-4)
    calls = [line for line in capfd.readouterr().out.splitlines() if "inner_product" in line]
    assert len(calls) == 4
    assert not any("ref:any" in call for call in calls), "the layout has no fast implementation"


@needs_onednn
def test_a_layout_that_is_not_known_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(64, 48), None)
    monkeypatch.setattr(torch_private, "_WIDE", b"another description")
    assert torch_private._narrow(packed) is packed


def test_private_names_of_torch_are_used_in_no_other_file() -> None:
    private = re.compile(r"torch\.(ops\.(mkldnn|onednn)\b|(\w+\.)*_[a-z])")
    files = [*(ROOT / "engine").glob("*.py"), ROOT / "tools/roofline.py"]
    found = {
        f"{file.name}: {ast.unparse(node)}"
        for file in files
        if file.name != "torch_private.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and private.match(ast.unparse(node))
    }
    assert not found
