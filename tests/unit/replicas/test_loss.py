"""What an exit status tells."""

from __future__ import annotations

import signal

import pytest

from service.metric_labels import LossReason
from service.replicas.loss import epitaph, reason_of


@pytest.mark.parametrize(
    ("status", "num_oom_kills", "reason", "words"),
    [
        (-signal.SIGKILL, 0, "killed", "killed by SIGKILL"),
        (-signal.SIGKILL, 1, "oom", "killed by the kernel, out of memory,"),
        (-signal.SIGHUP, 1, "killed", "killed by SIGHUP"),
        (-signal.SIGSEGV, 1, "crash", "killed by SIGSEGV"),
        (-signal.SIGABRT, 0, "crash", "killed by SIGABRT"),
        (3, 0, "exit", "ended with status 3"),
        (0, 0, "exit", "ended with status 0"),
    ],
)
def test_reasons(status: int, num_oom_kills: int, reason: LossReason, words: str) -> None:
    assert reason_of(status, num_oom_kills) == reason
    assert epitaph(status, reason) == words
