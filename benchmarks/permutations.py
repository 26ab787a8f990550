"""What permutation tests cost, beside one fit of the same decoder on the same data in the same process: CPU seconds and ratio.

    python benchmarks/permutations.py                                # 1,000 permutations, 216 x 40,000, 12 runs: every row of the table
    python benchmarks/permutations.py ridge svc                      # some rows
    python benchmarks/permutations.py --voxels 2000 --volumes 10 --permutations 100

A fit gives scores, maps and predictions; a test reads the data anew, scores the decoder as ``fit`` does, and then the permuted labels.
Noise with a weak pattern; labels exchanged within runs. Screened permutations are counted one by one: their price does not fall with their
number. BLAS is held to one thread; CPU seconds count all threads.
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
from sklearn.base import clone

from daskdecode import Decoder, DecoderRegressor, permutation_test

WHOLE: dict[str, Any] = {"screening_percentile": None}
ROWS: dict[str, tuple[str, Any]] = {
    "ridge": ("ridge classifier", Decoder("ridge_classifier", **WHOLE)),
    "regressor": ("ridge regressor", DecoderRegressor("ridge", **WHOLE)),
    "lda": ("lda, shrinkage 0.5", Decoder("lda", estimator_args={"shrinkage": 0.5}, **WHOLE)),
    "svc": ("svc, one C", Decoder(param_grid={"C": 1}, **WHOLE)),
    "nested": ("svc, 3 C nested", Decoder(**WHOLE)),
    "nested10": ("svc, 10 C nested", Decoder(param_grid={"C": list(np.geomspace(1e-3, 1e2, 10))}, **WHOLE)),
    "screened": ("svc, one C, 20% screened", Decoder(param_grid={"C": 1})),
}


def cpu_seconds(function: Any, *args: Any, **kwargs: Any) -> float:
    """CPU seconds of all threads."""
    start = time.process_time()
    function(*args, **kwargs)
    return time.process_time() - start


def simulate(n_voxels: int, n_volumes: int, n_runs: int) -> tuple[Any, Any, Any]:
    """Noise with a weak pattern: data, labels, runs."""
    rng = np.random.default_rng(0)
    half = n_volumes // 2
    y, runs = np.tile(np.repeat(["a", "b"], [half, n_volumes - half]), n_runs), np.repeat(np.arange(n_runs), n_volumes)
    x = rng.standard_normal((y.size, n_voxels), dtype=np.float32)
    x[:, : n_voxels // 20] += np.float32(0.05) * (y == "a")[:, None]
    return x, y, runs


def main() -> None:
    """Fit once, then test, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--screened", type=int, default=20, metavar="N", help="permutations with screening, which are priced one by one")
    parser.add_argument("--voxels", type=int, default=40_000)
    parser.add_argument("--volumes", type=int, default=18, help="a run")
    parser.add_argument("--runs", type=int, default=12)
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: {', '.join(ROWS)}")
    x, y, runs = simulate(options.voxels, options.volumes, options.runs)
    print(f"daskdecode {version('daskdecode')}, Python {platform.python_version()}, {os.cpu_count()} CPUs, seed 0")
    print(f"{y.size} volumes x {options.voxels} voxels, {options.runs} runs\n")
    print("| decoder | one fit, CPU s | permutations | their test, CPU s | in fits | one more permutation, in fits |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        told, decoder = ROWS[name]
        target = (y == "a") + np.random.default_rng(1).standard_normal(y.size) if isinstance(decoder, DecoderRegressor) else y
        decoder, m = clone(decoder), options.screened if name == "screened" else options.permutations
        decoder.fit(x[:, :500], target, runs)  # compiles
        permutation_test(decoder, x[:, :500], target, runs, n_permutations=1)
        fit = cpu_seconds(decoder.fit, x, target, runs)
        one = cpu_seconds(permutation_test, decoder, x, target, runs, n_permutations=1)
        all_ = cpu_seconds(permutation_test, decoder, x, target, runs, n_permutations=m)
        each = (all_ - one) / max(1, m - 1)
        print(f"| {told} | {fit:.2f} | {m} | {all_:.2f} | {all_ / fit:.2f} | {each / fit:.2g} |", flush=True)


if __name__ == "__main__":
    main()
