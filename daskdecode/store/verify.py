"""Whether a study store holds what its sources hold: everything is read again and compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from dask.delayed import delayed
from zarr.abc.store import Store

from daskdecode.errors import DaskDecodeError, StoreError
from daskdecode.lost import ends_in_words
from daskdecode.progress import watch
from daskdecode.schema import BOLD, LABEL, TIME, VOXEL
from daskdecode.sources.nifti import NiftiHeader, read_header, stream_volumes, voxel_file_order
from daskdecode.store.layout import StoreLike, address, as_store, digest, reason
from daskdecode.store.open import require_complete
from daskdecode.store.progress import counted, forget, volumes_read
from daskdecode.store.read import Whole, read_stored, read_vector
from daskdecode.store.verify_subject import check_subject
from daskdecode.store.write import BLOCK_NBYTES, SOURCE_HEADER, read_ahead


@dataclass(frozen=True)
class RunCheck:
    """What was found for one run.

    Attributes
    ----------
    run : str
        Its group in the store.
    source : str
        The file it came from.
    n_values : int
        Values that were compared.
    problem : str or None
    """

    run: str
    source: str
    n_values: int
    problem: str | None


@dataclass(frozen=True)
class Report:
    """The outcome of :func:`verify`.

    Attributes
    ----------
    store : str
    rows : list of RunCheck
        One a run.
    subjects : list of str
        What is wrong with the coordinates and masks that all runs of a subject share, one sentence each.
    """

    store: str
    rows: list[RunCheck] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every value of every run equals its source, and coordinates and masks are whole."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence a run or mask."""
        return [*self.subjects, *(f"{row.run}: {row.problem}" for row in self.rows if row.problem is not None)]

    def __str__(self) -> str:
        n_values, n_sources = sum(row.n_values for row in self.rows), len({row.source for row in self.rows})
        bad = len(self.problems)
        head = f"{self.store}: {len(self.rows)} runs from {n_sources} files, {n_values:,} values compared, "
        return "\n".join(
            [head + (f"{bad} problem{'s' * (bad > 1)}" if bad else "all equal"), *(f"  {problem}" for problem in self.problems)]
        )


@ends_in_words()
def verify(store: StoreLike, *, progress: bool = True) -> Report:
    """Read all sources of a store again and compare every value that the store holds, bit for bit.

    Coordinates and masks of the subjects are checked too: against the list of voxels, and against their checksums.

    Parameters
    ----------
    store : path, URL or Zarr store
    progress : bool
        Show a bar, if it takes more than two seconds and stderr is a terminal.

    Returns
    -------
    Report
        Damaged chunks, missing or changed sources and differing values are in it, not raised.

    Raises
    ------
    StoreError
        There is no complete study store.

    Notes
    -----
    One task a file, on the active Dask scheduler; each reads its file once. Memory as for :func:`daskdecode.convert`.
    """
    opened = as_store(store, read_only=True)
    plan = require_complete(opened)["plan"]
    runs_of: dict[int, list[dict[str, Any]]] = {}
    for run in plan["runs"]:
        runs_of.setdefault(run["source"], []).append(run)
    tasks = [delayed(_VerifyFile(opened, plan["sources"][n], runs), pure=False, traverse=False)() for n, runs in runs_of.items()]
    paths, n_volumes = [plan["sources"][n]["path"] for n in runs_of], sum(run["stop"] - run["start"] for run in plan["runs"])
    forget(paths)
    with watch("Verifying volumes", lambda: (sum(map(volumes_read, paths)), n_volumes), progress=progress):
        subjects, checked = dask.compute([delayed(check_subject, pure=False)(opened, entry) for entry in plan["subjects"]], tasks)
    rows = {row.run: row for rows in checked for row in rows}
    return Report(address(opened), [rows[run["node"]] for run in plan["runs"]], [problem for found in subjects for problem in found])


@dataclass(frozen=True, eq=False)
class _VerifyFile:
    """Compares one source with its runs; a task, as :class:`~daskdecode.store.write.WriteFile` is."""

    store: Store
    source: dict[str, Any]
    runs: list[dict[str, Any]]

    def __call__(self) -> list[RunCheck]:
        checks = {run["node"]: _RunComparison(self.store, run) for run in self.runs}
        try:
            problem = self._compare(checks)
        except (DaskDecodeError, OSError) as error:
            problem = str(error)
        return [RunCheck(node, self.source["path"], check.n_values, check.problem or problem) for node, check in checks.items()]

    def _compare(self, checks: Mapping[str, _RunComparison]) -> str | None:
        """Stream the source past all its runs; what is returned is wrong with the source itself."""
        if not Path(self.source["path"]).exists():
            return f"its source {self.source['path']} is not there any more, so there is nothing to compare with"
        header, hasher = read_header(self.source["path"]), hashlib.sha256()
        if digest(header.header_bytes) != self.source["header_sha256"]:
            return f"the header of its source {self.source['path']} has changed since"
        for check in checks.values():
            check.begin(header)
        blocks = read_ahead(stream_volumes(header, block_nbytes=BLOCK_NBYTES, hasher=hasher))
        for first, block in counted(blocks, self.source["path"]):
            for check in checks.values():
                check.add(first, block)
        if any(check.sha256 != hasher.hexdigest() for check in checks.values()):
            return f"the source {self.source['path']} has changed since (another SHA-256)"
        return None


class _RunComparison:
    """One run of a store beside blocks of its source. The first difference is kept as `problem`, and ends the comparison."""

    def __init__(self, store: Store, run: Mapping[str, Any]) -> None:
        self._store, self._run, self._node = store, run, run["node"]
        self.n_values = 0
        self.problem: str | None = None
        self.sha256 = ""
        self._bold: Any = None
        self._segment: tuple[int, np.ndarray] = (0, np.empty((0, 0)))

    def begin(self, header: NiftiHeader) -> None:
        """Open the run and compare what is small: header, labels, times."""
        try:
            self._begin(header)
        except (DaskDecodeError, OSError, ValueError, KeyError, RuntimeError) as error:
            self.problem = f"cannot be read: {reason(error)}"

    def _begin(self, header: NiftiHeader) -> None:
        whole = Whole(self._store)
        group: Any = zarr.open_group(whole, path=self._node, mode="r", zarr_format=3, use_consolidated=False)
        attributes = dict(group.attrs)
        self.sha256 = attributes["source"]["sha256"]
        self._bold = group[BOLD]
        voxel = read_vector(self._store, f"{self._node.split('/')[0]}/{VOXEL}")
        self._columns = voxel_file_order(voxel, header.shape)
        labels = np.array(group[LABEL].attrs["labels"])[group[LABEL][:]]
        described = digest([labels.tolist(), group[TIME][:].tolist(), attributes["repetition_time"], attributes["sidecar"]])
        if described != self._run["description_sha256"]:
            self.problem = "labels, times or metadata in the store are not those of the conversion"
        if group[SOURCE_HEADER][:].tobytes() != header.header_bytes:
            self.problem = "the header kept in the store differs from the source's"

    def add(self, first: int, block: np.ndarray) -> None:
        """Compare what a block of volumes, `first` and following of the file, holds of this run."""
        start, stop = max(first, self._run["start"]), min(first + len(block), self._run["stop"])
        while start < stop and self.problem is None:
            try:
                stored = self._stored(start - self._run["start"], stop - self._run["start"])
            except StoreError as error:
                self.problem = str(error)
                return
            values = block[start - first : start - first + len(stored)][:, self._columns].astype(self._bold.dtype, copy=False)
            differ = np.flatnonzero((_bits(values) != _bits(stored)).any(axis=1))
            if len(differ):
                volume = start + int(differ[0])
                self.problem = f"values differ from the source, first in volume {volume} of {Path(self._run['node']).name}'s file"
            self.n_values += stored.size
            start += len(stored)

    def _stored(self, start: int, stop: int) -> np.ndarray:
        """Stored volumes from `start`, at most to `stop` and to the end of their time chunk, which is read once."""
        n = self._bold.chunks[0]
        at = start // n * n
        if self._segment[0] != at or not len(self._segment[1]):
            self._segment = (at, np.empty((0, 0)))  # let go of the last one before reading the next
            self._segment = (at, read_stored(self._bold, slice(at, at + n), self._node, address(self._store)))
        return self._segment[1][start - at : stop - at]


def _bits(values: np.ndarray) -> np.ndarray:
    """Values as integers: equal NaN are equal, 0.0 and -0.0 are not."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
