"""Conversion beside bare decompression: seconds as a ratio, and the peak of memory.

    python benchmarks/convert.py [--volumes 3500] [--runs 1] [--repeat 3]

Writes int16 images of 64 x 64 x 36 voxels (3,500 volumes are 1.03 GB), decompresses them with a bare isal loop, and converts them with a
brain mask from a file. Each is measured in a process of its own; seconds and peaks are without imports. Reading and writing overlap where
two cores are free; where wall and processor seconds are equal, only one was.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import cost, machine
from study import convert_study, write_study

SHAPE, N_VOXELS = (64, 64, 36), 52_800  # of 147,456, as much as a brain fills of its box


def decompress(paths: list[str]) -> None:
    """Read to the end, and throw away."""
    from isal import igzip

    for path in paths:
        with igzip.open(path, "rb") as stream:
            while stream.read(16 * 2**20):
                pass


def import_isal() -> None:
    """Import."""
    import isal.igzip  # noqa: F401


def import_ours() -> None:
    """Import."""
    import daskdecode as dd

    assert dd.convert
    assert dd.Run


def main() -> None:
    """Simulate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=3500)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    n_volumes = options.volumes // options.runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = write_study(folder, ["rest"] * n_volumes, options.runs, shape=SHAPE, n_voxels=N_VOXELS)
        compressed_mb = sum(Path(p).stat().st_size for p in study.runs) / 1e6
        plain_mb = SHAPE[0] * SHAPE[1] * SHAPE[2] * 2 * n_volumes * options.runs / 1e6
        print(machine("isal", "zarr"))
        print(f"{options.runs} x {n_volumes} volumes of {SHAPE} int16, {plain_mb:.0f} MB, {compressed_mb:.0f} MB compressed, seed 0")
        for repeat in range(options.repeat):
            reading = cost(decompress, study.runs, warm_up=import_isal)
            converting = cost(convert_study, study, folder / f"study-{repeat}.zarr", warm_up=import_ours)
            print(f"isal alone {reading}; convert {converting}; ratio {converting.wall_s / reading.wall_s:.2f}", flush=True)


if __name__ == "__main__":
    main()
