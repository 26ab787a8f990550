"""Which voxels: masks on the way in, images on the way out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
import xarray as xr

from daskdecode import schema
from daskdecode.errors import GridMismatchError, SelectionError, nearest
from daskdecode.lost import ends_in_words
from daskdecode.store.masks import load_mask

Mask: TypeAlias = "str | os.PathLike[str] | npt.ArrayLike | xr.DataArray | nib.spatialimages.SpatialImage"

_IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")


def apply_mask(ds: xr.Dataset, mask: Mask) -> xr.Dataset:
    """Keep the voxels of a mask, in the order that ``ds`` has them.

    Parameters
    ----------
    ds : Dataset
        A subject dataset.
    mask : str, path, image or array of bool
        The name of a mask that ``ds`` carries (``"vt"`` for ``mask_vt``); a NIfTI image or the path of one, on the same voxel grid and
        with one value besides 0; or one boolean a voxel of ``ds``, shape (n_voxels,). A DataArray with a ``voxel`` coordinate is
        matched by it, whatever its order; other arrays are in the order of ``ds``.

    Returns
    -------
    Dataset
        ``ds`` restricted along ``voxel``. Lazy: when it is computed, only chunks that hold such a voxel are read. An image is read at once.

    Raises
    ------
    GridMismatchError
        If an image lies on another grid; the message has the resampling that would mend it.
    SelectionError
        If the name is unknown (the nearest are offered); the mask keeps no voxel, is not boolean, has the wrong length or other voxels
        than ``ds``; a file is missing or unreadable; or an image has several values besides 0 (an atlas, a probability map).
    CorruptFileError
        If a file ends early or is damaged.

    Warns
    -----
    UserWarning
        If some voxels of an image's mask are not among those that ``ds`` has (outside the brain mask of the conversion).
    """
    keep, what = _as_boolean(ds, mask)
    if not keep.any():
        raise SelectionError(f"{what} keeps none of the {len(keep)} voxels of these data: nothing would be left to decode.")
    return ds.isel({schema.VOXEL: np.flatnonzero(keep)})


@ends_in_words()
def to_nifti(values: npt.ArrayLike | xr.DataArray, ds: xr.Dataset) -> nib.Nifti1Image:
    """Put voxel values back into the volume: the inverse of masking, zeros outside.

    Parameters
    ----------
    values : array-like, shape (n_voxels,) or (n_volumes, n_voxels)
        One value, or one time series, a voxel of ``ds``. A DataArray with a ``voxel`` coordinate is matched by it, whatever its
        order; other arrays are in the order of ``ds``. A lazy array is computed.
    ds : Dataset
        The data that the values belong to: their ``voxel`` coordinate, ``shape`` and ``affine``.

    Returns
    -------
    Nifti1Image, shape (nx, ny, nz) or (nx, ny, nz, n_volumes)
        Eager, dense. float64 stays float64, other floats become float32; booleans become uint8; integers keep their dtype.

    Raises
    ------
    SelectionError
        If the last axis of ``values`` is not the voxels of ``ds``, its ``voxel`` coordinate names others, or there are more than two
        axes.
    """
    if isinstance(values, xr.DataArray) and schema.VOXEL in values.dims:
        values = values.transpose(..., schema.VOXEL)
    flat = _as_storable(np.asarray(values))
    n_voxels = ds.sizes[schema.VOXEL]
    if flat.ndim not in (1, 2) or flat.shape[-1] != n_voxels:
        raise SelectionError(f"Values of shape {flat.shape} do not fit the data: expected ({n_voxels},) or (n_volumes, {n_voxels}).")
    flat = flat[..., _order_of(values, ds, "The values")]
    shape = _shape(ds)
    volume = np.zeros((int(np.prod(shape)), *flat.shape[:-1]), dtype=flat.dtype)
    volume[ds[schema.VOXEL].values] = flat.T
    return _image(volume.reshape(*shape, *flat.shape[:-1]), ds)


@ends_in_words()
def mean_image(ds: xr.Dataset) -> nib.Nifti1Image:
    """Mean over time of every voxel, as an image to draw maps on.

    Parameters
    ----------
    ds : Dataset
        A subject dataset.

    Returns
    -------
    Nifti1Image of float32, shape (nx, ny, nz)
        Eager: one pass over ``bold``, sums in float64; memory is bounded by the chunks in work. Zeros outside the voxels of ``ds``.
    """
    mean = ds[schema.BOLD].mean(schema.TIME, dtype=np.float64)
    return to_nifti(np.asarray(mean.values, dtype=np.float32), ds)


def voxel_volume_mm3(ds: xr.Dataset) -> float:
    """Volume of one voxel in mm³: ``|det A|`` of the affine's linear part."""
    return float(abs(np.linalg.det(_affine(ds)[:3, :3])))


# -- masks -------------------------------------------------------------------------------------------------------------------------------


def _as_boolean(ds: xr.Dataset, mask: Mask) -> tuple[np.ndarray, str]:
    """One boolean a voxel of ``ds``, and what to call the mask in a message."""
    if isinstance(mask, str) and schema.MASK_PREFIX + mask in ds.variables:
        return np.asarray(ds[schema.MASK_PREFIX + mask].values, dtype=bool), f"Mask {mask!r}"
    if isinstance(mask, str) and not _looks_like_a_path(mask):
        raise SelectionError(
            f"There is no mask named {mask!r}. {nearest(mask, schema.mask_names(ds))} "
            "Add one with daskdecode.add_mask, or pass an image or its path."
        )
    if isinstance(mask, (str, os.PathLike)):
        return _from_image(ds, mask, Path(mask).name)
    if isinstance(mask, nib.spatialimages.SpatialImage):
        return _from_image(ds, mask, Path(mask.get_filename() or "image").name)
    return _from_array(ds, mask), "The mask"


def _looks_like_a_path(mask: str) -> bool:
    return mask.lower().endswith(_IMAGE_SUFFIXES) or os.sep in mask or Path(mask).is_file()


def _from_array(ds: xr.Dataset, mask: npt.ArrayLike | xr.DataArray) -> np.ndarray:
    keep = np.asarray(mask)
    n_voxels = ds.sizes[schema.VOXEL]
    if keep.dtype != bool:
        raise SelectionError(f"A mask array holds booleans, but this one is {keep.dtype}: compare it with something, such as (values > 0).")
    if keep.shape != (n_voxels,):
        raise SelectionError(f"A mask array has one boolean a voxel: expected shape ({n_voxels},), found {keep.shape}.")
    return np.asarray(keep[_order_of(mask, ds, "The mask")])


def _order_of(values: npt.ArrayLike | xr.DataArray, ds: xr.Dataset, what: str) -> np.ndarray | slice:
    """Where the voxels of ``ds`` stand in values of as many voxels: by their ``voxel`` coordinate, or one after another."""
    if not isinstance(values, xr.DataArray) or schema.VOXEL not in values.coords or schema.VOXEL not in values.dims:
        return slice(None)
    theirs, ours = values[schema.VOXEL].values, ds[schema.VOXEL].values
    if np.array_equal(theirs, ours):
        return slice(None)
    sorted_theirs, place = np.argsort(theirs, kind="stable"), np.empty(len(ours), np.intp)
    sorted_ours = np.argsort(ours, kind="stable")
    if not np.array_equal(theirs[sorted_theirs], ours[sorted_ours]):
        n_other = int((~np.isin(theirs, ours)).sum())
        raise SelectionError(
            f"{what} and the data are not of the same voxels: {n_other} of {len(theirs)} are not among the data's (by their voxel "
            "coordinates). Take both from one dataset, or pass an array without coordinates, in the data's order."
        )
    place[sorted_ours] = sorted_theirs
    return place


def _from_image(ds: xr.Dataset, image: Any, name: str) -> tuple[np.ndarray, str]:
    """A mask image on the data's grid, by the rules of the store, as booleans over the voxels of ``ds``."""
    try:
        inside = load_mask(image, _shape(ds), _affine(ds), name).ravel()
    except GridMismatchError as error:
        raise GridMismatchError(f"{error} Here, run is daskdecode.mean_image(ds).") from None
    keep = inside[ds[schema.VOXEL].values]
    missing = int(inside.sum() - keep.sum())
    if missing and keep.any():
        warnings.warn(
            f"Mask {name!r} has {int(inside.sum())} voxels, of which {missing} are not in these data (they lie outside the mask "
            "that the study was converted or selected with) and are left out.",
            UserWarning,
            stacklevel=4,
        )
    return keep, f"Mask {name!r}"


# -- the grid ----------------------------------------------------------------------------------------------------------------------------


def _shape(ds: xr.Dataset) -> tuple[int, ...]:
    return tuple(int(n) for n in ds.attrs["shape"])


def _affine(ds: xr.Dataset) -> np.ndarray:
    return np.asarray(ds.attrs["affine"], dtype=np.float64).reshape(4, 4)


def _as_storable(values: np.ndarray) -> np.ndarray:
    """Values in a dtype that NIfTI has and that viewers read."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" and values.dtype != np.float64:
        return values.astype(np.float32)
    return values


def _image(volume: np.ndarray, ds: xr.Dataset) -> nib.Nifti1Image:
    """An image on the data's grid, in the data's space (scanner, aligned, Talairach or MNI: the sform code)."""
    # dtype= because nibabel refuses int64 that was not asked for.
    image = nib.Nifti1Image(volume, _affine(ds), dtype=volume.dtype)
    space = int(ds.attrs.get("sform_code", 0)) or int(ds.attrs.get("qform_code", 0)) or "aligned"
    image.set_sform(_affine(ds), code=space)
    image.header.set_xyzt_units("mm", "sec")
    if volume.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], float(ds.attrs["repetition_time"])))
    return image
