"""Conversion beside bare decompression: seconds as a ratio, and the peak of memory.

    python benchmarks/convert.py [--volumes 3500] [--runs 1] [--repeat 3]

Writes int16 images of 64 x 64 x 36 voxels (smooth brain, noise, an empty background; 3,500 volumes are 1.03 GB), decompresses them
with a bare isal loop, and converts them with a brain mask from a file. Each is measured in a process of its own, so that the peaks
are theirs; seconds are without imports. Reading and writing overlap where two cores are free; where wall and processor seconds
are equal, only one was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHAPE = (64, 64, 36)
READ = """
for path in {paths}:
    with igzip.open(path, "rb") as stream:
        while stream.read(16 * 2**20): pass
"""
CONVERT = """
dd.convert([dd.Run(path, run=str(n + 1), repetition_time=2.0) for n, path in enumerate({paths})], {store!r}, mask={mask!r}, progress=False)
"""


def simulate(folder: Path, n_volumes: int, n_runs: int, seed: int = 0) -> tuple[list[str], str]:
    """Write the images and their mask; equal arguments give equal files."""
    import nibabel as nib

    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2 * np.array([1.0, 1.0, 1.2])[:, None, None, None]).sum(axis=0))
    mask = radius < np.sort(radius, axis=None)[52_800]  # of 147,456, as much as a brain fills of its box
    mean = np.where(mask, 900 + 200 * np.cos(7 * grid[0]) * np.sin(5 * grid[1]), 5)
    noise_sd = np.where(mask, 12.0, 2.0)
    mask_path = folder / "mask.nii.gz"
    nib.Nifti1Image(mask.astype(np.uint8), np.diag([3.0, 3.0, 3.5, 1.0])).to_filename(mask_path)
    header = nib.Nifti1Image(np.zeros((*SHAPE, 1), np.int16), np.diag([3.0, 3.0, 3.5, 1.0])).header
    paths = []
    for run in range(n_runs):
        path = folder / f"run-{run + 1}.nii.gz"
        _write(path, header, n_volumes // n_runs, mean, noise_sd, rng)
        paths.append(str(path))
    return paths, str(mask_path)


def _write(path: Path, header, n_volumes: int, mean: np.ndarray, noise_sd: np.ndarray, rng: np.random.Generator) -> None:
    from isal import igzip

    header = header.copy()
    header.set_data_shape((*SHAPE, n_volumes))
    header["vox_offset"] = 352
    shape = (mean.size,)
    mean, noise_sd = mean.ravel(order="F").astype(np.float32), noise_sd.ravel(order="F").astype(np.float32)
    with igzip.open(path, "wb", compresslevel=2) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(n_volumes):
            volume = np.abs(mean + noise_sd * rng.standard_normal(shape, dtype=np.float32))
            stream.write(volume.astype(np.int16).tobytes())


def measure(imports: str, code: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory (MB, imports included) of code in a process of its own."""
    used = "resource.getrusage(resource.RUSAGE_SELF)"
    wrapped = f"""
import json, resource, time
{imports}
began, began_cpu = time.perf_counter(), time.process_time()
{code}
wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
print(json.dumps([wall, cpu, {used}.ru_maxrss / 1000]))
"""
    out = subprocess.run([sys.executable, "-c", wrapped], check=True, capture_output=True, text=True).stdout
    wall_s, processor_s, peak_mb = json.loads(out.splitlines()[-1])
    return wall_s, processor_s, peak_mb


def main() -> None:
    """Simulate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=3500)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    import isal
    import zarr

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, mask = simulate(folder, options.volumes, options.runs)
        compressed_mb = sum(Path(p).stat().st_size for p in paths) / 1e6
        plain_mb = np.prod(SHAPE) * 2 * options.volumes / 1e6
        print(f"{options.runs} x {options.volumes // options.runs} volumes of {SHAPE} int16")
        print(f"{plain_mb:.0f} MB, {compressed_mb:.0f} MB compressed")
        n_cores = len(os.sched_getaffinity(0))
        print(f"Python {platform.python_version()}, isal {isal.__version__}, zarr {zarr.__version__}, {n_cores} cores, seed 0")
        for repeat in range(options.repeat):
            read_s, read_cpu, _ = measure("from isal import igzip", READ.format(paths=paths))
            convert_s, convert_cpu, peak_mb = measure(
                "import daskdecode as dd; dd.convert, dd.Run",
                CONVERT.format(paths=paths, store=str(folder / f"study-{repeat}.zarr"), mask=mask),
            )
            print(
                f"isal alone {read_s:.2f} s (processor {read_cpu:.2f}); convert {convert_s:.2f} s (processor {convert_cpu:.2f}), "
                f"{peak_mb:.0f} MB at peak; ratio {convert_s / read_s:.2f}"
            )


if __name__ == "__main__":
    main()
