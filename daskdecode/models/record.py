"""A permutation test's partial result on disk, bound to the content that it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskdecode.engine.design import Design
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.errors import DecodingError
from daskdecode.models.content import shown
from daskdecode.models.exchange import Exchangeable
from daskdecode.models.outcome import versions
from daskdecode.models.samples import Samples

Floats = NDArray[np.float64]

_NOT_CONTENT = {"mask", "cv", "memory_budget", "progress", "engine"}
"""Parameters that change nothing in the scores, or that data and folds already tell."""


class Record:
    """Scores of the permutations that are done, in order, kept in a file where there is a path.

    Parameters
    ----------
    path : Path or None
        None: in memory only.
    content : dict or None
        From :func:`fingerprint`.

    Attributes
    ----------
    observed : ndarray of float64, shape (2, n_problems), or None
        As the decoder scores, and as permutations are scored.
    null : ndarray of float64, shape (n_done, n_problems)

    Raises
    ------
    DecodingError
        The file is of another test; says in what they differ.
    """

    def __init__(self, path: Path | None, content: dict[str, Any] | None) -> None:
        self.path, self.content = path, content
        self.observed: Floats | None = None
        self.null: Floats = np.empty((0, 0))
        if path is not None and path.exists():
            stored, self.observed, self.null = _read(path)
            if stored != content:
                raise DecodingError(
                    f"{path} holds another permutation test: {_difference(stored, content or {})}. Give another path, or delete the file "
                    "to start anew."
                )

    @staticmethod
    def check(path: str | os.PathLike[str]) -> Path:
        """Say before any long work whether a file can be read, or made; returns the path."""
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise DecodingError(f"path={str(path)!r} must be a file in an existing folder.")
        if path.exists():
            _read(path)
        elif not os.access(path.parent, os.W_OK):
            raise DecodingError(f"The folder {path.parent} cannot be written to. Give another path.")
        return path

    def add(self, scores: Floats) -> None:
        """Append scores (n_new, n_problems); the file always holds all of a batch or nothing of it."""
        self.null = np.concatenate([self.null.reshape(-1, scores.shape[1]), scores])
        if self.path is None:
            return
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, content=np.array(json.dumps(self.content)), observed=np.asarray(self.observed), null=self.null)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _read(path: Path) -> tuple[dict[str, Any], Floats, Floats]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["content"])), file["observed"], file["null"]
    except OSError as error:
        raise DecodingError(f"{path} cannot be read ({error}). Give another path.") from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # Not numpy's reason: of text it says that it might be loaded unsafely.
        raise DecodingError(f"{path} is not a file that permutation_test wrote. Give another path, or delete the file.") from error


def _difference(stored: dict[str, Any], content: dict[str, Any]) -> str:
    said = []
    for name in dict.fromkeys([*stored, *content]):
        before, now = stored.get(name), content.get(name)
        if before != now:
            hashed = name in ("data", "labels", "runs", "folds", "exchangeable", "confounds", "weights")
            said.append(f"the {name} differ" if hashed else f"{name} was {before} and is {now}")
    return "; ".join(said)


def fingerprint(decoder: Any, samples: Samples, design: Design, units: Exchangeable, random_state: int) -> dict[str, Any]:
    """Say what a permutation test depends on, JSON-able; reads the voxels once."""
    folds = [*design.outer, *(split for fold in design.inner or () for split in fold)]
    return {
        "data": f"{samples.x.dtype.str} {samples.x.shape} {data_hash(samples):016x}",
        "labels": _digest([np.asarray(samples.y).astype(str)]),
        "runs": _digest([] if samples.groups is None else [samples.groups.astype(str)]),
        "folds": _digest(part for split in folds for part in split),
        "exchangeable": _digest(units.units),
        **{name: shown(value) for name, value in decoder.get_params(deep=False).items() if name not in _NOT_CONTENT},
        "screening": repr(design.screening),
        "confounds": _digest([] if design.within is None else [design.within.confounds]),
        "weights": _digest([] if samples.weight is None else [samples.weight]),
        "random_state": random_state,
        **versions(),
    }


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.kind}{array.shape}".encode())
        found.update(json.dumps(array.tolist()).encode())
    return found.hexdigest()[:16]


def data_hash(samples: Samples) -> int:
    """Hash all values with their places, 64 bits: independent of chunks, since a sum modulo 2^64 has no order. Reads the voxels once."""
    blocks = VoxelBlocks(samples.x)
    return int(blocks.map_sum_with(_hash_block, np.arange(blocks.shape[1], dtype=np.uint64)).compute())


def _hash_block(x: NDArray[Any], columns: NDArray[np.uint64]) -> np.uint64:
    x = np.ascontiguousarray(x)
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        by_column = _mix(columns + np.uint64(1))
        for row, values in enumerate(bits):
            place = by_column ^ _mix(np.array([row + 1], dtype=np.uint64) << np.uint64(32))
            total += _mix(values ^ place).sum(dtype=np.uint64)
    return total


def _mix(v: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter the bits of integers (splitmix64's finaliser)."""
    v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return v ^ (v >> np.uint64(31))
