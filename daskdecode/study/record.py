"""What became of each subject, kept beside the results: a rerun does what is missing or changed, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from nibabel.spatialimages import SpatialImage

from daskdecode.alone import alone, began
from daskdecode.errors import DaskDecodeError
from daskdecode.models.content import shown
from daskdecode.results.result import json_writer, write_files
from daskdecode.schema import VOXEL

FOLDER: Final = ".daskdecode"
"""Where the records are, below the results; BIDS validators and ``ls`` pass over it."""


class Kept:
    """The record of one subject in a folder of results.

    Parameters
    ----------
    folder : Path
        Of the results.
    subject : str
    session : str or None
    """

    def __init__(self, folder: Path, subject: str, session: str | None) -> None:
        self.results, self.folder = folder, folder / FOLDER
        self.name = f"sub-{subject}" + (f"_ses-{session.removeprefix('ses-')}" if session is not None else "")

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from the results of this subject, and from the whole study; see :func:`claimed`."""
        return claimed(self.results, self.name, of="study")

    def require_latest(self, since: float) -> None:
        """Give way to a run that has claimed the results after the one that began at a time, seconds since the epoch.

        Raises
        ------
        DaskDecodeError
            There is one: the earlier run was killed, and only a worker of another machine goes on with what it was given.
        """
        if max(claimed_at(self.results, part) for part in ("study", self.name)) > since:
            raise DaskDecodeError(f"A later run writes to {self.results}: this one, whose driver has ended, gives way.")

    def forget(self) -> None:
        """Say that nothing is done yet: before results change."""
        self._path.unlink(missing_ok=True)

    def keep(self, outcome: Mapping[str, Any]) -> None:
        """Write the outcome, once the results are there: what it names is whole."""
        done = outcome["status"] == "done"
        told = {"written": self._content(outcome["files"])} if done else {}
        write_files(self.folder, {self._path.name: json_writer({**outcome, **told})})
        if done:
            for partial in self.folder.glob(f"{self.name}.*.npz"):
                partial.unlink(missing_ok=True)

    def partial(self, fingerprint: str) -> Path:
        """Where permutations that are done are kept until all are; those of other parameters are deleted."""
        return partial(self.results, self.name, fingerprint)

    def done(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the outcome, if the subject was decoded just so and all its files are still there, and of this analysis."""
        outcome = self.read()
        try:
            whole = (
                outcome is not None
                and outcome["status"] == "done"
                and outcome["fingerprint"] == fingerprint
                and all((self.results / name).is_file() for name in outcome["files"])
                and outcome["written"] == self._content(outcome["files"])
            )
        except (OSError, KeyError, TypeError):
            return None
        return outcome if whole else None

    def read(self) -> dict[str, Any] | None:
        """Return the last outcome, of whatever question; None where there is none."""
        try:
            outcome: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            return outcome if outcome["status"] in ("done", "failed") else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _content(self, files: Iterable[str]) -> str:
        """Digest of tables and side-cars. Those of another analysis have the same names, and its provenance tells its maps apart too."""
        found = hashlib.sha256()
        for name in files:
            if name.endswith((".json", ".tsv")):
                found.update((self.results / name).read_bytes())
        return found.hexdigest()

    @property
    def exists(self) -> bool:
        """Whether there is a record at all."""
        return self._path.exists()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.json"


def claimed_at(results: Path, part: str = "study") -> float:
    """When a part of a folder of results was last claimed, seconds since the epoch; 0 where that is not known."""
    return began(_mark(results, part))


def _mark(results: Path, part: str) -> Path:
    return results / FOLDER / f"{part}.lock"


@contextlib.contextmanager
def claimed(results: Path, part: str = "study", *, of: str | None = None) -> Iterator[None]:
    """Keep other runs from a folder of results, or from a part of it, as long as the block runs.

    Parameters
    ----------
    results : Path
    part : str
        ``"study"``: everything that subjects are decoded into; ``"sub-01"``: one subject; ``"search"``: what searches write.
    of : str, optional
        The claim that this is a part of. Several parts may be worked on at once, but not while somebody has the whole.

    Raises
    ------
    DaskDecodeError
        Another run is there already; says who.
    """
    with contextlib.ExitStack() as stack:
        for name, shared in ((of, True), (part, False)):
            if name is not None:
                mark, busy = _mark(results, name), f"Another run writes to {results} ({name})"
                stack.enter_context(alone(mark, busy, DaskDecodeError, shared=shared, sharers="sub-*.lock" if name == part else None))
        yield


def partial(results: Path, name: str, fingerprint: str, *, kind: str = "npz") -> Path:
    """Where a part of what is asked for is kept, below the folder of results; what is kept there of anything else asked is deleted.

    ``kind="models"`` is for a folder, ``"npz"`` for a file.
    """
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{fingerprint[:16]}.{kind}"
    for other in (other for pattern in ("npz", "models") for other in folder.glob(f"{name}.*.{pattern}")):
        if other != path and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        elif other != path:
            other.unlink(missing_ok=True)
    return path


def failure(subject: str, error: BaseException) -> dict[str, Any]:
    """Return the outcome of a subject that could not be decoded."""
    kind = type(error).__name__
    ours = isinstance(error, DaskDecodeError | OSError)
    named = isinstance(error, OSError) and error.strerror is not None
    reason = f"{error.filename or ''}: {error.strerror}".removeprefix(": ") if named else str(error)  # type: ignore[attr-defined]
    told = " ".join((reason if ours and reason else f"{kind}: {reason}").split())
    # Of a fault of the code, a person's estimator included, where it is; what is wrong with data says so itself.
    where = {} if ours and error.__cause__ is None else {"traceback": traceback.format_exception(error)}
    return {"subject": subject, "status": "failed", "error": kind, "reason": told, **where}


# --- what results depend on -------------------------------------------------------------------------------------------------------


def shown_all(values: Mapping[str, Any]) -> dict[str, str]:
    """Write parameters so that another process finds the same text for the same values."""
    return {str(name): shown(value) for name, value in values.items()}


def mask_content(mask: Any, known: Mapping[str, str], where: str) -> Any:
    """What a mask selects, JSON-able.

    Parameters
    ----------
    mask : str, path, image, array or None
    known : mapping of str to str
        Checksums of the masks of the store.
    where : str
        The folder that a relative path starts from.
    """
    if mask is None:
        return None
    if isinstance(mask, str) and mask in known:
        return ["name", mask, known[mask]]
    if isinstance(mask, str | os.PathLike):
        return ["file", hashlib.sha256(Path(where, mask).read_bytes()).hexdigest()]
    if isinstance(mask, SpatialImage):
        return ["image", shown(np.asarray(mask.dataobj)), np.asarray(mask.affine).tolist()]
    voxels = mask[VOXEL] if isinstance(mask, xr.DataArray) and VOXEL in mask.coords else None  # by which it is matched to the data's
    return ["values", shown(np.asarray(mask)), None if voxels is None else shown(np.asarray(voxels))]


def table_content(table: Any, where: str) -> Any:
    """What a table holds, JSON-able: a file's bytes, or columns and values."""
    if isinstance(table, str | os.PathLike):
        return hashlib.sha256(Path(where, table).read_bytes()).hexdigest()
    return None if table is None else shown(table.to_dict("list"))


def numbers(value: Any) -> float:
    """A number of a record: JSON has no NaN, which stands there as null."""
    return float("nan") if value is None else float(value)
