"""A whole-brain decode beside nilearn's, on the same image in the same run: CPU seconds of both, and whether the scores are equal.

    python benchmarks/decode.py                      # 8 classes, 12 runs of 72 volumes, 40,000 voxels; nilearn takes some minutes
    python benchmarks/decode.py --classes 2          # 216 volumes
    python benchmarks/decode.py --nested             # ours tunes inside the training runs, on ten values of C; nilearn's does not

Noise with a weak pattern in 50 voxels a class. The grid's voxels are of a size that makes the mask as large as a standard brain, so that
both screen to 20 per cent. BLAS is held to one thread; CPU seconds count all threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import time
import warnings
from importlib.metadata import version

import numpy as np
from nilearn.decoding import Decoder as NilearnDecoder
from sklearn.model_selection import LeaveOneGroupOut
from study import images_in_memory

from daskdecode import Decoder


def cpu_seconds(function) -> tuple:
    """Return what a function returns, and its processor and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9, help="volumes of a class in a run")
    parser.add_argument("--voxels", type=int, default=40_000)
    parser.add_argument("--signal", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="leave nilearn out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    small = images_in_memory(2, 3, 4, 2000)
    Decoder(mask=small[1]).fit(small[0], *small[2:])  # imports, and what is compiled at first use
    img, mask, y, groups = images_in_memory(args.classes, args.runs, args.repeats, args.voxels, args.signal, args.seed)
    options = {"mask": mask, "standardize": "zscore_sample", "cv": LeaveOneGroupOut()}
    if args.nested:
        ours = Decoder(tune="nested", param_grid={"C": np.geomspace(1e-4, 1e3, 10)}, **options)
    else:
        ours = Decoder(tune="held_out", **options)
    names = ("daskdecode", "nilearn", "scikit-learn", "numpy")
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores;", ", ".join(f"{n} {version(n)}" for n in names))
    print(f"{y.size} volumes x {args.voxels} voxels, {args.classes} classes, {args.runs} runs, seed {args.seed}")
    print(ours.explain(img, y, groups))
    _, cpu, wall = cpu_seconds(lambda: ours.fit(img, y, groups))
    print(f"daskdecode  {cpu:8.1f} CPU s  {wall:8.1f} s   mean score {np.mean(list(ours.cv_scores_.values())):.4f}", flush=True)
    if args.no_peer:
        return
    theirs = NilearnDecoder("svc", **options)
    _, their_cpu, their_wall = cpu_seconds(lambda: theirs.fit(img, y, groups=groups))
    print(f"nilearn     {their_cpu:8.1f} CPU s  {their_wall:8.1f} s   mean score {np.mean(list(theirs.cv_scores_.values())):.4f}")
    print(f"ratio       {their_cpu / cpu:8.1f}            {their_wall / wall:8.1f}")
    if not args.nested:
        largest = max(float(np.abs(np.subtract(ours.cv_scores_[c], theirs.cv_scores_[c])).max()) for c in theirs.cv_scores_)
        apart = np.abs(ours.coef_ - theirs.coef_).max() / np.abs(theirs.coef_).max()
        print(f"largest difference of a score {largest:.2g}; of a coefficient, in units of the largest, {apart:.2g}")


if __name__ == "__main__":
    main()
