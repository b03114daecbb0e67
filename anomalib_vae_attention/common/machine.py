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


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


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
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    (line,) = [line for line in meminfo.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) / 2**20


def describe_machine() -> dict[str, Any]:
    """Describe processor, memory, system and the versions of what is installed, as plain data."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions(PACKAGES),
    }
