"""Peak memory of a decode against the size of the study, under a fixed memory budget; and what was predicted against what was measured.

    python benchmarks/memory.py                       # 216 volumes x 52,800 voxels; a brain of 4 times as many voxels; 4 times the runs
    python benchmarks/memory.py --budget 300MB 1GB

Each decode runs from a store in a process of its own. Peaks are above the imports; a prediction (``explain(X).peak_nbytes``) holds where
the measured peak is at most 1.2 times as high.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from measure import Cost, cost, machine
from study import block_labels, convert_study, write_study

DECODES: dict[str, dict[str, Any]] = {
    "held out": {"tune": "held_out"},
    "nested": {"param_grid": {"C": [0.01, 1, 100]}},
    "no screening": {"screening_percentile": None, "param_grid": {"C": 1}},
}
"""Options of the decoders that are measured, by name."""


def decode(store: str, options: dict[str, Any]) -> dict[str, Any]:
    """Decode a store; what was planned."""
    import daskdecode as dd

    decoder = dd.Decoder("svc", **options).fit(dd.open_subject(store))
    return decoder.plan_.to_dict()


def explain(store: str, options: dict[str, Any]) -> str:
    """Say why a decode is refused, or nothing."""
    import daskdecode as dd
    from daskdecode.errors import MemoryBudgetError

    try:
        dd.Decoder("svc", **options).explain(dd.open_subject(store))
    except MemoryBudgetError as error:
        return str(error)
    return ""


def import_ours() -> None:
    """Import and compile."""
    import numpy as np

    import daskdecode as dd

    x = np.random.default_rng(0).standard_normal((24, 400))
    dd.Decoder("svc", screening_percentile=50).fit(x, ["a", "b"] * 12, np.repeat([0, 1, 2, 3], 6))


def report(size: str, name: str, budget: str, found: Cost) -> None:
    """Print a row."""
    plan = found.value
    way = "in memory" if plan["in_memory"] else "streamed"
    ratio = found.peak_nbytes / plan["peak_nbytes"]
    print(
        f"{size:14s} {name:13s} {budget:>7s}  {way:9s} {plan['passes']:3d} passes {plan['peak_nbytes'] / 1e6:6.0f} MB predicted "
        f"{found.peak_nbytes / 1e6:6.0f} MB measured, ratio {ratio:4.2f}{'' if ratio <= 1.2 else ' (!)'}  {found.cpu_s:7.1f} CPU s",
        flush=True,
    )


def main() -> None:
    """Convert a study of each size, decode it in several ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", nargs="+", default=["400MB"])
    parser.add_argument("--decodes", nargs="+", choices=list(DECODES), default=list(DECODES))
    parser.add_argument("--voxels", type=int, default=52_800)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9, help="volumes of a class in a run, of two classes")
    args = parser.parse_args()
    side = max(8, round((args.voxels / 0.36) ** (1 / 3)))  # of the grid, of which 36 per cent are brain
    sizes = {"study": (1, 1), "brain x 4": (4, 1), "runs x 4": (1, 4)}
    print(machine("zarr"))
    print(f"{args.runs} runs of {2 * args.repeats} volumes, {args.voxels} voxels, 2 classes, svc, seed 0")
    with tempfile.TemporaryDirectory() as name:
        for size, (more_voxels, more_runs) in sizes.items():
            folder = Path(name) / size
            folder.mkdir()
            shape = (side, side * more_voxels, side)
            study = write_study(
                folder, block_labels(2, args.repeats), args.runs * more_runs, shape=shape, n_voxels=args.voxels * more_voxels, signal=0.1
            )
            convert_study(study, folder / "study.zarr")
            for image in study.runs:
                Path(image).unlink()
            for budget in args.budget:
                for way in args.decodes:
                    options = {**DECODES[way], "memory_budget": budget}
                    refused = explain(str(folder / "study.zarr"), options)
                    if refused:
                        print(f"{size:14s} {way:13s} {budget:>7s}  refused: {refused}")
                    else:
                        report(size, way, budget, cost(decode, str(folder / "study.zarr"), options, warm_up=import_ours))


if __name__ == "__main__":
    main()
