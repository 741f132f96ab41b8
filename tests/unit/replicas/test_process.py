"""What a child process is started with; its life is tested with real ones, in tests/system."""

from __future__ import annotations

import pytest

from service.replicas.messages import Loading, Spec
from service.replicas.pool import keep_logs_as_they_are
from service.replicas.process import Process
from tests.fakes import load_fake


def environment() -> dict[str, str]:
    def ignore(loading: Loading) -> None:
        return None

    spec = Spec((), "cpu", "auto", load_fake, keep_logs_as_they_are)
    return Process(spec, threads=3, hang_timeout_s=1.0, progress=ignore, profiled=ignore)._environment()


def test_threads_are_set_and_do_not_spin() -> None:
    child = environment()
    assert (child["OMP_NUM_THREADS"], child["MKL_NUM_THREADS"], child["OMP_WAIT_POLICY"]) == ("3", "3", "PASSIVE")


def test_the_kernels_kept_for_batch_sizes_are_few_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
        assert int(environment()[name]) <= 256
        monkeypatch.setenv(name, "1024")
        assert environment()[name] == "1024"
