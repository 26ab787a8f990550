"""The part of a conversion that all runs of a subject share: which voxels are kept, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import dask
import numpy as np
from dask.delayed import delayed
from zarr.abc.store import Store

from daskdecode.errors import StoreError
from daskdecode.progress import watch
from daskdecode.schema import MASK_PREFIX, VOXEL
from daskdecode.store import layout
from daskdecode.store.masks import describe_mask, find_brain, mean_of_first, select_voxels, tell_outside, with_masks
from daskdecode.store.plan import Plan, SubjectPlan
from daskdecode.store.read import read_vector
from daskdecode.store.write import is_written

logger = logging.getLogger("daskdecode")


def voxels_to_write(store: Store, plan: Plan, *, fresh: bool, changed: Collection[str], progress: bool) -> dict[str, np.ndarray]:
    """Voxels to keep, in the order on disk, of every subject whose group has to be written: found before anything is.

    Parameters
    ----------
    store : Store
    plan : Plan
    fresh : bool
        Whether everything is written, whatever is there.
    changed : collection of str
        Subjects of whom sources have changed since their groups were written: those for whom it makes no difference are left out.
    progress : bool

    Returns
    -------
    dict of ndarray of int64
        By the subject's node.
    """
    pending = [s for s in plan.subjects if fresh or s.subject in changed or not _is_written(store, s)]
    automatic = [s for s in pending if isinstance(s.mask, str) and s.mask == "auto"]
    tasks = [
        delayed(find_brain, pure=False)([delayed(mean_of_first, pure=False)(f.header) for f in s.files], s.header.affine, s.subject)
        for s in automatic
    ]
    with watch("Finding the brain", lambda: (0, None), progress=progress):
        brains = dict(zip([s.node for s in automatic], dask.compute(*tasks), strict=True))
    voxels = {}
    for subject in pending:
        inside = np.ones(subject.header.shape, bool) if isinstance(subject.mask, str) else subject.mask
        flat = np.flatnonzero(brains.get(subject.node, inside))
        voxel = layout.morton_order(flat, subject.header.shape)
        regions = {name: (region, select_voxels(region, voxel, name)) for name, region in subject.rois.items()}
        if subject.subject in changed and not fresh and _is_same(store, subject, voxel):
            continue
        for name, (region, selected) in regions.items():
            tell_outside(name, subject.subject, region, selected)
        if subject.node in brains:
            logger.info("Subject %s: mask='auto' keeps %d of %d voxels (%.0f%%).", *_kept(subject, flat))
        voxels[subject.node] = voxel
    return voxels


def _kept(subject: SubjectPlan, flat: np.ndarray) -> tuple[str, int, int, float]:
    n_all = int(np.prod(subject.header.shape))
    return subject.subject, len(flat), n_all, 100 * len(flat) / n_all


def _is_written(store: Store, subject: SubjectPlan) -> bool:
    return is_written(store, subject.node, layout.digest(subject.to_json()))


def _is_same(store: Store, subject: SubjectPlan, voxel: np.ndarray) -> bool:
    """Whether the group on disk is what would be written now."""
    try:
        found = layout.read_attributes(store, subject.node) or {}
        return _attributes(subject, voxel).items() <= found.items() and np.array_equal(read_vector(store, f"{subject.node}/{VOXEL}"), voxel)
    except StoreError:
        return False


def write_subject(store: Store, subject: SubjectPlan, voxel: np.ndarray) -> None:
    """Write a subject's voxels and masks; its attributes, last, say that they are there. Deletes what was below."""
    header, node = subject.header, subject.node
    layout.delete_node(store, node)
    layout.write_group(store, node, {})
    layout.write_vector(store, f"{node}/{VOXEL}", voxel, VOXEL, {"long_name": "flat C-order index into the grid"})
    for name, index in zip("ijk", np.unravel_index(voxel, header.shape), strict=True):
        layout.write_vector(store, f"{node}/{name}", index.astype(np.int32), VOXEL)
    described = {}
    for name, region in subject.rois.items():
        selected = select_voxels(region, voxel, name)
        layout.write_vector(store, f"{node}/{MASK_PREFIX}{name}", selected, VOXEL)
        described[name] = describe_mask(region, selected)
    layout.write_group(store, node, with_masks(_attributes(subject, voxel), described))


def _attributes(subject: SubjectPlan, voxel: np.ndarray) -> dict[str, Any]:
    """What a subject's group says, without its masks."""
    header = subject.header
    dtypes = [file.header.dtype.itemsize for file in subject.files for _ in file.partitions]
    lengths = [p.stop - p.start for file in subject.files for p in file.partitions]
    longest = max(layout.time_chunk(n, len(voxel), size) for n, size in zip(lengths, dtypes, strict=True))
    return {
        "fingerprint": layout.digest(subject.to_json()),
        "subject": subject.subject,
        "affine": header.affine.tolist(),
        "shape": list(header.shape),
        "qform_code": header.qform_code,
        "sform_code": header.sform_code,
        "repetition_time": subject.files[0].partitions[0].repetition_time,
        "voxels_per_chunk": layout.voxel_chunk(longest, len(voxel), max(dtypes)),
    }
