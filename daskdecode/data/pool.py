"""Several subjects as one dataset: their volumes one after another, in the voxels that all of them have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from daskdecode import schema
from daskdecode.data.mask import Mask, apply_mask
from daskdecode.data.select import select_labels
from daskdecode.errors import GridMismatchError, SelectionError
from daskdecode.store.layout import StoreLike
from daskdecode.store.open import open_study


def pool_subjects(
    study: StoreLike | xr.DataTree | Sequence[xr.Dataset],
    *,
    subjects: Iterable[str] | None = None,
    labels: str | Iterable[str] | None = None,
    mask: Mask | None = None,
) -> xr.Dataset:
    """Put the volumes of several subjects of one space into one dataset.

    Parameters
    ----------
    study : path, URL, Zarr store, DataTree or sequence of Dataset
        A study store, what :func:`daskdecode.open_study` gives, or subject datasets, already selected or scaled as each needs it.
    subjects : iterable of str, optional
        With or without ``sub-``. Default: all.
    labels : str or iterable of str, optional
        Conditions to keep; see :func:`daskdecode.select_labels`.
    mask : str, path, image or array, optional
        Region to keep; see :func:`daskdecode.apply_mask`.

    Returns
    -------
    Dataset
        ``bold(time, voxel)`` with the coordinates of a subject dataset. ``run`` is unique over subjects: ``"sub-01/ses-a/02"``. The
        voxels are those that all subjects have, in the order of the first subject. Masks are left out: subjects may differ in them. Lazy.

    Raises
    ------
    GridMismatchError
        If the grids (shape, affine) of two subjects differ: voxels then mean different places, and the subjects must be brought to one
        space (fMRIPrep's MNI152 outputs) before they are converted.
    SelectionError
        An unknown subject, no voxel that all have, two datasets with the same run of a subject of the same name, and what the
        selections raise.

    Warns
    -----
    UserWarning
        If some subjects have voxels that others lack; those are left out.
    """
    parts = _datasets(study, None if subjects is None else [str(s).removeprefix("sub-") for s in subjects])
    if labels is not None:
        wanted = [labels] if isinstance(labels, str) else list(labels)
        parts = [select_labels(part, wanted) for part in parts]
    if mask is not None:
        parts = [apply_mask(part, mask) for part in parts]
    first = parts[0]
    for part in parts[1:]:
        _check_grid(first, part)
    parts = _common_voxels(parts)
    first = parts[0]
    signals = da.concatenate(
        [part[schema.BOLD].transpose(schema.TIME, schema.VOXEL).data for part in parts], allow_unknown_chunksizes=False
    )
    along_time: dict[str, Any] = {schema.TIME: np.concatenate([part[schema.TIME].values for part in parts])}
    along_time[schema.RUN] = np.concatenate(_runs_of(parts))
    along_time[schema.SUBJECT] = np.concatenate([np.full(part.sizes[schema.TIME], _name(part)) for part in parts])
    if all(schema.LABEL in part.coords for part in parts):
        along_time[schema.LABEL] = np.concatenate([np.asarray(part[schema.LABEL].values).astype(str) for part in parts])
    coords: dict[str, Any] = {name: (schema.TIME, values) for name, values in along_time.items()}
    coords |= {name: first[name].variable for name in (schema.VOXEL, "i", "j", "k") if name in first.coords}
    kept = ("affine", "shape", "qform_code", "sform_code", "repetition_time", "store", "format_version")
    attrs = {name: first.attrs[name] for name in kept if name in first.attrs} | {"subject": ", ".join(map(_name, parts))}
    attrs |= _repetition_times(parts)
    return xr.Dataset({schema.BOLD: ((schema.TIME, schema.VOXEL), signals)}, coords=coords, attrs=attrs)


def _runs_of(parts: Sequence[xr.Dataset]) -> list[np.ndarray]:
    """Name of each volume's run in each dataset, unique over all: what is in one run is scaled, and held out, together."""
    names = [np.char.add(f"sub-{_name(part)}/", schema.run_ids(part)) for part in parts]
    known: set[str] = set()
    for own in map(set, (each.tolist() for each in names)):
        if twice := sorted(known & own):
            raise SelectionError(
                f"Two of the datasets have a run {twice[0]}, and would be taken for one recording. If they are of different people, as "
                "subjects of two studies, give them other names: ds.assign_attrs(subject='b01'). If not, give the subject once."
            )
        known |= own
    return names


def _repetition_times(parts: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Each run's repetition time, by its name among all, only where they differ and are known: as a subject's dataset has it."""
    each: dict[str, Any] = {}
    for part in parts:
        usual, own = part.attrs.get("repetition_time"), part.attrs.get("repetition_times", {})
        each |= {f"sub-{_name(part)}/{run}": own.get(run, usual) for run in dict.fromkeys(schema.run_ids(part).tolist())}
    return {"repetition_times": each} if len(set(each.values())) > 1 and None not in each.values() else {}


def _datasets(study: Any, subjects: list[str] | None) -> list[xr.Dataset]:
    if isinstance(study, Sequence) and not isinstance(study, str):
        found = list(study)
    else:
        tree = study if isinstance(study, xr.DataTree) else open_study(study)
        found = [node.to_dataset() for node in tree.subtree if schema.BOLD in node.ds]
    known = list(dict.fromkeys(_name(ds) for ds in found))
    unknown = [name for name in subjects or () if name not in known]
    if unknown:
        raise SelectionError(f"There is no subject {unknown[0]!r}. Known: {', '.join(map(repr, known))}.")
    found = [ds for ds in found if subjects is None or _name(ds) in subjects]
    if not found:
        raise SelectionError("There are no subjects to pool.")
    return found


def _name(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("subject", "")).removeprefix("sub-")


def _check_grid(a: xr.Dataset, b: xr.Dataset) -> None:
    if list(a.attrs["shape"]) != list(b.attrs["shape"]) or not np.allclose(a.attrs["affine"], b.attrs["affine"], atol=1e-2):
        raise GridMismatchError(
            f"Subjects {_name(a)} and {_name(b)} lie on different grids ({tuple(a.attrs['shape'])} and {tuple(b.attrs['shape'])} voxels, "
            "or another affine): a voxel is not the same place in both. Convert data of one space, such as fMRIPrep's MNI152 outputs."
        )


def _common_voxels(parts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Keep the voxels that all have, in the order of the first."""
    voxels = [np.asarray(part[schema.VOXEL].values) for part in parts]
    if all(np.array_equal(voxels[0], other) for other in voxels[1:]):
        return list(parts)
    common = voxels[0]
    for other in voxels[1:]:
        common = common[np.isin(common, other)]
    if not common.size:
        raise SelectionError(f"The {len(parts)} subjects have no voxel in common.")
    largest = max(map(len, voxels))
    if common.size < largest:
        warnings.warn(
            f"{common.size} voxels are common to all {len(parts)} subjects, of up to {largest}; the others are left out.", stacklevel=3
        )
    kept = []
    for part, own in zip(parts, voxels, strict=True):
        order = np.argsort(own)
        kept.append(part.isel({schema.VOXEL: order[np.searchsorted(own, common, sorter=order)]}))
    return kept
