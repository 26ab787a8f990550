"""The part of a conversion that all runs of a subject share: which voxels are kept, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import dask
import numpy as np
from dask.delayed import delayed
from zarr.abc.store import Store

from daskdecode.errors import DaskDecodeError, SelectionError, SourceError, StoreError
from daskdecode.progress import watch
from daskdecode.schema import MASK_PREFIX, VOXEL
from daskdecode.store import layout
from daskdecode.store.masks import describe_mask, find_brain, mean_of_first, select_voxels, tell_outside, with_masks
from daskdecode.store.plan import Plan, SubjectPlan
from daskdecode.store.read import read_vector
from daskdecode.store.write import is_written

logger = logging.getLogger("daskdecode")


def voxels_to_write(
    store: Store, plan: Plan, *, fresh: bool, changed: Collection[str], progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, Exception]]:
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
    voxels : dict of ndarray of int64
        By the subject's node.
    failed : dict of str to exception
        Subjects of whom no voxel can be told, and why.
    """
    pending = [s for s in plan.subjects if fresh or s.subject in changed or not _is_written(store, s)]
    brains = _brains([s for s in pending if isinstance(s.mask, str) and s.mask == "auto"], progress=progress)
    voxels: dict[str, np.ndarray] = {}
    failed: dict[str, Exception] = {}
    for subject in pending:
        try:
            voxel = _voxels(subject, brains.get(subject.node))
            regions = {name: (region, select_voxels(region, voxel, name)) for name, region in subject.rois.items()}
        except DaskDecodeError as error:
            failed[subject.subject] = error
            continue
        if subject.subject in changed and not fresh and _is_same(store, subject, voxel):
            continue
        for name, (region, selected) in regions.items():
            tell_outside(name, subject.subject, region, selected)
        if subject.node in brains:
            logger.info("Subject %s: mask='auto' keeps %d of %d voxels (%.0f%%).", *_kept(subject, voxel))
        voxels[subject.node] = voxel
    return voxels, failed


def _brains(subjects: Sequence[SubjectPlan], *, progress: bool) -> dict[str, np.ndarray | Exception]:
    """The brain of each subject, by its node, or what is wrong with its images."""
    lazily = delayed(attempt, pure=False)
    tasks = [lazily(find_brain, [lazily(mean_of_first, f.header) for f in s.files], s.header.affine, s.subject) for s in subjects]
    with watch("Finding the brain", lambda: (0, None), progress=progress):
        return dict(zip([s.node for s in subjects], dask.compute(*tasks), strict=True))


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; what is wrong with a source, here or in an argument, is returned and stops nobody else."""
    listed = [item for argument in arguments for item in (argument if isinstance(argument, list) else [argument])]
    for item in listed:
        if isinstance(item, Exception):
            return item
    try:
        return function(*arguments)
    except (SourceError, SelectionError) as error:
        return error


def _voxels(subject: SubjectPlan, brain: np.ndarray | Exception | None) -> np.ndarray:
    """Voxels to keep, in the order on disk."""
    if isinstance(brain, Exception):
        raise brain
    inside = np.ones(subject.header.shape, bool) if isinstance(subject.mask, str) else subject.mask
    return layout.morton_order(np.flatnonzero(inside if brain is None else brain), subject.header.shape)


def _kept(subject: SubjectPlan, voxel: np.ndarray) -> tuple[str, int, int, float]:
    n_all = int(np.prod(subject.header.shape))
    return subject.subject, len(voxel), n_all, 100 * len(voxel) / n_all


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
        # What mask="auto" finds is known from the images only, and to another version may be other voxels.
        "voxel_sha256": layout.digest(voxel.tobytes()),
        "subject": subject.subject,
        "affine": header.affine.tolist(),
        "shape": list(header.shape),
        "qform_code": header.qform_code,
        "sform_code": header.sform_code,
        "repetition_time": subject.files[0].partitions[0].repetition_time,
        "voxels_per_chunk": layout.voxel_chunk(longest, len(voxel), max(dtypes)),
    }
