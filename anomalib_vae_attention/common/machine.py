"""The machine and the versions that figures were measured with."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGES = (
    "anomalib_vae_attention",
    "anomalib",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _told(file: str, name: str) -> str:
    """Return what Linux tells of the machine in a file of ``/proc``; empty on other systems."""
    path = Path("/proc", file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package, or ``"not installed"``."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def available_gib() -> float | None:
    """Return the memory that programs can still have, in GiB; ``None`` where the system does not say (not Linux)."""
    told = _told("meminfo", "MemAvailable")
    return int(told.split()[0]) / 2**20 if told else None


def _memory_gib() -> float | None:
    # Windows has no sysconf.
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def describe_machine() -> dict[str, Any]:
    """Describe processor, memory, system and the versions of what is installed, as plain data."""
    return {
        "processor": _told("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions(PACKAGES),
    }
