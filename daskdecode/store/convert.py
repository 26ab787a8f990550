"""NIfTI runs into a study store: planned and checked first, then written file by file on the active Dask scheduler."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
from dask.delayed import delayed
from zarr.abc.store import Store
from zarr.storage import LocalStore

from daskdecode.errors import DaskDecodeError, FailedSubjectsError, StoreError
from daskdecode.lost import ends_in_words
from daskdecode.progress import watch
from daskdecode.sources.partition import resolve_subjects
from daskdecode.store import layout
from daskdecode.store.claim import claim, one_conversion, require_no_loss, tell_failed
from daskdecode.store.layout import StoreLike, address, as_store, local_path, reason
from daskdecode.store.plan import Plan, fingerprints, make_plan
from daskdecode.store.progress import forget, volumes_read, wait_for
from daskdecode.store.replace import forget_other, place_beside, recover, take_place
from daskdecode.store.request import check_rois, requested_runs
from daskdecode.store.subjects import attempt
from daskdecode.store.write import WriteFile, is_written

logger = logging.getLogger("daskdecode")

_N_NAMED = 5


def convert(
    source: Any,
    store: StoreLike,
    *,
    labels: Any = None,
    mask: Any = "auto",
    rois: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool = True,
    subjects: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    task: str | None = None,
    space: str | None = None,
    desc: str | None = None,
    repetition_time: float | None = None,
    hrf_delay_s: float | None = None,
) -> Path | str | Store:
    """Convert NIfTI runs to a study store that any number of analyses then read.

    Parameters
    ----------
    source : path-like, Run or sequence of Run
        A BIDS folder, runs, or one 4-D image (then with `labels`).
    store : path, URL or Zarr store
        A local folder or any URL that fsspec knows, ``s3://bucket/study.zarr`` for example.
    labels : path-like, DataFrame, Series or sequence of str, optional
        For one 4-D image: a label and, where it holds several runs, a run for each volume. See :class:`daskdecode.Run`.
    mask : "auto", "none", path-like, NIfTI image or ndarray
        Voxels to keep. ``"auto"`` finds the brain in the first volumes of every file with nilearn's ``compute_epi_mask``. A path
        may contain ``{subject}``, and a mapping gives each subject its own image.
    rois : mapping of str to path-like or NIfTI image, optional
        Regions of interest, kept as ``mask_<name>``.
    overwrite : bool
        Replace the study store that is there. A folder that is not a study store is never touched. See the notes.
    resume : bool
        Go on where a conversion of the same sources was interrupted; if it had ended, do nothing but write runs that have gone since.
        Sources that were changed (mended) since the interruption are converted again.
    progress : bool
        Show a bar, if the work takes more than two seconds and stderr is a terminal.
    subjects, sessions, task, space, desc
        Which runs of a BIDS folder, see :func:`daskdecode.find_runs`.
    repetition_time : float, optional
        Seconds, where headers and side-cars do not say or are wrong.
    hrf_delay_s : float, optional
        Seconds by which labels made from events follow the events.

    Returns
    -------
    Path, str or Store
        Where the store is.

    Raises
    ------
    SourceError, GridMismatchError, SelectionError
        Something is wrong with the input of every subject, or of one that a store to be replaced holds; found before anything is written.
    FailedSubjectsError
        Something is wrong with the input of some subjects. It is raised once the others are converted: the store is complete without
        them, names them and the reasons, and the same call, after their sources were mended, adds them.
    StoreError
        The store cannot be written here: it holds other sources, is being written by another process, is not a study store, or the
        disk is full. What has been converted until then is kept, and the same call goes on from there.

    Notes
    -----
    One task a file, on the active Dask scheduler. Each file is read once. Memory of a task: three blocks of 8 MiB and one run of all
    kept voxels, of which at most 96 MiB at a time, whatever the length of the file. A run becomes part of the store in one write of
    its metadata once all its values are there.

    A local store is overwritten by writing the new one beside it, as ``.<name>.new``, and renaming it once it is whole: until then
    the old store stays as it was, and the same call goes on with the new one. There has to be room for both. At a URL, and in a Zarr
    store that is not a plain ``LocalStore``, nothing can be renamed at once: there the old store is deleted first.
    """
    target = as_store(store)
    check_rois(rois)
    which = {"subjects": subjects, "sessions": sessions, "task": task, "space": space, "desc": desc}
    runs = requested_runs(source, labels, repetition_time, hrf_delay_s, **which)
    files, failed = resolve_subjects(runs)
    plan = make_plan(files, mask, rois, failed)
    with one_conversion(store):
        try:
            recover(store)
            require_no_loss(target, plan)
            tell_failed(plan.failed)
            beside = place_beside(store) if overwrite else None
            if beside is None:
                plan = _convert(target, plan, overwrite=overwrite, resume=resume, progress=progress)
            else:
                forget_other(beside, plan, resume=resume)
                plan = _convert(LocalStore(beside), plan, overwrite=False, resume=True, progress=progress)
                require_no_loss(target, plan)
                take_place(store)
        except DaskDecodeError:
            raise
        except Exception as error:
            if not (isinstance(error, OSError) or layout.is_of_storage(error, target)):
                raise
            raise StoreError(
                f"Writing {address(target)} failed: {reason(error)}. What was converted so far is kept: free space or mend the "
                "connection, and the same call goes on from there."
            ) from error
    if plan.failed:
        raise _failed(plan, address(target))
    return _returned(store)


@ends_in_words()
def _convert(target: Store, plan: Plan, *, overwrite: bool, resume: bool, progress: bool) -> Plan:
    """Convert what can be; return the plan without the subjects of whom sources turned out to be damaged."""
    claimed = claim(target, plan, overwrite=overwrite, resume=resume, progress=progress)
    if claimed is None:
        return plan
    damaged = _write(target, claimed, fingerprints(claimed.content), progress=progress)
    if damaged:
        claimed = _leave_out(target, claimed, damaged)
    _finalise(target, claimed, fingerprints(claimed.content))
    return claimed


def _leave_out(store: Store, plan: Plan, damaged: Mapping[str, Exception]) -> Plan:
    """Go on without subjects; the next call tries them again."""
    kept = plan.without(damaged)
    tell_failed(damaged)
    root = layout.read_attributes(store) or {}
    layout.write_group(store, "", {**root, **kept.root})
    for subject in plan.subjects:
        if subject.subject in damaged:
            layout.delete_node(store, subject.node)
    return kept


def _failed(plan: Plan, where: str) -> FailedSubjectsError:
    n, n_all = len(plan.failed), len(plan.failed) + len(plan.subjects)
    reasons = [f"subject {name}: {why}" for name, why in plan.root["failed"].items()]
    shown = " ".join(reasons[:_N_NAMED]) + (f" And {n - _N_NAMED} more." if n > _N_NAMED else "")
    error = FailedSubjectsError(
        f"{n} of {n_all} subjects could not be converted; the others are in {where}, complete. When the sources are mended, the same call "
        f"converts what is missing. {shown[0].upper()}{shown[1:]}"
    )
    error.failed = plan.root["failed"]
    return error


def _returned(store: StoreLike) -> Path | str | Store:
    if isinstance(store, Store):
        return store
    return os.fspath(store) if local_path(store) is None else Path(os.fspath(store))


# --- runs -------------------------------------------------------------------------------------------------------------------------


def _write(store: Store, plan: Plan, expected: Mapping[str, str], *, progress: bool) -> dict[str, Exception]:
    """Write all runs that are not there yet, one task a file; return what is wrong with whose sources."""
    jobs = _jobs(store, plan, expected)
    n_volumes = {job.source["path"]: job.file.header.n_volumes for job in jobs}
    last_run = {job.source["path"]: (job.nodes[-1], job.fingerprints[-1]) for job in jobs}

    def count() -> tuple[int, int]:
        # Tasks of this process say how far they are; of those elsewhere, the store says which have ended.
        for path in [path for path, run in last_run.items() if not volumes_read(path) and is_written(store, *run)]:
            del last_run[path]
        done = sum(volumes_read(path) if path in last_run else n for path, n in n_volumes.items())
        return done, sum(n_volumes.values())

    forget(n_volumes)
    with watch("Converting volumes", count, progress=progress):
        try:
            found = dask.compute(*[delayed(attempt, pure=False, traverse=False)(job) for job in jobs])
        except Exception:
            # Threads go on with what they have begun when another has failed, and would write into the next call's runs.
            wait_for(n_volumes)
            raise
    damaged: dict[str, Exception] = {}
    for job, error in zip(jobs, found, strict=True):
        if error is not None:
            damaged.setdefault(job.file.partitions[0].subject, error)
    return damaged


def _jobs(store: Store, plan: Plan, expected: Mapping[str, str]) -> list[WriteFile]:
    sources, runs = plan.content["sources"], iter(plan.content["runs"])
    files = [(subject, file) for subject in plan.subjects for file in subject.files]
    jobs = []
    for (subject, file), source in zip(files, sources, strict=True):
        nodes = tuple(next(runs)["node"] for _ in file.partitions)
        jobs.append(WriteFile(store, file, source, nodes, tuple(expected[n] for n in nodes), subject.node, subject.labels))
    return jobs


def _finalise(store: Store, plan: Plan, expected: Mapping[str, str]) -> None:
    """Declare the store complete, if every run is there."""
    found = dict(zip(expected, layout.read_many(store, list(expected)), strict=True))
    missing = [node for node, attributes in found.items() if (attributes or {}).get("fingerprint") != expected[node]]
    if missing:
        raise StoreError(
            f"{address(store)} lacks {len(missing)} of {len(expected)} runs after the conversion ({missing[0]}): was it changed by another "
            "process, or do the workers not see the same store?"
        )
    for node, attributes in found.items():
        for what in ("nonfinite", "constant"):
            if n := (attributes or {}).get(f"n_{what}_voxels", 0):
                logger.log(logging.WARNING if what == "nonfinite" else logging.INFO, "%s has %d %s voxels.", node, n, what)
    layout.consolidate(store, [subject.node for subject in plan.subjects])
    layout.set_complete(store)
