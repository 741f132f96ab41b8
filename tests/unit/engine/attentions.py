"""References for the kernels of attention that a CPU does not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name


def packed_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor:
    """The documented result of torch's varlen_attn, computed row by row."""
    assert query_ends.dtype == torch.int32
    assert query_ends is key_ends
    lengths = query_ends.diff().tolist()
    assert max(lengths) <= longest_query == longest_key
    parts = [each.split(lengths) for each in (query, key, value)]
    rows = [F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in row)) for row in zip(*parts, strict=True)]
    return torch.cat([row.transpose(0, 1) for row in rows])
