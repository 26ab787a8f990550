"""The head of the simulated studies: a brain, a region in it, and smooth random maps on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

# A head in MNI-like millimetres. The field of view is fixed and the voxels follow from the shape, so that any grid holds the whole brain.
_FIELD_OF_VIEW_MM = np.array([160.0, 204.0, 162.0])
_BRAIN_CENTRE_MM = np.array([0.0, -18.0, 8.0])
_BRAIN_RADII_MM = np.array([70.0, 88.0, 66.0])
_REGION_CENTRE_MM = np.array([34.0, -50.0, -16.0])  # right ventral temporal
_REGION_RADII_MM = np.array([20.0, 26.0, 16.0])
_SMALLEST_REGION = 8  # voxels: on a coarse grid a pattern still needs a few


@dataclass(frozen=True)
class Head:
    """An ellipsoid brain on a voxel grid, with a region of interest where the right ventral temporal cortex would be.

    Parameters
    ----------
    shape : tuple of three ints
        Voxels along x (left to right), y and z.
    smoothness_mm : float
        Full width at half maximum of the Gaussian kernel of random maps (mm).
    """

    shape: tuple[int, int, int]
    smoothness_mm: float

    @cached_property
    def zooms_mm(self) -> np.ndarray:
        """Voxel sizes, shape (3,)."""
        return _FIELD_OF_VIEW_MM / self.shape

    @cached_property
    def affine(self) -> np.ndarray:
        """Voxel to world (mm, RAS+), shape (4, 4); the grid is centred on the brain."""
        affine = np.diag([*self.zooms_mm, 1.0])
        affine[:3, 3] = _BRAIN_CENTRE_MM - self.zooms_mm * (np.array(self.shape) - 1) / 2
        return affine

    def _distance(self, centre_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
        """Distance of each voxel from a centre, 1 on the ellipsoid with these radii; shape ``shape``."""
        indices = np.moveaxis(np.indices(self.shape), 0, -1)
        return np.asarray(np.linalg.norm((nib.affines.apply_affine(self.affine, indices) - centre_mm) / radii_mm, axis=-1))

    @cached_property
    def brain(self) -> np.ndarray:
        """Mask of the brain, bool, shape ``shape``."""
        return self._distance(_BRAIN_CENTRE_MM, _BRAIN_RADII_MM) <= 1

    @cached_property
    def region(self) -> np.ndarray:
        """Mask of the planted region, bool, shape ``shape``: the brain's voxels nearest to its centre, as many as fill its volume."""
        n_voxels = round(4 / 3 * np.pi * np.prod(_REGION_RADII_MM) / np.prod(self.zooms_mm))
        distance = np.where(self.brain, self._distance(_REGION_CENTRE_MM, _REGION_RADII_MM), np.inf)
        nearest = np.argsort(distance, axis=None, kind="stable")[: min(max(n_voxels, _SMALLEST_REGION), int(self.brain.sum()))]
        region = np.zeros(self.shape, dtype=bool)
        region.flat[nearest] = True
        return region

    def smooth_maps(self, rng: np.random.Generator, n_maps: int) -> np.ndarray:
        """Spatially smooth Gaussian maps of unit variance, float32, shape (*shape, n_maps)."""
        # Padded by the kernel's reach and cut, so that the variance is the same at the border as inside.
        sigma = self.smoothness_mm / np.sqrt(8 * np.log(2)) / self.zooms_mm
        reach = np.ceil(2 * sigma).astype(int)
        white = rng.standard_normal((*(np.array(self.shape) + 2 * reach), n_maps), dtype=np.float32)
        smooth = gaussian_filter(white, (*sigma, 0.0), mode="wrap", truncate=2.0)
        smooth = smooth[tuple(slice(r, r + n) for r, n in zip(reach, self.shape, strict=True))]
        return np.asarray(smooth / np.float32(smooth.std(dtype=np.float64)))
