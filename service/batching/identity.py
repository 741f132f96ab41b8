"""What a row is: equal for rows whose outputs are equal. Knows no queue and no cache."""

from __future__ import annotations

from service.domain import Encoding, Readout

Identity = tuple[str, Readout, tuple[tuple[int, int], ...], bytes, bytes, bytes]


def identity(encoding: Encoding) -> Identity:
    """All that the engine sees of it."""
    arrays = encoding.ids.tobytes(), encoding.segment_ids.tobytes(), encoding.positions.tobytes()
    return (encoding.model, encoding.readout, encoding.blocks, *arrays)
