"""What this machine's CPU can do, as the kernel lists it. Knows no torch."""

from __future__ import annotations

from pathlib import Path

_ARITHMETIC = ("avx", "amx", "fma", "sse", "asimd", "sve", "sme", "bf16", "i8mm")
"""How the abilities begin on which a matrix product depends."""


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Its sets of instructions for arithmetic (x86 `flags`, Arm `Features`); none where the kernel does not tell."""
    if not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(each for each in listed.split() if each.startswith(_ARITHMETIC))
