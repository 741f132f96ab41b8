"""What the CPU can do is what the kernel says of it, and of that only what products depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cpu import cpu_features


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_tile hypervisor\nflags\t\t: fpu\n",
            "avx2 avx512_bf16 amx_tile",
        ),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm crc32\n", "asimd bf16 i8mm"),
        ("processor\t: 0\n", ""),
    ],
)
def test_what_the_kernel_lists(tmp_path: Path, listed: str, found: str) -> None:
    (tmp_path / "cpuinfo").write_text(listed)
    assert cpu_features(tmp_path / "cpuinfo") == frozenset(found.split())


def test_no_list_is_no_ability(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "missing") == frozenset()
