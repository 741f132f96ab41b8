"""What is computed of each token alone between the linear maps: the layer norm, and which GELU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

Gelu = Literal["none", "tanh"]
"""How torch calls the exact GELU and its approximation by tanh."""


@dataclass(frozen=True, slots=True)
class Norm:
    """The layer norm over the last dimension, [size]; torch sums in float32 whatever the precision is."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)
