"""From runs as named by a person to partitions, the checked units of a conversion.

Everything that can be wrong with the input, short of reading every voxel, is found here, before any long work.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from daskdecode.errors import DaskDecodeError, SourceError
from daskdecode.schema import REST
from daskdecode.sources.events import events_to_labels
from daskdecode.sources.labels import read_label_table
from daskdecode.sources.nifti import NiftiHeader, check_length, read_header
from daskdecode.sources.run import Run, entity_name

_SAME_PLACE_MM: Final = 0.01
_SAME_TIME: Final = 1e-4  # relative: headers hold float32
_N_NAMED: Final = 5

logger = logging.getLogger("daskdecode")


@dataclass(frozen=True, eq=False)
class Partition:
    """One run: contiguous volumes of one file.

    Attributes
    ----------
    subject, session, task, run : str
        `run` is unique within subject and session.
    start, stop : int
        Volumes of the file, `stop` not included.
    labels : ndarray of str, shape (stop - start,)
        Condition of each volume, ``"rest"`` where there is none.
    time_s : ndarray of float64, shape (stop - start,)
        Onset of each volume, seconds from the onset of the first volume that the run acquired, dropped or not.
    repetition_time : float
        Seconds.
    metadata : dict
        Side-car keys, verbatim.
    """

    subject: str
    session: str | None
    task: str | None
    run: str
    start: int
    stop: int
    labels: np.ndarray
    time_s: np.ndarray
    repetition_time: float
    metadata: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SourceFile:
    """One image and the runs in it: streamed once, it fills all its partitions.

    Attributes
    ----------
    path : Path
    header : NiftiHeader
    partitions : tuple of Partition
        In the order of their volumes.
    """

    path: Path
    header: NiftiHeader
    partitions: tuple[Partition, ...]


def resolve(runs: Sequence[Run]) -> list[SourceFile]:
    """Read headers and label tables of runs and check that they make a study.

    Parameters
    ----------
    runs : sequence of Run

    Returns
    -------
    list of SourceFile
        One an image, in the order of `runs`. Eager; reads headers, label and event tables, and no voxels (a gzip file of several
        members is decompressed once, in bounded memory, because only that tells its length).

    Raises
    ------
    SourceError
        An image is missing, 3-D or empty; labels or events do not fit its volumes; the runs of a subject differ in grid or affine;
        two runs have one name or one file; no repetition time is known.
    CorruptFileError
        An image is shorter or longer than its header says.

    Notes
    -----
    Logs a warning where runs have neither labels nor events, and where those of a subject differ in repetition time.
    """
    files, failed = resolve_subjects(runs)
    for error in failed.values():
        raise error
    return files


def resolve_subjects(runs: Sequence[Run]) -> tuple[list[SourceFile], dict[str, Exception]]:
    """:func:`resolve`, of each subject by itself.

    Returns
    -------
    files : list of SourceFile
        Of the subjects with whom nothing is wrong.
    failed : dict of str to exception
        What is wrong with the others, by subject.

    Raises
    ------
    SourceError
        There is no run, or a file is given twice; only case tells two subjects apart.
    """
    if isinstance(runs, Run):
        runs = [runs]
    if not runs:
        raise SourceError("There is no run to read: the list of runs is empty.")
    of_subject: dict[str, list[int]] = defaultdict(list)
    for n, run in enumerate(runs):
        of_subject[run.subject].append(n)
    _check_names_apart("subject", of_subject)
    resolved: dict[int, SourceFile] = {}
    failed: dict[str, Exception] = {}
    for subject, places in of_subject.items():
        try:
            resolved |= zip(places, _resolve_subject([runs[n] for n in places]), strict=True)
        except (DaskDecodeError, OSError) as error:
            failed[subject] = error
    kept = sorted(resolved)
    files = [resolved[n] for n in kept]
    _check_given_once(files)
    _warn_of_unlabelled([runs[n] for n in kept], files)
    _warn_of_repetition_times(files)
    return files, failed


def _resolve_subject(runs: Sequence[Run]) -> list[SourceFile]:
    files = [_resolve_one(run) for run in runs]
    _check_given_once(files)
    _check_sessions(files)
    _check_grid(files)
    files = _name_runs(files)
    for file in files:
        check_length(file.header)
    return files


# --- one file ---------------------------------------------------------------------------------------------------------------------


def _resolve_one(run: Run) -> SourceFile:
    header = read_header(run.bold)
    repetition_time = _repetition_time(run, header)
    table = _label_table(run, header, repetition_time)
    partitions = []
    for name, start, stop in _ranges(run, table):
        acquired = np.arange(stop - start) * repetition_time
        kept = slice(max(run.drop_volumes, 0), stop - start + min(run.drop_volumes, 0))
        partitions.append(
            Partition(
                subject=run.subject,
                session=run.session,
                task=run.task,
                run=name,
                start=start + kept.start,
                stop=start + kept.stop,
                labels=table["label"].to_numpy()[start:stop][kept].astype(np.str_),
                time_s=acquired[kept],
                repetition_time=repetition_time,
                metadata=dict(run.metadata),
            )
        )
    return SourceFile(path=Path(run.bold), header=header, partitions=tuple(partitions))


def _label_table(run: Run, header: NiftiHeader, repetition_time: float) -> pd.DataFrame:
    """One row a volume of the file: ``label``, and ``run`` where the labels come with runs."""
    n = header.n_volumes
    if run.events is not None:
        labels = events_to_labels(run.events, n, repetition_time, gap_s=run.gap_s, hrf_delay_s=run.hrf_delay_s)
        return pd.DataFrame({"label": labels})
    if run.labels is None:
        return pd.DataFrame({"label": np.full(n, REST, dtype=object)})
    table = read_label_table(run.labels)
    if len(table) == n:
        return table
    dropped = abs(run.drop_volumes)
    n_runs = len(_run_starts(table))
    if dropped and len(table) + n_runs * dropped == n:
        return _with_dropped(table, run.drop_volumes)
    raise SourceError(
        f"Run {_name(run)} has {len(table)} labels but {n} volumes in {run.bold}"
        + (f" (drop_volumes={run.drop_volumes}, {n_runs} run{'s' * (n_runs > 1)})" if dropped else "")
        + ". Labels are one a volume:\npass events= to derive them from onsets, or drop volumes on purpose with drop_volumes=."
    )


def _with_dropped(table: pd.DataFrame, drop: int) -> pd.DataFrame:
    """Give labels of the kept volumes only one row for every dropped volume too, at the start or the end of each run."""
    starts = _run_starts(table)
    stops = [*starts[1:], len(table)]
    rows: list[int] = []
    for start, stop in zip(starts, stops, strict=True):
        rows += [start] * max(drop, 0) + list(range(start, stop)) + [stop - 1] * max(-drop, 0)
    return table.iloc[rows].reset_index(drop=True)


def _run_starts(table: pd.DataFrame) -> list[int]:
    """Rows where a run begins."""
    if "run" not in table or table.empty:
        return [0]
    run = table["run"].to_numpy()
    return [0, *(np.flatnonzero(run[1:] != run[:-1]) + 1).tolist()]


def _ranges(run: Run, table: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Name (empty where there is none yet), first volume and end of every run of a file, checked to be a contiguous, non-empty range."""
    starts = _run_starts(table)
    names = [str(table["run"].iloc[s]) for s in starts] if "run" in table else [run.run or ""]
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        rows = [s for s, name in zip(starts, names, strict=True) if name == again[0]]
        raise SourceError(
            f"Run {again[0]!r} in the labels of {run.bold} is not one range of volumes: it begins at volume {rows[0]} and again at "
            f"{rows[1]}. A run is what the scanner acquired in one go; sort the volumes, or mend the run column."
        )
    if run.run is not None and len(names) > 1:
        raise SourceError(
            f"{run.bold} is said to be run {run.run!r}, but its labels name {len(names)} runs. Leave out run=, or the column."
        )
    if "run" in table:
        names = [run.run] if run.run is not None else [entity_name(name, "run", run.bold) for name in names]
    ranges = list(zip(names, starts, [*starts[1:], len(table)], strict=True))
    for name, start, stop in ranges:
        if stop - start <= abs(run.drop_volumes):
            raise SourceError(
                f"Run {name or _name(run)} of {run.bold} has {stop - start} volumes: drop_volumes={run.drop_volumes} leaves none."
            )
    return ranges


def _repetition_time(run: Run, header: NiftiHeader) -> float:
    if run.repetition_time is not None:
        return float(run.repetition_time)
    sidecar = run.metadata.get("RepetitionTime")
    if isinstance(sidecar, int | float) and np.isfinite(sidecar) and sidecar > 0:
        return float(sidecar)
    if header.repetition_time_s is not None:
        return header.repetition_time_s
    raise SourceError(
        f"The repetition time of {run.bold} is not known: neither its header nor a side-car gives a credible one. "
        "Pass repetition_time=, in seconds."
    )


def _name(run: Run) -> str:
    entities = (("sub", run.subject), ("ses", run.session), ("task", run.task), ("run", run.run))
    return "_".join(f"{key}-{value}" for key, value in entities if value is not None)


# --- the study --------------------------------------------------------------------------------------------------------------------


def _check_given_once(files: Iterable[SourceFile]) -> None:
    """No image twice: the same volumes would stand on both sides of a split."""
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(file.header.data_path)
        if real in seen:
            raise SourceError(f"{file.path} is given twice: the same volumes would be used for training and for testing. Give it once.")
        seen.add(real)


def _check_names_apart(what: str, names: Iterable[str]) -> None:
    """Names become folders: some file systems do not tell case apart, nor can Zarr (to 3.1) read what it consolidated of such groups."""
    first_with: dict[str, str] = {}
    for name in names:
        if (other := first_with.setdefault(name.casefold(), name)) != name:
            raise SourceError(f"Only case tells the {what}s {other!r} and {name!r} apart, which folders may not: name them otherwise.")


def _check_sessions(files: Sequence[SourceFile]) -> None:
    """Sessions for all runs of a subject or for none, each with a folder of its own."""
    _check_names_apart("session", (p.session for file in files for p in file.partitions if p.session is not None))
    for file in files:
        if (file.partitions[0].session is None) != (files[0].partitions[0].session is None):
            subject = file.partitions[0].subject
            raise SourceError(f"Subject {subject!r} has runs with a session and runs without ({file.path}). Name it for all, or for none.")


def _check_grid(files: Sequence[SourceFile]) -> None:
    """All runs of a subject lie on one grid, within a hundredth of a millimetre at its corners."""
    reference = files[0].header
    for file in files:
        header = file.header
        where = f"The runs of subject {file.partitions[0].subject!r} do not lie on one grid: {header.path}"
        remedy = "Resample them to one grid first (nilearn.image.resample_to_img), or choose one space with space=."
        if header.shape != reference.shape:
            raise SourceError(f"{where} has shape {header.shape}, {reference.path} has {reference.shape}. {remedy}")
        apart = _corner_distance_mm(header, reference)
        if apart > _SAME_PLACE_MM:
            raise SourceError(f"{where} lies up to {apart:.3g} mm from {reference.path} (their affines differ). {remedy}")


def _corner_distance_mm(a: NiftiHeader, b: NiftiHeader) -> float:
    """How far apart two affines put the corners of the grid, at most."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in a.shape), 1), axis=-1).reshape(-1, 4)
    return float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())


def _name_runs(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Give every run a name of its own within subject and session: its number if it has none, its task in front where tasks share names."""
    partitions = _numbered([p for file in files for p in file.partitions])
    tasks = defaultdict(set)
    for p in partitions:
        tasks[p.subject, p.session, p.run].add(p.task)
    shared = {subject for (subject, _, _), its_tasks in tasks.items() if len(its_tasks) > 1}
    named = [replace(p, run=f"{p.task}-{p.run}") if p.subject in shared and p.task is not None else p for p in partitions]
    first_with: dict[tuple[str, str | None, str], int] = {}
    paths = [file.path for file in files for _ in file.partitions]
    for n, p in enumerate(named):
        other = first_with.setdefault((p.subject, p.session, p.run), n)
        if other != n:
            where = f"subject {p.subject!r}" + (f", session {p.session!r}" if p.session is not None else "")
            raise SourceError(f"Two runs of {where} are called {p.run!r}: {paths[other]} and {paths[n]}. Name them apart with run=.")
    for session in {p.session for p in named}:
        _check_names_apart("run", (p.run for p in named if p.session == session))
    remaining = iter(named)
    return [replace(file, partitions=tuple(next(remaining) for _ in file.partitions)) for file in files]


def _numbered(partitions: Iterable[Partition]) -> list[Partition]:
    position: dict[tuple[str, str | None], int] = defaultdict(int)
    numbered = []
    for p in partitions:
        position[p.subject, p.session] += 1
        numbered.append(p if p.run else replace(p, run=str(position[p.subject, p.session])))
    return numbered


def _warn_of_unlabelled(runs: Iterable[Run], files: Iterable[SourceFile]) -> None:
    """One line that names the runs of which nothing says what happened in them."""
    unlabelled = [p for run, file in zip(runs, files, strict=True) for p in file.partitions if run.labels is None and run.events is None]
    if unlabelled:
        logger.warning("Neither labels nor events for %s: all volumes are labelled %r.", _listed(unlabelled), REST)


def _warn_of_repetition_times(files: Iterable[SourceFile]) -> None:
    """One line a subject whose runs differ: its dataset has one ``repetition_time``, though ``time`` is right in every run."""
    of_subject: dict[str, list[Partition]] = defaultdict(list)
    for file in files:
        of_subject[file.partitions[0].subject] += file.partitions
    for subject, partitions in of_subject.items():
        first = partitions[0].repetition_time
        others = [p for p in partitions if abs(p.repetition_time - first) > _SAME_TIME * first]
        if others:
            times = ", ".join(f"{t:g} s" for t in sorted({p.repetition_time for p in others}))
            logger.warning(
                "Runs of subject %r differ in repetition time: %g s in %s, but %s in %s. Its data name one repetition_time: %g s.",
                subject,
                first,
                _listed(partitions[:1]),
                times,
                _listed(others),
                first,
            )


def _listed(partitions: Sequence[Partition]) -> str:
    """Names of runs, the first few of many."""
    names = [
        "/".join([f"sub-{p.subject}", *([f"ses-{p.session}"] if p.session is not None else []), f"run-{p.run}"])
        for p in partitions[:_N_NAMED]
    ]
    more = len(partitions) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
