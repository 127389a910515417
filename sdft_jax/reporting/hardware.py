"""A description of the hardware and the JAX version, for the captions of results."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import jax


def describe_hardware() -> str:
    """Return one line with the devices, the CPU model, its number of cores and the JAX version."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{len(devices)} x {devices[0].device_kind}"
    return f"{device}; host CPU {_cpu_model()}, {cores} cores; jax {jax.__version__}"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
