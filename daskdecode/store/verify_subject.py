"""Whether what all runs of a subject share, the list of voxels, their coordinates and masks, is whole and as it was planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from zarr.abc.store import Store

from daskdecode.errors import StoreError
from daskdecode.schema import MASK_PREFIX, VOXEL
from daskdecode.store.layout import digest, read_attributes
from daskdecode.store.read import read_vector


def check_subject(store: Store, entry: Mapping[str, Any]) -> list[str]:
    """Read a subject's small arrays and check them.

    Parameters
    ----------
    store : Store
    entry : mapping
        The subject's entry in the plan.

    Returns
    -------
    list of str
        What is wrong, a sentence an array.
    """
    node = entry["node"]
    try:
        attributes, voxel = read_attributes(store, node) or {}, read_vector(store, f"{node}/{VOXEL}")
    except StoreError as error:
        return [f"{node}: {error}"]
    if "masks" not in attributes:
        return [f"{node}: its group is missing"]
    shape = tuple(attributes["shape"])
    if len(np.unique(voxel)) != len(voxel) or voxel.min() < 0 or voxel.max() >= np.prod(shape):
        return [f"{node}/{VOXEL}: holds voxels twice, or some that are not on the grid"]
    names = [*"ijk", *(f"{MASK_PREFIX}{name}" for name in attributes["masks"])]
    found = [f"{node}/{VOXEL}: {problem}" for problem in _kept(entry, voxel, shape)]
    for name in names:
        try:
            values = read_vector(store, f"{node}/{name}")
        except StoreError as error:
            found.append(f"{node}/{name}: {error}")
            continue
        found += [f"{node}/{name}: {problem}" for problem in _small(name, values, voxel, attributes)]
    return found


def _kept(entry: Mapping[str, Any], voxel: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
    """Compare the voxels with the brain mask of the conversion; one that was found (``auto``) is not kept anywhere else."""
    if entry["mask"] == "none" and len(voxel) != np.prod(shape):
        yield "is not every voxel, as mask='none' asked for"
    if entry["mask"].startswith("sha256:") and _image_digest(voxel, shape) != entry["mask"]:
        yield "are not the voxels of the brain mask of the conversion"


def _small(name: str, values: np.ndarray, voxel: np.ndarray, attributes: Mapping[str, Any]) -> Iterator[str]:
    shape = tuple(attributes["shape"])
    if name in "ijk":
        if not np.array_equal(values, np.unravel_index(voxel, shape)["ijk".index(name)]):
            yield f"does not agree with {VOXEL}"
        return
    name = name.removeprefix(MASK_PREFIX)
    details = attributes.get("mask_details", {}).get(name)
    if values.shape != voxel.shape or not values.any():
        yield "is not a mask of the voxels that are kept"
    elif details is not None and digest(values.tobytes()) != details["sha256"]:
        yield "is not the mask that was written (another checksum)"


def _image_digest(voxel: np.ndarray, shape: tuple[int, ...]) -> str:
    """The fingerprint that a plan gives a brain mask of these voxels."""
    image = np.zeros(shape, bool)
    image.ravel()[voxel] = True
    return f"sha256:{digest(image.tobytes())}"
