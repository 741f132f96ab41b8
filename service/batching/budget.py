"""How many tokens a batch should have: as few as use the device well, and no more than the target allows.

Pure. A batch costs something whatever is in it, so throughput grows with its size, ever more slowly; latency grows with
it too, steadily. The knee is the size that reaches ENOUGH of the throughput of an endless batch.
"""

from __future__ import annotations

from service.batching.latency import Cost

ENOUGH = 0.95
LEAST_TOKENS = 64
MOST_TOKENS = 16_384

LEAST_KNEE = 512
"""Where the target allows it, no knee is below this: so small a batch is never worth it on any device, but a machine
that was busy while it was measured may well look as if it were."""

TYPICAL_ROW = 64
"""Tokens; it only shares out the cost of a row among its tokens."""

HANDLING_S = 0.0005
"""What a batch costs outside of the engine: two messages through the pipe and the event loop."""


def choose_budget(cost: Cost, target_s: float) -> int:
    """Tokens of a full batch; where even the least takes longer than the target, the least."""
    per_batch = cost.batch + HANDLING_S
    per_token = max(cost.token + cost.row / TYPICAL_ROW, 1e-12)
    knee = ENOUGH / (1 - ENOUGH) * per_batch / per_token
    in_time = (target_s - per_batch) / per_token
    return int(min(max(min(max(knee, LEAST_KNEE), in_time), LEAST_TOKENS), MOST_TOKENS))
