"""What torch was built with and what it finds on this machine, for `python -m service doctor`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from service import host


def describe_build() -> dict[str, Any]:
    """torch, its CUDA and its libraries, and the CUDA that the driver supports."""
    driver = host.cuda_of_driver()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "driver_cuda": ".".join(map(str, driver)) if driver else None,
        "driver": host.driver_version(),
        "onednn": torch.backends.mkldnn.is_available(),
        "onnxruntime": version("onnxruntime"),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def describe_gpus() -> list[dict[str, Any]]:
    """Name, compute capability and memory of each GPU that torch can use."""
    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": each.name, "capability": f"{each.major}.{each.minor}", "memory_bytes": each.total_memory}
        for each in properties
    ]
