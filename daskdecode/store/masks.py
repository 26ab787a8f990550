"""Which voxels a store keeps, and regions of interest among them."""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import nibabel as nib
import numpy as np

from daskdecode.errors import CorruptFileError, GridMismatchError, SelectionError, StoreError, nearest
from daskdecode.quiet import quiet
from daskdecode.schema import MASK_PREFIX, VOXEL
from daskdecode.sources.nifti import NiftiHeader, stream_volumes
from daskdecode.store.layout import (
    StoreLike,
    as_store,
    consolidate,
    digest,
    read_attributes,
    reason,
    require_readable,
    write_group,
    write_vector,
)
from daskdecode.store.read import read_vector

logger = logging.getLogger("daskdecode")

_N_VOLUMES_AUTO: Final = 20
_SAME_AFFINE_MM: Final = 1e-2
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


def add_mask(store: StoreLike, name: str, image: Any, subject: str | None = None, *, overwrite: bool = False) -> None:
    """Add a region of interest to a study store, as ``mask_<name>(voxel)``.

    Parameters
    ----------
    store : path, URL or Zarr store
    name : str
        Letters, digits, ``_``, ``.`` and ``-``.
    image : path-like, NIfTI image or ndarray, shape (nx, ny, nz)
        Non-zero inside; or a mapping from subjects to such. On the subjects' own grid.
    subject : str, optional
        By default every subject (of the mapping, where there is one).
    overwrite : bool
        Replace a mask of that name.

    Raises
    ------
    StoreError
        The store is not complete, or has a mask of that name.
    GridMismatchError
        The image lies on another grid than a subject's runs.
    SelectionError
        No such subject; the image is not a mask; or it has no voxel in common with those that the store keeps.
        Nothing has been written then.

    Notes
    -----
    Eager. Reads the image and the list of voxels, no data.
    """
    check_name(name)
    opened = as_store(store)
    root = require_readable(opened)
    if not root["complete"]:
        raise StoreError(f"The conversion to {store} has not finished: end it with convert(source, store) before adding masks.")
    nodes = {entry["subject"]: entry["node"] for entry in root["plan"]["subjects"]}
    added = {}
    for wanted in _subjects_of(image, subject, nodes):
        attributes = read_attributes(opened, nodes[wanted]) or {}
        if name in attributes["masks"] and not overwrite:
            raise StoreError(f"Subject {wanted!r} in {store} has a mask {name!r} already: choose another name, or pass overwrite=True.")
        inside = load_mask(for_subject(image, wanted), attributes["shape"], np.array(attributes["affine"]), name)
        voxel = read_vector(opened, f"{nodes[wanted]}/{VOXEL}")
        added[nodes[wanted]] = (wanted, attributes, inside, select_voxels(inside, voxel, name))
    for node, (wanted, attributes, inside, selected) in added.items():
        tell_outside(name, wanted, inside, selected)
        write_vector(opened, f"{node}/{MASK_PREFIX}{name}", selected, VOXEL)
        write_group(opened, node, with_masks(attributes, {name: describe_mask(inside, selected)}))
    consolidate(opened, nodes.values())


def _subjects_of(image: Any, subject: str | None, known: Mapping[str, str]) -> list[str]:
    if subject is None:
        wanted = [str(s) for s in image] if isinstance(image, Mapping) else list(known)
    else:
        wanted = [str(subject).removeprefix("sub-")]
    for s in wanted:
        if s not in known:
            raise SelectionError(f"Subject {s!r} is not in the store. {nearest(s, known)}")
    return wanted


def with_masks(attributes: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A subject's attributes with these masks too; ``coordinates`` tells plain xarray that they are coordinates."""
    described = {**attributes.get("mask_details", {}), **added}
    masks = sorted({*attributes.get("masks", []), *added})
    coordinates = " ".join(["i", "j", "k", *(f"{MASK_PREFIX}{name}" for name in masks)])
    return {**attributes, "masks": masks, "mask_details": dict(sorted(described.items())), "coordinates": coordinates}


def describe_mask(inside: np.ndarray, selected: np.ndarray) -> dict[str, Any]:
    """What a store says of a mask: how many voxels its image has, kept or not, and a checksum of what is kept of it."""
    return {"n_voxels": int(inside.sum()), "sha256": digest(selected.tobytes())}


def tell_outside(name: str, subject: str, inside: np.ndarray, selected: np.ndarray) -> None:
    """Warn where a mask has voxels that the store does not keep."""
    if (n := int(inside.sum())) > (kept := int(selected.sum())):
        logger.warning("Mask %r of subject %s has %d voxels, of which %d %s kept.", name, subject, n, kept, "is" if kept == 1 else "are")


def check_name(name: str) -> None:
    """Raise where a mask's name could not be a variable's."""
    if not _NAME.fullmatch(name):
        raise SelectionError(f"{name!r} cannot name a mask: use letters, digits, '_', '.' and '-'.")


def for_subject(image: Any, subject: str) -> Any:
    """What was given for a subject: an entry of a mapping, a path with ``{subject}`` in it, or one image for all."""
    if isinstance(image, Mapping):
        if subject not in image:
            raise SelectionError(f"A mask is given for each subject, but none for {subject!r}. {nearest(subject, image)}")
        return image[subject]
    if isinstance(image, str | os.PathLike):
        return os.fspath(image).replace("{subject}", subject)
    return image


def load_mask(image: Any, shape: Sequence[int], affine: np.ndarray, name: str) -> np.ndarray:
    """Read a mask image and check that it is one, on the grid of the data.

    Parameters
    ----------
    image : path-like, NIfTI image or ndarray
        An array is taken to lie on the grid of the data.
    shape, affine : sequence of three ints; ndarray, shape (4, 4), mm
        The grid of the data.
    name : str
        For messages.

    Returns
    -------
    ndarray of bool, shape `shape`
        Eager.

    Raises
    ------
    GridMismatchError, SelectionError
    """
    where = f"Mask {name!r}" + (f" ({os.fspath(image)})" if isinstance(image, str | os.PathLike) else "")
    values = np.asarray(image) if isinstance(image, np.ndarray) else _read_image(image, where, affine)
    if values.dtype.kind not in "buif":
        raise SelectionError(f"{where} has {values.dtype} values: expected numbers, zero outside and one other inside.")
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.shape != tuple(shape):
        raise _other_grid(where, f"has shape {values.shape}, but the runs have {tuple(shape)}")
    found = np.unique(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.unique(values)
    inside = np.isfinite(values) & (values != 0)
    if not inside.any():
        raise SelectionError(f"{where} is empty: every voxel is zero.")
    if len(found[found != 0]) > 1:
        raise SelectionError(
            f"{where} has {len(found)} different values ({found[0]} to {found[-1]}); a mask has zero and one other. "
            "Threshold it (image > 0.5), or pick one label of an atlas (atlas == 3), and pass that."
        )
    return np.asarray(inside)


def _read_image(image: Any, where: str, affine: np.ndarray) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        try:
            image = nib.load(os.fspath(image))
        except (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
            raise SelectionError(f"{where} cannot be read: {reason(error)}. Expected a 3-D NIfTI image on the grid of the runs.") from error
    if not hasattr(image, "dataobj"):
        raise SelectionError(f"{where} is a {type(image).__name__}: expected the path of a NIfTI image, an image, or a 3-D array.")
    apart = float(np.abs(image.affine - affine).max())
    if image.ndim > 2 and apart > _SAME_AFFINE_MM:
        raise _other_grid(where, f"has another affine than the runs (up to {apart:.3g} apart)")
    try:
        return np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CorruptFileError(f"{where} ends early or is damaged ({reason(error)}): copy it again from its source.") from error


def _other_grid(where: str, how: str) -> GridMismatchError:
    return GridMismatchError(
        f"{where} {how}, so it lies on another voxel grid. Resample it and pass the result: "
        "nilearn.image.resample_to_img(mask, run, interpolation='nearest')."
    )


def select_voxels(inside: np.ndarray, voxel: np.ndarray, name: str) -> np.ndarray:
    """A 3-D mask as booleans over the voxels of a store.

    Raises
    ------
    SelectionError
        None of the mask's voxels is in the store.
    """
    selected = np.asarray(inside.ravel()[voxel])
    if not selected.any():
        raise SelectionError(
            f"None of the {int(inside.sum())} voxels of mask {name!r} is among the {len(voxel)} that the store keeps. "
            "Is it a mask of another subject or space? To keep all voxels, convert with mask='none'."
        )
    return selected


# --- the brain, found ---------------------------------------------------------------------------------------------------------------


def mean_of_first(header: NiftiHeader) -> np.ndarray:
    """Mean of the first volumes of an image, scaled.

    Returns
    -------
    ndarray of float64, shape `header.shape`
        Non-finite values count as zero. Eager; reads the first twenty volumes, one block of at most that size in memory.
    """
    total = np.zeros(header.n_voxels)
    n = 0
    blocks = stream_volumes(header, block_nbytes=min(_N_VOLUMES_AUTO * header.volume_nbytes, 16 * 2**20))
    for _, block in blocks:
        block = block[: _N_VOLUMES_AUTO - n]
        total += np.nan_to_num(block.astype(np.float64), posinf=0, neginf=0).sum(axis=0)
        n += len(block)
        if n == _N_VOLUMES_AUTO:
            break
    mean = total / n * header.slope + header.intercept
    return np.asarray(mean.reshape(header.shape, order="F"))


def find_brain(means: Sequence[np.ndarray], affine: np.ndarray, subject: str) -> np.ndarray:
    """The brain in the mean image of a subject, by :func:`nilearn.masking.compute_epi_mask`.

    Parameters
    ----------
    means : sequence of ndarray, shape (nx, ny, nz)
        One a file.
    affine : ndarray, shape (4, 4), mm
    subject : str
        For messages.

    Returns
    -------
    ndarray of bool, shape (nx, ny, nz)

    Raises
    ------
    SelectionError
        Nothing was found.
    """
    from nilearn.masking import compute_epi_mask  # slow to import, and needed only here

    mean = nib.Nifti1Image(np.mean(means, axis=0), affine)
    if np.ptp(mean.dataobj) == 0:
        raise _no_brain(subject, "every voxel has one value")
    # Opening erodes two voxels from every side: a grid this thin would have nothing left.
    opening = 2 if min(mean.shape) >= 8 else False
    with quiet(Warning):  # an empty mask is an error below
        try:
            found = compute_epi_mask(mean, opening=opening)
        except (ValueError, IndexError) as error:
            raise _no_brain(subject, str(error)) from error
    inside: np.ndarray = np.asarray(found.dataobj).astype(bool)
    if not inside.any():
        raise _no_brain(subject, "the mask is empty")
    return inside


def _no_brain(subject: str, why: str) -> SelectionError:
    return SelectionError(
        f"mask='auto' found no brain in the mean image of subject {subject!r} ({why}). "
        "Pass a brain mask as mask=<image or path>, or mask='none' to keep every voxel."
    )
