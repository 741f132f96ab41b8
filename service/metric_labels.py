"""Label values and histogram buckets of the metrics.

Label values come from this file or from the configuration, never from a request.
"""

from __future__ import annotations

from typing import Literal, get_args

from service.domain import KernelKind

NO_MODEL = "none"
"""The `model` label of a request that was refused before a model was chosen."""
OTHER_LABEL = "other"
"""The `label` label of a prediction whose label came from the request."""

NO_KEY = "none"
"""The `key` label of a request whose API key is missing or unknown."""

DropReason = Literal["cancelled", "expired", "abandoned"]
RefusalReason = Literal["queue_full", "wait_too_long", "deadline", "draining"]
UsedMethod = Literal["blend", "choice", "embedding", "classifier"]
"""What answered: a choice model and an embedding model together, one of them, or a fine-tuned classifier."""
Decision = Literal["label", "none", "ambiguous"]
"""Of a text's labels: one is certain enough (or several that are independent are), none is, or two are too close."""
CacheName = Literal["results", "labels"]
EvictionReason = Literal["full", "expired", "distrusted"]
KeyRefusal = Literal["unauthorized", "forbidden", "concurrency", "tokens", "requests"]
ReplicaState = Literal["starting", "loading", "ready", "restarting", "stopped"]
LossReason = Literal["killed", "oom", "hang", "exit", "crash", "wrong", "start"]
CanaryResult = Literal["ok", "wrong"]
PreparationResult = Literal["kept", "failed", "cancelled"]
BatchOutcome = Literal["completed", "failed", "expired", "cancelled"]
BatchLineResult = Literal["completed", "failed"]

LineResult = Literal["answered", "failed"]

DECISIONS: tuple[Decision, ...] = get_args(Decision)
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)
REFUSAL_REASONS: tuple[RefusalReason, ...] = get_args(RefusalReason)
EVICTION_REASONS: tuple[EvictionReason, ...] = get_args(EvictionReason)
KEY_REFUSALS: tuple[KeyRefusal, ...] = get_args(KeyRefusal)
REPLICA_STATES: tuple[ReplicaState, ...] = get_args(ReplicaState)
LOSS_REASONS: tuple[LossReason, ...] = get_args(LossReason)
CANARY_RESULTS: tuple[CanaryResult, ...] = get_args(CanaryResult)
TASKS_WITH_METHODS = ("classify", "similarity")
TASKS_WITH_DECISIONS = ("classify",)
PREPARATION_RESULTS: tuple[PreparationResult, ...] = get_args(PreparationResult)
BATCH_OUTCOMES: tuple[BatchOutcome, ...] = get_args(BatchOutcome)
BATCH_LINE_RESULTS: tuple[BatchLineResult, ...] = get_args(BatchLineResult)
LABEL_GROUPS = ("scored", "read")
METHODS: tuple[UsedMethod, ...] = get_args(UsedMethod)
LINE_RESULTS: tuple[LineResult, ...] = get_args(LineResult)
BULK_ENDS = (
    "complete",
    "disconnected",
    "unavailable",
    "replies_unread",
    "request_timeout",
    "malformed_request",
    "unauthorized",
    "forbidden",
)
"""How a bulk request ends: it is answered, its client has gone, or the code of the error with which it ends early."""
KERNEL_KINDS: tuple[KernelKind, ...] = get_args(KernelKind)
MEMORY_KINDS = ("allocated", "total")
REQUEST_MEMORY_KINDS = ("used", "budget")
CODES = ("200", "400", "404", "408", "413", "415", "422", "429", "499", "500", "503", "504")
KEY_CODES = ("403", *CODES)
CONNECTION_REASONS = (
    "too_many_connections",
    "malformed_request",
    "host_not_allowed",
    "headers_too_large",
    "request_timeout",
    "memory_full",
    "slow_reader",
)
SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LONG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LABEL_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
PREPARATION_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)
SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
COSTS = ("batch", "token", "row")
STAGES = ("tokenize", "queue", "compute")
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
