"""The encoder as one graph of ONNX Runtime, which multiplies few tokens on a CPU faster than torch.

The graph is made of the engine's weights and has a node for each step of `encoder`. Rows are packed in it, not padded:
the attention computes one row after the other.

Imported only where it is used, as `onnx_graph` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.shape import Shape
from service.domain import Labels, Mean, TokenScores
from service.engine.attention_backends import block_mask
from service.engine.encoder import gelu_of
from service.engine.linear import Int8Codes, Linear, Plain
from service.engine.onnx_graph import BOOL, CONTRIB, FLOAT, INT32, INT64, Array, Graph
from service.engine.ops import UINT8_ZERO, Norm
from service.engine.packing import Layout
from service.engine.readouts import Shared
from service.engine.self_test import CPU
from service.engine.weights import Layer, Weights

_HIDDEN = "hidden"
"""The output without a readout."""

_TABLES = {"ids": "words", "segment_ids": "segments", "token_positions": "positions"}
"""The inputs of the embeddings: the numbers of the tokens, and the table in which each is looked up."""


class OnnxEncoder:
    """One model, and the readouts that are part of its graph. Keeps a packed copy of the layers' weights, so those that
    they were made of may go.

    The tables are inputs: ONNX Runtime would copy constants, and they are most of a multilingual model.
    """

    def __init__(self, weights: Weights, shape: Shape, num_threads: int) -> None:
        graph = Graph()
        hidden = _Layers(graph, shape).add(weights)
        self._outputs = {_HIDDEN: hidden, **_readouts(graph, hidden, weights, shape)}
        self._compute = graph.open(list(self._outputs.values()), num_threads)
        tables = (weights.words, weights.segments, weights.positions)
        self._tables = {name: table.numpy() for name, table in zip(_TABLES.values(), tables, strict=True)}
        if weights.mlm:
            self._tables["decoder"] = weights.mlm.decoder.weight.numpy()

    def __call__(self, tokens: Tensor, layout: Layout, selected: Tensor | None) -> Tensor:
        """As `encode`: ids, segment ids and positions [3, tokens], to hidden states of all tokens but the padding, or
        of those that are selected.

        Raises RuntimeError with ONNX Runtime's message when the rows cannot be computed, as without memory.
        """
        return self._run(_HIDDEN, tokens, layout, selected)

    def read(self, tokens: Tensor, layout: Layout, selected: Tensor | None, readout: Shared) -> Tensor:
        """See `ComputesReadouts`. A forward empties the caches of the CPU: torch's calls would take 0.25 ms.

        Raises RuntimeError as above.
        """
        token_ids = readout.token_ids if isinstance(readout, TokenScores) else ()
        return self._run(type(readout).__name__, tokens, layout, selected, token_ids)

    def _run(
        self, output: str, tokens: Tensor, layout: Layout, selected: Tensor | None, token_ids: Sequence[int] = ()
    ) -> Tensor:
        offsets = np.array(layout.offsets, dtype=np.int32)
        num_tokens = int(offsets[-1])
        chosen = np.arange(num_tokens, dtype=np.int32) if selected is None else selected.numpy()
        last_offsets = np.searchsorted(chosen, offsets).astype(np.int32)
        if selected is not None and (last_offsets[1:] == last_offsets[:-1]).any():
            return self._run(output, tokens, layout, None, token_ids)[selected]  # attention needs a query of every row
        inputs = {"selected": chosen, **self._tables, **_row_inputs(layout, offsets, chosen, last_offsets)}
        inputs |= dict(zip(_TABLES, tokens.numpy()[:, :num_tokens], strict=True))
        if "decoder" in self._tables:
            inputs["token_ids"] = np.array(token_ids, dtype=np.int32)
        return torch.from_numpy(self._compute(self._outputs[output], inputs))


def multiply(made: Linear, num_threads: int) -> Callable[[Tensor], Tensor]:
    """A linear map alone, from hidden states [tokens, in] to [tokens, out]: for measurements."""
    graph = Graph()
    hidden = graph.input("hidden", FLOAT, "tokens", made.weight.shape[1])
    product = _product(graph, _codes(graph, hidden, made), made)
    compute = graph.open([product], num_threads)
    return lambda hidden: torch.from_numpy(compute(product, {"hidden": hidden.numpy()}))


class _Layers:
    """Adds the steps of `encoder` to a graph.

    Where the input of an 8-bit map comes from a norm or from the attention, its gains are multiplied into the weights
    before: see `_norm` and `_attention`.
    """

    def __init__(self, graph: Graph, shape: Shape) -> None:
        self._graph = graph
        self._shape = shape

    def add(self, weights: Weights) -> str:
        """The final hidden states of the `selected` tokens.

        Its inputs are those of the embeddings, and what `_row_inputs` makes of the rows.
        """
        hidden = self._embed(weights.embedding_norm)
        self._graph.input("selected", INT32, "selected")
        self._graph.input("is_plain_row", BOOL)
        self._graph.input("is_masked_row", BOOL)
        self._graph.input("num_plain", INT64)
        self._graph.input("num_masked", INT64)
        for queries in ("", "last_"):
            self._graph.input(f"{queries}starts", INT32, "rows", 1)
            self._graph.input(f"{queries}ends", INT32, "rows", 1)
            self._graph.sequence(f"{queries}added")
        if weights.final_norm:
            return self._pre_norm_layers(hidden, weights.layers, weights.final_norm)
        return self._post_norm_layers(hidden, weights.layers)

    def _embed(self, norm: Norm | None) -> str:
        hidden = ""
        for name, table in _TABLES.items():
            self._graph.input(name, INT32, "tokens")
            self._graph.input(table, FLOAT, f"number of {table}", self._shape.hidden_size)
            rows = self._graph.node("Gather", table, name)
            hidden = self._graph.node("Add", hidden, rows) if hidden else rows
        return self._norm(hidden, norm) if norm else hidden

    def _pre_norm_layers(self, hidden: str, layers: Sequence[Layer], final_norm: Norm) -> str:
        following = [*((layer.attention_norm, layer.qkv) for layer in layers[1:]), (final_norm, None)]
        normed = self._norm(hidden, layers[0].attention_norm, layers[0].qkv)
        for layer, (next_norm, next_map) in zip(layers, following, strict=True):
            context = self._attention(normed, layer, is_last=layer is layers[-1])
            hidden = self._select(hidden) if layer is layers[-1] else hidden
            hidden = self._graph.node("Add", self._linear(context, layer.attention_out), hidden)
            normed = self._norm(hidden, layer.ffn_norm, layer.ffn_in)
            hidden = self._graph.node("Add", self._feed_forward(normed, layer), hidden)
            normed = self._norm(hidden, next_norm, next_map)
        return normed

    def _post_norm_layers(self, hidden: str, layers: Sequence[Layer]) -> str:
        for layer in layers:
            context = self._attention(self._scale(hidden, layer.qkv), layer, is_last=layer is layers[-1])
            hidden = self._select(hidden) if layer is layers[-1] else hidden
            total = self._graph.node("Add", self._linear(context, layer.attention_out), hidden)
            hidden = self._norm(total, layer.attention_norm)
            total = self._graph.node("Add", self._feed_forward(self._scale(hidden, layer.ffn_in), layer), hidden)
            hidden = self._norm(total, layer.ffn_norm)
        return hidden

    def _select(self, hidden: str) -> str:
        return self._graph.node("Gather", hidden, "selected")

    def _linear(self, hidden: str, made: Linear) -> str:
        return _product(self._graph, _codes(self._graph, hidden, made), made)

    def _attention(self, hidden: str, layer: Layer, *, is_last: bool) -> str:
        """The context of all tokens; in the last layer, of those that are selected.

        Queries, keys and values are products of their own: dividing them afterwards would copy them. Of 8 bits, the
        values are times the gains of the output projection: a context is a mean of values.
        """
        qkv, out = layer.qkv, layer.attention_out
        if isinstance(qkv, Int8Codes) and isinstance(out, Int8Codes):
            gains = torch.ones_like(qkv.scales)
            gains[-len(out.gain) :] = out.gain
            qkv = replace(qkv, scales=qkv.scales * gains, bias=qkv.bias * gains)
        codes = _codes(self._graph, hidden, qkv)
        queries, *others = _parts(qkv, 3)
        query = _product(self._graph, self._select(codes) if is_last else codes, queries)
        key, value = (_product(self._graph, codes, each) for each in others)
        return self._attend(query, key, value, "last_" if is_last else "")

    def _scale(self, hidden: str, made: Linear) -> str:
        if not isinstance(made, Int8Codes):
            return hidden
        return self._graph.node("Mul", hidden, self._graph.array(made.gain))

    def _norm(self, hidden: str, norm: Norm, following: Linear | None = None) -> str:
        """The norm, times the gains of the map that alone needs it."""
        return _normalize(self._graph, hidden, norm, following.gain if isinstance(following, Int8Codes) else 1.0)

    def _feed_forward(self, hidden: str, layer: Layer) -> str:
        """Of inputs that are times the gains of the first map.

        GELU is by tanh before an 8-bit map, too: it differs by at most 0.0005, a fraction of a step of the codes.
        """
        is_by_tanh = gelu_of(self._shape) == "tanh" or isinstance(layer.ffn_out, Int8Codes)
        inner = _gelu(self._graph, self._linear(hidden, layer.ffn_in), is_by_tanh=is_by_tanh)
        return self._linear(self._scale(inner, layer.ffn_out), layer.ffn_out)

    def _attend(self, query: str, key: str, value: str, queries: str) -> str:
        """`queries` is the prefix of the inputs that are those of the queries."""
        graph = self._graph
        first, tokens = graph.array(np.array([0])), graph.array(np.array([1], dtype=np.int32))
        states = [graph.node("Unsqueeze", each, first) for each in (query, key, value)]

        def attend(*states: str, added: str = "") -> str:
            """The context [1, queries, hidden]. ONNX Runtime's own MultiHeadAttention takes up to 1.3 times as long for
            rows of fewer than 200 tokens, because it transposes its inputs."""
            operands, num_heads = (*states, added) if added else states, self._shape.num_heads
            return graph.node("Attention", *operands, q_num_heads=num_heads, kv_num_heads=num_heads)

        def attend_row(row: str, added: str = "") -> str:
            bounds = [
                [graph.node("Gather", f"{prefix}{side}", row) for side in ("starts", "ends")]
                for prefix in (queries, "", "")
            ]
            parts = (graph.node("Slice", each, *ends, tokens) for each, ends in zip(states, bounds, strict=True))
            return attend(*parts, added=added)

        def attend_masked_row(number: str) -> str:
            added = graph.node("SequenceAt", f"{queries}added", number)
            return attend_row(graph.node("Add", number, "num_plain"), added)

        def attend_rows() -> str:
            contexts = graph.extend(graph.node("SequenceEmpty"), "num_plain", attend_row)
            contexts = graph.extend(contexts, "num_masked", attend_masked_row)
            return graph.node("ConcatFromSequence", contexts, axis=1)

        def attend_single_masked_row() -> str:
            return attend(*states, added=graph.node("SequenceAt", f"{queries}added", graph.array(np.array(0))))

        # A single row without the detour takes 20 us less.
        contexts = graph.choose(
            "is_plain_row",
            lambda: attend(*states),
            lambda: graph.choose("is_masked_row", attend_single_masked_row, attend_rows),
        )
        return graph.node("Squeeze", contexts, first)


def _readouts(graph: Graph, hidden: str, weights: Weights, shape: Shape) -> dict[str, str]:
    """By the names of readouts, what `readouts` makes by torch of the hidden states [tokens, hidden]."""
    outputs = {Mean.__name__: graph.node("ReduceMean", hidden, graph.array(np.array([0])))}
    if head := weights.labels:
        pooled = graph.node("Tanh", _product(graph, hidden, head.pooler))
        outputs[Labels.__name__] = _product(graph, pooled, head.classifier)
    if mlm := weights.mlm:
        states = _gelu(graph, _product(graph, hidden, mlm.transform), is_by_tanh=gelu_of(shape) == "tanh")
        states = _normalize(graph, states, mlm.norm)
        graph.input("token_ids", INT32, "token ids")
        graph.input("decoder", FLOAT, "number of words", shape.hidden_size)
        weight, bias = (graph.node("Gather", each, "token_ids") for each in ("decoder", graph.array(mlm.decoder.bias)))
        outputs[TokenScores.__name__] = graph.node("Gemm", states, weight, bias, transB=1)
    return outputs


def _gelu(graph: Graph, hidden: str, *, is_by_tanh: bool) -> str:
    return graph.node("FastGelu" if is_by_tanh else "Gelu", hidden, domain=CONTRIB)


def _normalize(graph: Graph, hidden: str, norm: Norm, gain: float | Tensor = 1.0) -> str:
    """The norm, times a gain."""
    weight, bias = graph.array(norm.weight * gain), graph.array(norm.bias * gain)
    # Its own fusion of a sum and a norm takes three times as long as the two.
    return graph.node("LayerNormalization", hidden, weight, bias, axis=-1, epsilon=norm.eps)


def _row_inputs(layout: Layout, offsets: Array, selected: Array, last_offsets: Array) -> dict[str, Any]:
    """The inputs of the attention: for each row, the `starts` and `ends` of its tokens, and what is `added` to its
    scores if it has blocks. The last layer has its own, of the queries that are selected."""
    num_plain, added, last_added = layout.num_plain, [], []
    for row in range(num_plain, len(layout.rows)):
        mask = block_mask(*layout.rows[row], CPU, torch.float32)
        assert mask is not None, "the rows behind the plain ones have blocks"
        added.append(mask.numpy()[None, None])
        queries = selected[last_offsets[row] : last_offsets[row + 1]] - offsets[row]
        last_added.append(added[-1][:, :, queries])
    return {
        "is_plain_row": np.array(len(layout.rows) == num_plain == 1),
        "is_masked_row": np.array(len(layout.rows) == len(added) == 1),
        "num_plain": np.array(num_plain),
        "num_masked": np.array(len(added)),
        "starts": offsets[:-1, None],
        "ends": offsets[1:, None],
        "added": added,
        "last_starts": last_offsets[:-1, None],
        "last_ends": last_offsets[1:, None],
        "last_added": last_added,
    }


def _parts(made: Linear, count: int) -> list[Linear]:
    """The map in equal parts of its outputs."""
    if isinstance(made, Plain):
        return [Plain(*part) for part in zip(made.weight.chunk(count), made.bias.chunk(count), strict=True)]
    assert isinstance(made, Int8Codes), "the kinds of maps of this runtime"
    outputs = zip(*(each.chunk(count) for each in (made.weight, made.scales, made.bias)), strict=True)
    return [replace(made, weight=weight, scales=scales, bias=bias) for weight, scales, bias in outputs]


def _codes(graph: Graph, hidden: str, made: Linear) -> str:
    """What the map multiplies: hidden states; of 8 bits, the codes of hidden states that are times its gains."""
    if not isinstance(made, Int8Codes):
        return hidden
    zero = graph.array(np.full((), UINT8_ZERO + int(made.offset[0]), dtype=np.uint8))
    return graph.node("QuantizeLinear", hidden, graph.array(np.ones((), dtype=np.float32)), zero)


def _product(graph: Graph, codes: str, made: Linear) -> str:
    if isinstance(made, Plain):
        return graph.node("Gemm", codes, graph.array(made.weight), graph.array(made.bias), transB=1)
    assert isinstance(made, Int8Codes), "the kinds of maps of this runtime"
    one, zero = graph.array(np.ones((), dtype=np.float32)), graph.array(np.full((), UINT8_ZERO, dtype=np.uint8))
    weight, scales, bias = (graph.array(each) for each in (made.weight.t().contiguous(), made.scales, made.bias))
    return graph.node("MatMulIntegerToFloat", codes, weight, one, scales, zero, "", bias, domain=CONTRIB)
