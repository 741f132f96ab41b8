"""The reason of a loss, from an exit status; the environment of a worker process."""

from __future__ import annotations

import signal

import pytest

from service.host import OomKills
from service.metric_labels import LossReason
from service.replicas.process import describe_exit, environment, loss_reason


@pytest.mark.parametrize(
    ("status", "num_oom_kills", "reason", "words"),
    [
        (-signal.SIGKILL, 0, "killed", "killed by SIGKILL"),
        (-signal.SIGKILL, 1, "oom", "killed by the kernel, out of memory,"),
        (-signal.SIGHUP, 1, "killed", "killed by SIGHUP"),
        (-signal.SIGSEGV, 1, "crash", "killed by SIGSEGV"),
        (-signal.SIGABRT, 0, "crash", "killed by SIGABRT"),
        (3, 0, "exit", "exited with status 3"),
        (0, 0, "exit", "exited with status 0"),
    ],
)
def test_reasons(status: int, num_oom_kills: int, reason: LossReason, words: str) -> None:
    counts = iter([4, 4 + num_oom_kills])
    assert loss_reason(status, OomKills(lambda: next(counts))) == reason
    assert describe_exit(status, reason) == words


def test_a_kill_of_the_kernels_explains_one_loss_only() -> None:
    """Of two replicas in one group: the one that was killed by hand later did not run out of memory."""
    count = 4
    kills = OomKills(lambda: count)
    assert loss_reason(-signal.SIGKILL, kills) == "killed", "those of before are nobody's here"
    count = 6
    reasons = [loss_reason(-signal.SIGKILL, kills) for _ in range(3)]
    assert reasons == ["oom", "oom", "killed"]


def test_threads_are_set_and_do_not_spin() -> None:
    child = environment(threads=3)
    assert (child["OMP_NUM_THREADS"], child["MKL_NUM_THREADS"], child["OMP_WAIT_POLICY"]) == ("3", "3", "PASSIVE")


def test_the_kernels_kept_for_batch_sizes_are_few_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
        assert int(environment(threads=3)[name]) <= 256
        monkeypatch.setenv(name, "1024")
        assert environment(threads=3)[name] == "1024"
