"""Simulated runs for the benchmarks: int16 images with a smooth brain, noise, and a weak pattern a condition in a region."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip

FIELD_OF_VIEW_MM = (192.0, 192.0, 126.0)
STANDARD_BRAIN_MM3 = 1_882_989  # to which nilearn's percentage of voxels refers
NOISE_SD, BACKGROUND_SD = 12.0, 2.0


class Images(NamedTuple):
    """A study in memory: 4-D image, mask, label and run of each volume."""

    img: Any
    mask: Any
    y: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Study:
    """Files of a simulated study.

    Attributes
    ----------
    runs : list of str
        An image a run.
    mask, region : str
        Images of the brain and of the region with the pattern.
    labels : list of str
        Label of each volume of a run; the same in all.
    """

    runs: list[str]
    mask: str
    region: str
    labels: list[str]

    @property
    def y(self) -> list[str]:
        """Labels of all volumes."""
        return self.labels * len(self.runs)

    @property
    def groups(self) -> list[int]:
        """Runs of all volumes, by number."""
        return [run for run in range(len(self.runs)) for _ in self.labels]


def write_study(
    folder: Path,
    labels: list[str],
    n_runs: int,
    *,
    shape: tuple[int, int, int] = (64, 64, 36),
    n_voxels: int = 52_800,
    n_region: int = 500,
    signal: float = 0.0,
    seed: int = 0,
) -> Study:
    """Write images, mask and region; equal arguments give equal files.

    ``n_voxels`` of the grid are brain, those nearest to its centre; ``n_region`` of these, around a point off the centre, are the
    region. There each voxel has a mean a label, drawn with a standard deviation of ``signal`` times that of the noise. The field of view
    does not depend on the shape, so that a finer grid is the same brain.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    brain = nearest_voxels(grid, (0.0, 0.0, 0.0), n_voxels)
    region = nearest_voxels(grid, (0.2, -0.3, -0.1), n_region)
    mean = np.where(brain, 900 + 200 * np.cos(7 * grid[0]) * np.sin(5 * grid[1]), 5).ravel(order="F").astype(np.float32)
    noise_sd = np.where(brain, NOISE_SD, BACKGROUND_SD).ravel(order="F").astype(np.float32)
    where = np.flatnonzero(region.ravel(order="F"))
    pattern = {label: signal * NOISE_SD * rng.standard_normal(n_region, dtype=np.float32) for label in dict.fromkeys(labels)}
    affine = np.diag([*(mm / n for mm, n in zip(FIELD_OF_VIEW_MM, shape, strict=True)), 1.0])
    masks = {"brain": brain, "region": region}
    for name, inside in masks.items():
        nib.Nifti1Image(inside.astype(np.uint8), affine).to_filename(folder / f"{name}.nii.gz")
    header = nib.Nifti1Image(np.zeros((*shape, 1), np.int16), affine).header
    header.set_data_shape((*shape, len(labels)))
    header["vox_offset"] = 352
    runs = []
    for run in range(n_runs):
        runs.append(str(folder / f"run-{run + 1}.nii.gz"))
        with igzip.open(runs[-1], "wb", compresslevel=2) as stream:
            stream.write(header.binaryblock + bytes(4))
            for label in labels:
                volume = mean + noise_sd * rng.standard_normal(mean.size, dtype=np.float32)
                volume[where] += pattern[label]
                stream.write(np.abs(volume).astype(np.int16).tobytes())
    return Study(runs, str(folder / "brain.nii.gz"), str(folder / "region.nii.gz"), labels)


def nearest_voxels(grid: np.ndarray, centre: tuple[float, float, float], n: int) -> np.ndarray:
    """Mark the n voxels of a grid (3, nx, ny, nz) that are nearest to a point; boolean, of the grid's shape."""
    distance = np.square((grid - np.reshape(centre, (3, 1, 1, 1))) * np.reshape([1, 1, 1.1], (3, 1, 1, 1))).sum(axis=0)
    inside = np.zeros(distance.size, dtype=bool)
    inside[np.argsort(distance, axis=None, kind="stable")[:n]] = True
    return inside.reshape(distance.shape)


def convert_study(study: Study, store: Path) -> None:
    """Convert a study, with its brain as the mask and its region by name."""
    import daskdecode as dd

    runs = [dd.Run(path, run=str(n + 1), labels=study.labels, repetition_time=2.0) for n, path in enumerate(study.runs)]
    dd.convert(runs, store, mask=study.mask, rois={"region": study.region}, progress=False)


def block_labels(n_classes: int, repeats: int) -> list[str]:
    """Labels of a run: a block a class."""
    return [f"c{c}" for c in range(n_classes) for _ in range(repeats)]


def images_in_memory(n_classes: int, n_runs: int, repeats: int, n_voxels: int, signal: float = 0.3, seed: int = 0) -> Images:
    """Noise with a weak pattern in 50 voxels a class, as images in memory.

    The grid's voxels are of a size that makes the mask as large as a standard brain, so that screening keeps 20 per cent of any number.
    """
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat([f"c{c}" for c in range(n_classes)], repeats), n_runs)
    shape = (40, 40, -(-n_voxels // 1600))
    mask = np.zeros(shape, dtype=np.uint8)
    mask.ravel()[:n_voxels] = 1
    data = np.zeros((*shape, y.size), dtype=np.float32)
    flat = data.reshape(-1, y.size)
    flat[:n_voxels] = rng.standard_normal((n_voxels, y.size), dtype=np.float32)
    for c in range(n_classes):
        flat[50 * c : 50 * (c + 1)] += signal * (y == f"c{c}")
    zoom = (STANDARD_BRAIN_MM3 / n_voxels) ** (1 / 3)
    affine = np.diag([zoom, zoom, zoom, 1.0])
    groups = np.repeat(np.arange(n_runs), n_classes * repeats)
    return Images(nib.Nifti1Image(data, affine), nib.Nifti1Image(mask, affine), y, groups)
