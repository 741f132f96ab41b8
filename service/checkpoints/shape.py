"""The shape of an encoder: its family, its kind and its sizes, which config.json has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.errors import CheckpointError

Family = Literal["megatron-bert", "bert", "xlm-roberta", "roberta"]
Kind = Literal["masked-lm", "sequence-classification", "question-answering", "encoder"]

ROBERTA: tuple[Family, ...] = ("xlm-roberta", "roberta")
"""BERT's encoder with heads of other names; positions start after the id of the padding token."""

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}

# The smallest and largest valid value of each size; the largest are about ten times those of any published model.
_LIMITS = {
    "num_hidden_layers": (1, 256),
    "hidden_size": (1, 65_536),
    "num_attention_heads": (1, 1_024),
    "intermediate_size": (1, 262_144),
    "vocab_size": (1, 2_000_000),
    "max_position_embeddings": (1, 131_072),
    "type_vocab_size": (1, 1_024),
}
_ROBERTA_PADDING = 1
"""What RoBERTa's classes take for a `pad_token_id` that config.json leaves out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an encoder; `activation` is "gelu" (erf) or "gelu_new" (its tanh approximation).

    Positions run from 0 to `max_positions` - 1. Their embeddings start at row `first_position` of the table.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    num_segments: int
    norm_eps: float
    activation: str
    first_position: int = 0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Output and input size of the linear maps of a layer. Queries, keys and values are one."""
        hidden, ffn = self.hidden_size, self.ffn_size
        return {
            "qkv": (3 * hidden, hidden),
            "attention_out": (hidden, hidden),
            "ffn_in": (ffn, hidden),
            "ffn_out": (hidden, ffn),
        }

    @property
    def num_layer_weights(self) -> int:
        """The weights of the linear maps of a layer, without biases."""
        return sum(num_out * num_in for num_out, num_in in self.maps.values())

    @property
    def num_parameters(self) -> int:
        """The parameters of embeddings and encoder, without the heads."""
        hidden = self.hidden_size
        tables = (self.vocab_size + self.first_position + self.max_positions + self.num_segments) * hidden
        biases = sum(num_out for num_out, _ in self.maps.values())
        layer = self.num_layer_weights + biases + 4 * hidden
        return tables + self.num_layers * layer + 2 * hidden


def read_shape(file: Path, config: dict[str, Any], family: Family, kind: Kind) -> Shape:
    """From config.json. Raises CheckpointError for a size that is missing or out of range, and for other variants."""
    sizes = {key: _size(file, config, key) for key in _LIMITS}
    hidden_size, num_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden_size % num_heads:
        raise wrong(file, "num_attention_heads", num_heads, f"a divisor of hidden_size = {hidden_size}")
    eps = config.get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise wrong(file, "layer_norm_eps", eps, "a number from 0 to 1")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise wrong(file, "hidden_act", activation, "one of " + ", ".join(_ACTIVATIONS))
    if family in ROBERTA and kind == "masked-lm" and activation != "gelu":
        raise wrong(file, "hidden_act", activation, "gelu, as in the masked-LM head of RoBERTa")
    _refuse_variants(file, config)
    first_position = _first_position(file, config, sizes) if family in ROBERTA else 0
    return Shape(
        num_layers=sizes["num_hidden_layers"],
        hidden_size=hidden_size,
        num_heads=num_heads,
        ffn_size=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"] - first_position,
        num_segments=sizes["type_vocab_size"],
        norm_eps=float(eps),
        activation=_ACTIVATIONS[activation],
        first_position=first_position,
    )


def _first_position(file: Path, config: dict[str, Any], sizes: dict[str, int]) -> int:
    """RoBERTa numbers its positions from the id of the padding token + 1; the rows before are never used."""
    padding, limit = config.get("pad_token_id", _ROBERTA_PADDING), sizes["max_position_embeddings"] - 2
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding <= limit:
        raise wrong(file, "pad_token_id", padding, f"a whole number from 0 to max_position_embeddings - 2 = {limit}")
    return padding + 1


def _size(file: Path, config: dict[str, Any], key: str) -> int:
    least, most = _LIMITS[key]
    value = config.get(key, 2 if key == "type_vocab_size" else None)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(file, key, value, f"a whole number from {least} to {most}")
    return value


def _refuse_variants(file: Path, config: dict[str, Any]) -> None:
    """Refuses variants of the architecture that would load, but compute wrong answers."""
    for key, plain in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if config.get(key, plain) != plain:
            raise wrong(file, key, config[key], str(plain))


def wrong(file: Path, key: str, value: object, wanted: str) -> CheckpointError:
    """The error for a value of config.json."""
    found = "is missing" if value is None else f"is {str(value)[:200]!r}"
    return CheckpointError(f"{file}: {key} {found}; wanted {wanted}")
