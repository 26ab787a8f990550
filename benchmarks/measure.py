"""What a function costs, in a process of its own: processor and wall seconds, and the peak of memory above what importing took.

Import this before NumPy: BLAS is held to one thread, as Dask has one a core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import ctypes
import gc
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What a function returned, and what that cost.

    Attributes
    ----------
    value : object
    cpu_s, wall_s : float
        Seconds; of all threads of the process.
    peak_nbytes : int
        Largest resident memory while the function ran, above that just before.
    """

    value: Any
    cpu_s: float
    wall_s: float
    peak_nbytes: int

    def __str__(self) -> str:
        return f"{self.cpu_s:8.2f} CPU s {self.wall_s:8.2f} s {self.peak_nbytes / 1e6:8.0f} MB"


def cost(function: Callable[..., Any], *args: Any, warm_up: Callable[[], Any] | None = None) -> Cost:
    """Call ``function(*args)`` in a new process, after ``warm_up()``, which imports and compiles and is not counted.

    Both are functions of a module, and what is returned can be pickled. An error there is raised here.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, function, args, warm_up).result()


def _measured(function: Callable[..., Any], args: tuple[Any, ...], warm_up: Callable[[], Any] | None) -> Cost:
    if warm_up is not None:
        warm_up()
    return cost_here(function, *args)


def cost_here(function: Callable[..., Any], *args: Any) -> Cost:
    """Call ``function(*args)`` in this process. The peak is right on Linux; elsewhere it includes what the process held before."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but not given back would hide as much of the function's own
        CLEAR.write_text("5")  # the peak begins anew
    before = peak_nbytes()
    cpu, wall = time.process_time(), time.perf_counter()
    value = function(*args)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(value, cpu, wall, peak_nbytes() - before)


def peak_nbytes() -> int:
    """Largest resident memory of this process, since the peak last began anew."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(*packages: str) -> str:
    """Machine and versions, in a line."""
    names = ("daskdecode", "nilearn", "scikit-learn", "numpy", *packages)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{platform.processor() or platform.machine()}, {n_cores} cores; Python {platform.python_version()}, {versions}"
