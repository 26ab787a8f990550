"""How CPU seconds and peak memory grow with volumes, voxels, folds and classes: each doubled from a base; ours and nilearn's.

    python benchmarks/growth.py                       # from 192 volumes x 20,000 voxels, 12 runs, 2 classes; nilearn up to twice the base
    python benchmarks/growth.py --doublings 2 --no-peer

Every decode (svc, C = 1, 10, 100 on the held-out runs, screening to 20 per cent) has a process of its own, which is given the image: peaks
are above imports and image. An exponent e says that a quantity grows as size ** e: the slope of a straight line through the logarithms.
Folds and classes change at a fixed number of volumes.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace
from typing import Any

import measure
import numpy as np
from memory import import_ours
from roi import import_theirs
from study import Images, images_in_memory


@dataclass(frozen=True)
class Size:
    """The size of a decode."""

    n_classes: int
    n_runs: int
    repeats: int
    n_voxels: int

    def times(self, what: str, factor: int) -> Size:
        """Multiply one quantity, all others (the volumes too) as they were."""
        if what == "volumes":
            return replace(self, repeats=self.repeats * factor)
        if what == "voxels":
            return replace(self, n_voxels=self.n_voxels * factor)
        name = {"folds": "n_runs", "classes": "n_classes"}[what]
        return replace(self, **{name: getattr(self, name) * factor, "repeats": self.repeats // factor})

    def __str__(self) -> str:
        n = self.n_classes * self.n_runs * self.repeats
        return f"{n:5d} volumes {self.n_voxels:7d} voxels {self.n_runs:3d} folds {self.n_classes:3d} classes"


def ours(study: Images) -> float:
    """Decode with daskdecode; the mean score."""
    import daskdecode as dd

    decoder = dd.Decoder("svc", mask=study.mask, tune="held_out", standardize="zscore_sample")
    return float(np.mean(list(decoder.fit(study.img, study.y, study.groups).cv_scores_.values())))


def theirs(study: Images) -> float:
    """Decode with nilearn; the mean score."""
    from nilearn.decoding import Decoder
    from sklearn.model_selection import LeaveOneGroupOut

    warnings.simplefilter("ignore")
    decoder = Decoder("svc", mask=study.mask, standardize="zscore_sample", cv=LeaveOneGroupOut())
    return float(np.mean(list(decoder.fit(study.img, study.y, groups=study.groups).cv_scores_.values())))


def exponent(factors: list[int], values: list[float]) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log(factors), np.log(values), 1)[0])


def grow(name: str, sizes: dict[int, Size], repeat: int) -> None:
    """Measure one program at every size; print rows and exponents."""
    function, warm_up = {"daskdecode": (ours, import_ours), "nilearn": (theirs, import_theirs)}[name]
    cpu, peak = [], []
    for size in sizes.values():
        study = images_in_memory(size.n_classes, size.n_runs, size.repeats, size.n_voxels)
        costs: list[Any] = [measure.cost(function, study, warm_up=warm_up) for _ in range(repeat)]
        best = min(costs, key=lambda c: c.cpu_s)  # other processes only ever add
        cpu.append(best.cpu_s)
        peak.append(best.peak_nbytes)
        print(f"  {name:11s} {size} {best}   mean score {best.value:.4f}", flush=True)
    print(f"  {name:11s} exponents: CPU {exponent(list(sizes), cpu):.2f}, peak memory {exponent(list(sizes), peak):.2f}", flush=True)


def main() -> None:
    """Double each quantity, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["volumes", "voxels", "folds", "classes"])
    parser.add_argument("--doublings", type=int, default=2)
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=8, help="volumes of a class in a run")
    parser.add_argument("--repeat", type=int, default=2, help="measurements, of which the cheapest counts")
    parser.add_argument("--no-peer", action="store_true", help="leave nilearn out")
    args = parser.parse_args()
    print(measure.machine())
    base = Size(2, args.runs, args.repeats, args.voxels)
    for what in args.what:
        print(f"{what} doubled")
        grow("daskdecode", {2**d: base.times(what, 2**d) for d in range(args.doublings + 1)}, args.repeat)
        if not args.no_peer:
            grow("nilearn", {2**d: base.times(what, 2**d) for d in range(min(args.doublings, 1) + 1)}, 1)


if __name__ == "__main__":
    main()
