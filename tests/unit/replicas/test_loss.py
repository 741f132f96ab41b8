"""What an exit status tells."""

from __future__ import annotations

import signal

import pytest

from service.host import OomKills
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
    counts = iter([4, 4 + num_oom_kills])
    assert reason_of(status, OomKills(lambda: next(counts))) == reason
    assert epitaph(status, reason) == words


def test_a_kill_of_the_kernels_explains_one_loss_only() -> None:
    """Of two replicas in one group: the one that was killed by hand later did not run out of memory."""
    count = 4
    kills = OomKills(lambda: count)
    assert reason_of(-signal.SIGKILL, kills) == "killed", "those of before are nobody's here"
    count = 6
    reasons = [reason_of(-signal.SIGKILL, kills) for _ in range(3)]
    assert reasons == ["oom", "oom", "killed"]
