"""What is in a study store, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from daskdecode.schema import BOLD, LABEL, MASK_PREFIX, VOXEL
from daskdecode.store.layout import StoreLike, address, as_store, read_attributes, require_readable, stored_nbytes
from daskdecode.store.open import missing_runs


def describe(store: StoreLike) -> dict[str, Any]:
    """Describe a study store, complete or not.

    Parameters
    ----------
    store : path, URL or Zarr store

    Returns
    -------
    dict
        JSON-able: ``store``, ``format_version``, ``daskdecode_version``, ``complete``, ``missing`` (groups of runs that are not there
        yet), ``nbytes`` (on disk) and ``subjects``: for each ``subject``, ``sessions``, ``shape``, ``affine``, ``repetition_time``,
        ``n_voxels``, ``n_volumes``, ``masks`` (voxels of each), ``labels`` (volumes of each) and ``runs``: for each ``run``,
        ``session``, ``task``, ``n_volumes``, ``repetition_time``, ``dtype``, ``slope``, ``intercept``, ``labels``, ``nbytes``,
        ``n_nonfinite_voxels``, ``n_constant_voxels``, ``source``. Runs that are missing are left out.

    Raises
    ------
    StoreError
        There is no study store of this format.

    Notes
    -----
    Eager; reads labels and masks, no data.
    """
    opened = as_store(store, read_only=True)
    root = require_readable(opened)
    missing = [] if root["complete"] else missing_runs(opened, root)
    subjects = [_subject(opened, entry, root["plan"]["runs"], set(missing)) for entry in root["plan"]["subjects"]]
    return {
        "store": address(opened),
        "format_version": root["format_version"],
        "daskdecode_version": root["daskdecode_version"],
        "complete": root["complete"],
        "missing": missing,
        "nbytes": stored_nbytes(opened, ""),
        "subjects": [subject for subject in subjects if subject is not None],
    }


def _subject(store: Store, entry: Mapping[str, Any], runs: list[dict[str, Any]], missing: set[str]) -> dict[str, Any] | None:
    node = entry["node"]
    attributes = read_attributes(store, node) or {}
    if "masks" not in attributes:  # a conversion killed before it wrote the subject
        return None
    masks = {
        name: int(np.asarray(zarr.open_array(store, path=f"{node}/{MASK_PREFIX}{name}", mode="r")[:]).sum()) for name in attributes["masks"]
    }
    described = [_run(store, run) for run in runs if run["subject"] == entry["subject"] and run["node"] not in missing]
    labels: dict[str, int] = {}
    for run in described:
        for label, n in run["labels"].items():
            labels[label] = labels.get(label, 0) + n
    return {
        "subject": entry["subject"],
        "sessions": list(dict.fromkeys(run["session"] for run in described if run["session"] is not None)),
        "shape": attributes["shape"],
        "affine": attributes["affine"],
        "repetition_time": attributes["repetition_time"],
        "n_voxels": int(zarr.open_array(store, path=f"{node}/{VOXEL}", mode="r").shape[0]),
        "n_volumes": sum(run["n_volumes"] for run in described),
        "masks": masks,
        "labels": dict(sorted(labels.items())),
        "runs": described,
    }


def _run(store: Store, run: Mapping[str, Any]) -> dict[str, Any]:
    node = run["node"]
    attributes = read_attributes(store, node) or {}
    bold = zarr.open_array(store, path=f"{node}/{BOLD}", mode="r")
    label = zarr.open_array(store, path=f"{node}/{LABEL}", mode="r")
    names: Any = label.attrs["labels"]
    counts = np.bincount(np.asarray(label[:]), minlength=len(names))
    return {
        "run": run["run"],
        "session": run["session"],
        "task": run["task"],
        "n_volumes": int(bold.shape[0]),
        "repetition_time": attributes["repetition_time"],
        "dtype": str(bold.dtype),
        "slope": attributes["slope"],
        "intercept": attributes["intercept"],
        "labels": {name: int(n) for name, n in zip(names, counts, strict=True) if n},
        "nbytes": stored_nbytes(store, node),
        "n_nonfinite_voxels": attributes["n_nonfinite_voxels"],
        "n_constant_voxels": attributes["n_constant_voxels"],
        "source": attributes["source"]["path"],
    }
