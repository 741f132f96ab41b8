"""torch.compile, as the engine asks for it. Knows no function that is compiled.

Beyond 8 variants of a function torch would run it as it is written, kernel after kernel, and FlexAttention with all
pairs of tokens in memory. One process computes all models, and each width and precision among them is a variant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST_VARIANTS = 64


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """The function, compiled at its first call; `options` are those of torch.compile.

    The limit goes along with the function: torch's own setting for it holds in the thread that sets it alone, and
    batches are launched by another than the one that warms up.
    """
    make: Any = torch.compile  # whose types leave out the limit
    return make(function, recompile_limit=MOST_VARIANTS, **options)
