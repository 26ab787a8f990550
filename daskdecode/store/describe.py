"""What is in a study store, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from zarr.abc.store import Store

from daskdecode.errors import StoreError
from daskdecode.schema import BOLD, LABEL, MASK_PREFIX, VOXEL
from daskdecode.store.layout import StoreLike, address, as_store, read_attributes, require_readable, stored_nbytes
from daskdecode.store.open import REPAIR, missing_runs, require_all
from daskdecode.store.read import open_array, read_stored, read_vector


def describe(store: StoreLike) -> dict[str, Any]:
    """Describe a study store, complete or not.

    Parameters
    ----------
    store : path, URL or Zarr store

    Returns
    -------
    dict
        JSON-able: ``store``, ``format_version``, ``daskdecode_version``, ``complete``, ``missing`` (groups of runs that are not there
        yet), ``failed`` (why subjects could not be converted, by theirs), ``nbytes`` (on disk) and ``subjects``: for each ``subject``,
        ``sessions``, ``shape``, ``affine``, ``repetition_time`` (of its first run), ``n_voxels``, ``n_volumes``, ``masks`` (voxels of each
        that are kept), ``mask_sizes`` (voxels of each, kept or not), ``labels`` (volumes of each) and ``runs``: for each ``run``,
        ``session``, ``task``, ``n_volumes``, ``repetition_time``,
        ``dtype``, ``slope``, ``intercept``, ``labels``, ``nbytes``, ``n_nonfinite_voxels``, ``n_constant_voxels``, ``source``. Runs that
        are missing are left out.

    Raises
    ------
    StoreError
        There is no study store of this format, or it is damaged.

    Notes
    -----
    Eager; reads labels and masks, no data.
    """
    opened = as_store(store, read_only=True)
    root = require_readable(opened)
    missing = missing_runs(opened, root)
    if root["complete"]:
        require_all(opened, missing)
    subjects = [
        _subject(opened, entry, root["plan"]["runs"], set(missing), complete=root["complete"]) for entry in root["plan"]["subjects"]
    ]
    return {
        "store": address(opened),
        "format_version": root["format_version"],
        "daskdecode_version": root["daskdecode_version"],
        "complete": root["complete"],
        "missing": missing,
        "failed": dict(root.get("failed", {})),
        "nbytes": stored_nbytes(opened, ""),
        "subjects": [subject for subject in subjects if subject is not None],
    }


def _subject(
    store: Store, entry: Mapping[str, Any], runs: list[dict[str, Any]], missing: set[str], *, complete: bool
) -> dict[str, Any] | None:
    node = entry["node"]
    attributes = read_attributes(store, node) or {}
    if "masks" not in attributes:
        if complete:
            raise StoreError(f"{address(store)} lacks the group of subject {entry['subject']!r}, {node}. {REPAIR}")
        return None  # a conversion killed before it wrote the subject
    masks = {name: int(read_vector(store, f"{node}/{MASK_PREFIX}{name}").sum()) for name in attributes["masks"]}
    whole = {name: found["n_voxels"] for name, found in attributes.get("mask_details", {}).items()}
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
        "n_voxels": int(open_array(store, f"{node}/{VOXEL}").shape[0]),
        "n_volumes": sum(run["n_volumes"] for run in described),
        "masks": masks,
        "mask_sizes": masks | whole,
        "labels": dict(sorted(labels.items())),
        "runs": described,
    }


def _run(store: Store, run: Mapping[str, Any]) -> dict[str, Any]:
    node = run["node"]
    attributes = read_attributes(store, node) or {}
    bold, label = open_array(store, f"{node}/{BOLD}"), open_array(store, f"{node}/{LABEL}")
    names: Any = label.attrs["labels"]
    counts = np.bincount(read_stored(label, slice(None), f"{node}/{LABEL}", address(store)), minlength=len(names))
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
