"""What a child process is started with; its life is tested with real ones, in tests/system."""

from __future__ import annotations

import pytest

from service.replicas.spawn import environment


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
