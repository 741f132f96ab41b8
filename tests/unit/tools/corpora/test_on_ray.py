"""What an actor of a Ray cluster gets; Ray itself is in tests/system/test_ray.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import StartupError
from service.tools.corpora.on_ray import Device, Ray, connect, find_devices


def cluster(*nodes: dict[str, float], dead: tuple[dict[str, float], ...] = ()) -> Any:
    found = [{"Alive": True, "Resources": each} for each in nodes]
    found += [{"Alive": False, "Resources": each} for each in dead]
    return SimpleNamespace(nodes=lambda: found)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}), (Device(1, 0), 3)),
        (({"CPU": 0.0}, {"CPU": 16.0, "GPU": 1.0}), (Device(1, 0), 1)),
        (({"CPU": 4.0}, {"CPU": 8.0}), (Device(0, 4), 3)),
        (({}, {"CPU": 2.0}), (Device(0, 2), 1)),
    ],
)
def test_each_gpu_has_an_actor_or_else_each_node(nodes: tuple[dict[str, float], ...], expected: Any) -> None:
    assert find_devices(cluster(*nodes, dead=({"CPU": 64.0, "GPU": 8.0},))) == expected


def test_a_cluster_without_anything_is_refused() -> None:
    with pytest.raises(StartupError, match="no node"):
        find_devices(cluster({"CPU": 0.0}))


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(StartupError, match=r"requirements/ray\.txt"):
        connect(Ray("local", 100))
