"""NIfTI runs into a study store: planned and checked first, then written file by file on the active Dask scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import locket
import numpy as np
from dask.delayed import delayed
from zarr.abc.store import Store

from daskdecode._version import __version__
from daskdecode.errors import DaskDecodeError, SourceError, StoreError
from daskdecode.progress import watch
from daskdecode.schema import FORMAT_VERSION, MASK_PREFIX, VOXEL
from daskdecode.sources.partition import resolve
from daskdecode.sources.run import Run
from daskdecode.store import layout
from daskdecode.store.layout import StoreLike, address, as_store, local_path
from daskdecode.store.masks import find_brain, mean_of_first, select_voxels, with_masks
from daskdecode.store.plan import Plan, SubjectPlan, difference, fingerprints, make_plan
from daskdecode.store.progress import forget, volumes_read
from daskdecode.store.write import WriteFile, is_written

logger = logging.getLogger("daskdecode")


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
        Replace the study store that is there. A folder that is not a study store is never touched.
    resume : bool
        Go on where a conversion of the same sources was interrupted; if it had ended, do nothing.
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
        Something is wrong with the input; found before anything is written.
    StoreError
        The store cannot be written here: it holds other sources, is being written by another process, is not a study store, or the
        disk is full. What has been converted until then is kept, and the same call goes on from there.

    Notes
    -----
    One task a file, on the active Dask scheduler. Each file is read once. Memory of a task: three blocks of 8 MiB and one run of all
    kept voxels, of which at most 96 MiB at a time, whatever the length of the file. A run becomes part of the store in one write of
    its metadata once all its values are there.
    """
    runs = _runs(source, labels, repetition_time, hrf_delay_s, subjects=subjects, sessions=sessions, task=task, space=space, desc=desc)
    plan = make_plan(resolve(runs), mask, rois)
    with _alone(store):
        target = as_store(store)
        try:
            if _claim(target, plan, overwrite=overwrite, resume=resume, progress=progress):
                expected = fingerprints(plan.content)
                _write(target, plan, expected, progress=progress)
                _finalise(target, plan, expected)
        except DaskDecodeError:
            raise
        except OSError as error:
            raise StoreError(
                f"Writing {address(target)} failed: {error}. What was converted so far is kept: free space or mend the connection, "
                "and the same call goes on from there."
            ) from error
    return _returned(store)


def _returned(store: StoreLike) -> Path | str | Store:
    if isinstance(store, Store):
        return store
    return os.fspath(store) if local_path(store) is None else Path(os.fspath(store))


# --- what to convert --------------------------------------------------------------------------------------------------------------


def _runs(source: Any, labels: Any, repetition_time: float | None, hrf_delay_s: float | None, **which: Any) -> list[Run]:
    """The runs that a source names; options that mean nothing for this kind of source are errors, not ignored."""
    options = {"repetition_time": repetition_time, "hrf_delay_s": hrf_delay_s}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    asked = [name for name, value in which.items() if value is not None]
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            if labels is not None:
                raise SourceError(
                    f"{path} is a folder, so labels= cannot say which image it is for: pass dd.Run(image, labels=...) for each."
                )
            from daskdecode.sources.bids import find_runs  # slow to import, and needed only here

            return list(find_runs(path, **which, **given))
        _refuse(asked, f"{path} is one image")
        return [Run(path, labels=labels, **given)]
    runs = [source] if isinstance(source, Run) else list(source)
    wrong = next((run for run in runs if not isinstance(run, Run)), None)
    if wrong is not None:
        raise SourceError(f"Expected a BIDS folder, one 4-D image, or a list of dd.Run, but found {type(wrong).__name__} in the list.")
    _refuse([*asked, *given, *(["labels"] if labels is not None else [])], "source is a list of runs, which say it themselves")
    return runs


def _refuse(options: Sequence[str], why: str) -> None:
    if options:
        raise SourceError(f"{', '.join(f'{name}=' for name in options)} cannot be used here: {why}.")


# --- whose store it is ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(store: StoreLike) -> Iterator[None]:
    """Keep other conversions from a local store. A killed process frees the lock; elsewhere, equal conversions write equal values."""
    path = local_path(store)
    if path is None:
        yield
        return
    if path.is_file():
        raise StoreError(f"{path} is a file; a store is a folder. Choose another name.")
    _refuse_inside_a_store(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = path.with_name(f".{path.name}.lock")
        lock = locket.lock_file(str(mark), timeout=0)
        lock.acquire()
    except locket.LockError as error:
        raise StoreError(f"{path} is being written by another conversion. Wait until it has ended.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error}.") from error
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        lock.release()
        for folder in made:  # an error before anything was written leaves nothing behind
            with contextlib.suppress(OSError):
                folder.rmdir()


def _refuse_inside_a_store(path: Path) -> None:
    for parent in path.parents:
        if (parent / "zarr.json").exists():
            raise StoreError(f"{path} lies inside a Zarr store, {parent}. A study store has a folder of its own.")


def _claim(store: Store, plan: Plan, *, overwrite: bool, resume: bool, progress: bool) -> bool:
    """Write the plan into the root, if the store may be written; False where it is complete already."""
    empty = layout.is_empty(store)
    found = None if empty else layout.read_attributes(store)
    if not empty and (found is None or "plan" not in found or "format_version" not in found):
        raise StoreError(
            f"{address(store)} exists and is not a daskdecode study store, so it is left alone, with overwrite=True too. "
            "Choose another name, or delete it yourself."
        )
    if found is not None and not overwrite:
        layout.require_readable(store)
        _require_same(store, found, plan, resume=resume)
        if found["complete"]:
            logger.info("%s is complete already.", address(store))
            return False
    voxels = _voxels(store, plan, fresh=found is None or overwrite or found.get("clear_first", False), progress=progress)
    root = {"format_version": FORMAT_VERSION, "complete": False, "daskdecode_version": __version__, "plan": plan.content}
    if found is not None and (overwrite or found.get("clear_first", False)):
        # In two steps, so that a conversion killed between them does not take runs of the old store for its own.
        layout.write_group(store, "", {**root, "clear_first": True})
        for name in layout.children(store):
            if name.startswith("sub-"):
                layout.delete_node(store, name)
    layout.write_group(store, "", root)
    for subject in plan.subjects:
        if subject.node in voxels:
            _write_subject(store, subject, voxels[subject.node])
    return True


def _require_same(store: Store, found: Mapping[str, Any], plan: Plan, *, resume: bool) -> None:
    differs = difference(found["plan"], plan.content)
    state = "is complete" if found["complete"] else "was not finished"
    if differs is not None:
        raise StoreError(
            f"{address(store)} holds another conversion, which {state}: {differs}. "
            "Pass overwrite=True to replace it, or choose another name."
        )
    if not resume:
        raise StoreError(f"{address(store)} exists and {state}. Pass resume=True to go on with it, or overwrite=True to begin again.")


# --- subjects ---------------------------------------------------------------------------------------------------------------------


def _voxels(store: Store, plan: Plan, *, fresh: bool, progress: bool) -> dict[str, np.ndarray]:
    """Voxels to keep, in the order on disk, of every subject whose group is not there yet: found before anything is written."""
    entries = {entry["node"]: layout.digest(entry) for entry in plan.content["subjects"]}
    pending = [s for s in plan.subjects if fresh or not is_written(store, s.node, entries[s.node])]
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
        voxels[subject.node] = layout.morton_order(flat, subject.header.shape)
        for name, region in subject.rois.items():
            select_voxels(region, flat, name)
    return voxels


def _write_subject(store: Store, subject: SubjectPlan, voxel: np.ndarray) -> None:
    """Write a subject's voxels and masks; its attributes, last, say that they are there. Deletes what was below."""
    header, node = subject.header, subject.node
    layout.delete_node(store, node)
    layout.write_group(store, node, {})
    layout.write_vector(store, f"{node}/{VOXEL}", voxel, VOXEL, {"long_name": "flat C-order index into the grid"})
    for name, index in zip("ijk", np.unravel_index(voxel, header.shape), strict=True):
        layout.write_vector(store, f"{node}/{name}", index.astype(np.int32), VOXEL)
    for name, region in subject.rois.items():
        layout.write_vector(store, f"{node}/{MASK_PREFIX}{name}", select_voxels(region, voxel, name), VOXEL)
    dtypes = [file.header.dtype.itemsize for file in subject.files for _ in file.partitions]
    lengths = [p.stop - p.start for file in subject.files for p in file.partitions]
    longest = max(layout.time_chunk(n, len(voxel), size) for n, size in zip(lengths, dtypes, strict=True))
    attributes = {
        "fingerprint": layout.digest(subject.to_json()),
        "subject": subject.subject,
        "affine": header.affine.tolist(),
        "shape": list(header.shape),
        "qform_code": header.qform_code,
        "sform_code": header.sform_code,
        "repetition_time": subject.files[0].partitions[0].repetition_time,
        "voxels_per_chunk": layout.voxel_chunk(longest, len(voxel), max(dtypes)),
    }
    layout.write_group(store, node, with_masks(attributes, list(subject.rois)))


# --- runs -------------------------------------------------------------------------------------------------------------------------


def _write(store: Store, plan: Plan, expected: Mapping[str, str], *, progress: bool) -> None:
    """Write all runs that are not there yet, one task a file."""
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
        dask.compute(*[delayed(job, pure=False, traverse=False)() for job in jobs])


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
