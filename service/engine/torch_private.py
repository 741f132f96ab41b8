"""The private APIs of torch that the engine uses, in one file.

None of them is documented; each was checked with torch 2.13. `tests/unit/engine/test_torch_private.py` fails where one
is missing or has another signature.
"""

from __future__ import annotations

import torch


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs and multiplies float matrices of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    # Without AVX-512 or AVX-NE-CONVERT, packing raises an error, where torch's public linear still computes.
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
