"""Permutation tests of a whole-brain decode without screening, beside one fit on the same data in the same process: seconds and ratio.

    python benchmarks/permutations.py                          # 1,000 permutations, 216 x 40,000, 12 runs: svc with one value of C
    python benchmarks/permutations.py --estimator ridge_classifier
    python benchmarks/permutations.py --nested                 # svc, three values of C tuned inside the training runs

Noise with a weak pattern; labels exchanged within runs. BLAS is held to one thread; CPU seconds count all threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np

from daskdecode import Decoder, permutation_test


def timed(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, float, float]:
    """Result, seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*args, **kwargs)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Fit once, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", default="svc")
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--voxels", type=int, default=40_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    y, groups = np.tile(np.repeat(["a", "b"], 9), 12), np.repeat(np.arange(12), 18)
    x = rng.standard_normal((216, options.voxels), dtype=np.float32)
    x[:, : options.voxels // 20] += np.float32(0.05) * (y == "a")[:, None]
    grid = None if options.nested or options.estimator != "svc" else {"C": 1}
    decoder = Decoder(options.estimator, param_grid=grid, screening_percentile=None)
    decoder.fit(x[:, :500], y, groups)  # compiles
    permutation_test(decoder, x[:, :500], y, groups, n_permutations=1)
    _, wall, cpu = timed(decoder.fit, x, y, groups)
    print(f"daskdecode {version('daskdecode')}, Python {platform.python_version()}, {os.cpu_count()} CPUs, 216 x {options.voxels}, seed 0")
    print(f"one fit            {wall:8.2f} s {cpu:8.2f} CPU s")
    test, wall_all, cpu_all = timed(permutation_test, decoder, x, y, groups, n_permutations=options.permutations)
    print(f"{options.permutations:5d} permutations {wall_all:8.2f} s {cpu_all:8.2f} CPU s, {cpu_all / cpu:.2f} x a fit's CPU")
    print(test)


if __name__ == "__main__":
    main()
