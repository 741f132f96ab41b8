"""Which devices "auto" means."""

from __future__ import annotations

import pytest

from service.replicas.devices import num_cuda_devices, resolve_devices


@pytest.mark.parametrize(
    ("devices", "num_cuda", "expected"),
    [
        (["auto"], 0, ("cpu",)),
        (["auto"], 2, ("cuda:0", "cuda:1")),
        (["cpu"], 2, ("cpu",)),
        (["cuda:1", "cpu"], 4, ("cuda:1", "cpu")),
    ],
)
def test_resolve(devices: list[str], num_cuda: int, expected: tuple[str, ...]) -> None:
    assert resolve_devices(devices, lambda: num_cuda) == expected


def test_no_driver_means_no_device() -> None:
    assert num_cuda_devices("libthere-is-none.so") == 0


def test_this_machine() -> None:
    assert num_cuda_devices() >= 0
