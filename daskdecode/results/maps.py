"""The maps of a decoder, and pictures of them: voxels as they are, over the mean image."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter

PLANES: Final = ("x", "y", "z")
MOSAIC_SLICES: Final = 6
DPI: Final = 130
# Dark where the map is near zero and bright at both ends, so that it reads on a grey image and in both directions alike.
COLD_HOT: Final = LinearSegmentedColormap.from_list(
    "daskdecode_cold_hot", ["#c9f2ff", "#4fb3ff", "#1457d9", "#0b1f4d", "#4d120b", "#d93a14", "#ff9d2e", "#fff0b3"]
)


@dataclass(frozen=True)
class Statistic:
    """A kind of map: the decoder's attribute that holds it and what its values mean."""

    attribute: str
    title: str
    meaning: str


STATISTICS: Final = {
    "coef": Statistic(
        "coef_img_",
        "weights",
        "Linear weights, mean over folds. Positive where a higher signal speaks for the class. Weights say what the decoder uses, "
        "not where the signal differs: see the pattern.",
    ),
    "stdcoef": Statistic("std_coef_img_", "spread of the weights", "Standard deviation of the linear weights over folds."),
    "pattern": Statistic(
        "pattern_img_",
        "pattern",
        "Forward model of the decoder (Haufe et al. 2014, NeuroImage 87:96-110). Positive where the signal rises with the evidence "
        "for the class.",
    ),
}
"""The maps that are written, by the name that files give them (``stat-<name>``)."""


def class_maps(decoder: Any) -> Iterator[tuple[str, str, nib.Nifti1Image]]:
    """Go through class, statistic and image of all maps that a fitted decoder has; nothing where its data had no voxel grid."""
    for statistic, kind in STATISTICS.items():
        for name, image in getattr(decoder, kind.attribute, {}).items():
            yield str(name), statistic, image


def load_background(background: Any, like: nib.Nifti1Image) -> np.ndarray:
    """Read a 3-D image to draw maps over, resampled to their grid where it lies on another.

    Parameters
    ----------
    background : Nifti1Image, path or None
        3-D; a 4-D image is averaged over time. None gives zeros.
    like : Nifti1Image
        The map.

    Returns
    -------
    ndarray of float32, shape of ``like`` in the orientation closest to RAS+
        Non-finite values are 0.
    """
    if background is None:
        return np.zeros(nib.as_closest_canonical(like).shape[:3], dtype=np.float32)
    image: Any = nib.load(background) if isinstance(background, str | os.PathLike) else background
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = np.nan_to_num(values.mean(axis=3) if values.ndim == 4 else values, posinf=0, neginf=0)
    image = nib.Nifti1Image(values, image.affine)
    if image.shape != like.shape[:3] or not np.allclose(image.affine, like.affine, atol=1e-3):
        image = resample_from_to(image, (like.shape[:3], like.affine), order=1)
    return np.asarray(nib.as_closest_canonical(image).dataobj, dtype=np.float32)


def colour_limit(values: np.ndarray) -> float:
    """Magnitude at which colours saturate: the 99.5th percentile of what is not zero, so that one voxel cannot darken the rest."""
    magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.percentile(magnitudes, 99.5)) if magnitudes.size else 0.0


def choose_planes(values: np.ndarray) -> list[tuple[int, int]]:
    """Choose one plane an axis through the strongest neighbourhood of the map (magnitudes smoothed by a voxel).

    Parameters
    ----------
    values : ndarray, shape (nx, ny, nz)

    Returns
    -------
    list of (axis, index)
        Three planes, the middle ones of an empty map; a volume one voxel thick has only the plane in which it can be seen.
    """
    smooth = gaussian_filter(np.abs(values), sigma=1.0, mode="constant")
    centre = np.unravel_index(smooth.argmax(), values.shape) if smooth.any() else [n // 2 for n in values.shape]
    thin = [axis for axis, n in enumerate(values.shape) if n == 1]
    return [(axis, int(centre[axis])) for axis in thin[:1] or (0, 1, 2)]


def choose_slices(values: np.ndarray, background: np.ndarray, n: int = MOSAIC_SLICES) -> list[tuple[int, int]]:
    """Choose up to ``n`` axial slices spread over where the map (or else the background) has its central 96%.

    Returns
    -------
    list of (axis, index)
        Ascending, axis 2; empty for a volume one voxel thick.
    """
    if 1 in values.shape:
        return []
    profile = np.abs(values).sum(axis=(0, 1), dtype=np.float64)
    if not profile.any():
        profile = background.sum(axis=(0, 1), dtype=np.float64).clip(min=0)
    if not profile.any():
        profile = np.ones(values.shape[2])
    filled = np.flatnonzero(profile)
    if len(filled) > n:
        first, last = np.searchsorted(profile.cumsum() / profile.sum(), [0.02, 0.98])
        filled = np.unique(np.linspace(first, min(last, values.shape[2] - 1), n).round().astype(int))
    return [(2, int(k)) for k in filled]


def _draw_plane(ax: Axes, volume: dict[str, Any], axis: int, index: int, sides: bool) -> None:
    """Draw one plane of voxels, left of the brain on the left, with its place in mm."""
    row, column = [a for a in range(3) if a != axis][::-1]
    zooms, limit = volume["zooms"], volume["limit"]
    look = {"origin": "lower", "aspect": zooms[row] / zooms[column], "interpolation": "nearest"}
    ax.imshow(volume["background"].take(index, axis).T, cmap="gray", vmin=0, vmax=volume["bright"], **look)
    values = volume["values"].take(index, axis).T
    if limit > 0:
        alpha = np.where(values == 0, 0.0, np.clip(0.25 + 0.75 * np.abs(values) / limit, 0, 1))
        ax.imshow(values, cmap=COLD_HOT, vmin=-limit, vmax=limit, alpha=alpha, **look)
    ax.set_axis_off()
    centre = [(n - 1) / 2 for n in volume["values"].shape]
    centre[axis] = index
    place = (volume["affine"] @ [*centre, 1])[axis]
    ax.set_title(f"{PLANES[axis]} = {place:.0f}", color="#d8dde6", fontsize=9, pad=3)
    if sides and axis != 0:
        for x, letter in ((0.02, "L"), (0.98, "R")):
            ax.text(x, 0.02, letter, transform=ax.transAxes, color="#9aa3b2", fontsize=8, ha="left" if letter == "L" else "right")


def _add_row(figure: Figure, volume: dict[str, Any], planes: list[tuple[int, int]], bottom: float, height: float, width: float) -> None:
    """Lay planes out in one row at one scale (mm are equal in all), centred."""
    size_mm = [n * z for n, z in zip(volume["values"].shape, volume["zooms"], strict=True)]
    extents = [[size_mm[a] for a in range(3) if a != axis] for axis, _ in planes]
    gap = 0.012
    figure_w, figure_h = figure.get_size_inches()
    across = (width - gap * (len(planes) - 1)) * figure_w / sum(e[0] for e in extents)
    scale = min(across, 0.86 * height * figure_h / max(e[1] for e in extents))  # inches a mm; the rest of the height is for titles
    total = sum(e[0] for e in extents) * scale / figure_w + gap * (len(planes) - 1)
    left = 0.01 + (width - total) / 2
    sides = len({axis for axis, _ in planes}) > 1 or len(planes) == 1  # in a row of like slices the letters would only crowd
    for (axis, index), (w, h) in zip(planes, extents, strict=True):
        box = (left, bottom + (0.86 * height - h * scale / figure_h) / 2, w * scale / figure_w, h * scale / figure_h)
        _draw_plane(figure.add_axes(box), volume, axis, index, sides)
        left += box[2] + gap


def draw_map(image: nib.Nifti1Image, background: Any = None) -> bytes:
    """Draw a map over an image: the three planes that hold most of it, and a row of axial slices.

    Parameters
    ----------
    image : Nifti1Image, shape (nx, ny, nz)
        The map; zeros are not drawn. Any orientation; one voxel thick or all zeros will do.
    background : Nifti1Image, path or None
        What to draw it over; see :func:`load_background`.

    Returns
    -------
    bytes
        A PNG, the same for the same input. Eager.

    Notes
    -----
    Planes of voxels are drawn as they are, without resampling. ``nilearn.plotting`` is not used here: it goes through pyplot's global
    state, raises on volumes one voxel thick and warns on empty maps.
    """
    canonical = nib.as_closest_canonical(image)
    values = np.nan_to_num(np.asarray(canonical.dataobj, dtype=np.float64), posinf=0, neginf=0)
    under = load_background(background, image)
    inside = under[under > 0]
    volume = {
        "values": values,
        "background": under,
        "bright": 1.5 * float(np.percentile(inside, 99)) if inside.size else 1.0,  # mid-grey, so that colours stand out
        "limit": colour_limit(values),
        "affine": canonical.affine,
        "zooms": [float(z) for z in canonical.header.get_zooms()[:3]],
    }
    slices = choose_slices(values, under)
    figure = Figure(figsize=(9.6, 5.0 if slices else 3.4), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    _add_row(figure, volume, choose_planes(values), bottom=0.42 if slices else 0.04, height=0.56 if slices else 0.9, width=0.88)
    if slices:
        _add_row(figure, volume, slices, bottom=0.03, height=0.38, width=0.88)
    if volume["limit"] > 0:
        _add_colour_bar(figure, volume["limit"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def _add_colour_bar(figure: Figure, limit: float) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLD_HOT), cax=figure.add_axes((0.915, 0.2, 0.014, 0.6)), extend="both")
    bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2g}", "0", f"{limit:.2g}"])
    bar.ax.tick_params(colors="#d8dde6", labelsize=8, length=2)
    bar.outline.set_visible(False)
