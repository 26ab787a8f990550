"""What a long computation has worked out so far, kept on disk and bound to the content that it belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskdecode.alone import alone
from daskdecode.engine.design import Design
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.errors import DecodingError
from daskdecode.models.content import NOT_CONTENT, shown
from daskdecode.models.outcome import versions
from daskdecode.models.samples import Samples

Arrays = dict[str, NDArray[Any]]

_NOT_CONTENT = NOT_CONTENT | {"cv", "engine"}
"""Beside what no result depends on: folds are told as such, and no score depends on the route."""

_HASHED = ("data", "labels", "runs", "folds", "exchangeable", "confounds", "weights", "settings", "groups")
"""Content of which only a digest is known, so that no more can be said than that it differs."""


class Record:
    """Arrays by name, in a file where there is a path.

    Parameters
    ----------
    kind : str
        What is computed, in words: ``"permutation test"``. A file of another kind is refused.
    path : Path or None
        None: in memory only.
    content : dict or None
        What the numbers depend on, JSON-able; see :func:`fingerprint`.

    Attributes
    ----------
    arrays : dict of str to ndarray
        What is known so far; empty at the start.

    Raises
    ------
    DecodingError
        The file holds something else; says in what they differ.
    """

    def __init__(self, kind: str, path: Path | None, content: dict[str, Any] | None) -> None:
        self.kind, self.path, self.content = kind, path, content
        self.arrays: Arrays = {}
        if path is not None and path.exists():
            stored, self.arrays = _read(path, kind)
            if stored != content:
                raise DecodingError(
                    f"{path} holds another {kind}: {_difference(stored, content or {})}. Give another path, or delete the file "
                    "to start anew."
                )

    @staticmethod
    def check(path: str | os.PathLike[str], kind: str) -> Path:
        """Say before any long work whether a file can be read, or made; returns the path."""
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise DecodingError(f"path={str(path)!r} must be a file in an existing folder.")
        if path.exists():
            _read(path, kind)
        elif not os.access(path.parent, os.W_OK):
            raise DecodingError(f"The folder {path.parent} cannot be written to. Give another path.")
        return path

    @staticmethod
    @contextlib.contextmanager
    def alone(path: str | os.PathLike[str] | None, kind: str) -> Iterator[Path | None]:
        """Check a path if there is one, and keep other runs from it as long as the block runs; gives the path."""
        if path is None:
            yield None
            return
        found = Record.check(path, kind)
        with contextlib.ExitStack() as stack:
            try:
                mark = found.with_name(f".{found.name}.lock")
                stack.enter_context(alone(mark, f"Another {kind} writes to {found}", DecodingError))
            except OSError as error:
                raise DecodingError(f"The folder {found.parent} cannot be written to: {error.strerror}. Give another path.") from error
            yield found

    def keep(self, **arrays: NDArray[Any]) -> None:
        """Put arrays in the place of those of the same names; the file always holds what was there before, or all of it."""
        self.arrays |= arrays
        if self.path is None:
            return
        about = {"about": np.array(json.dumps({"kind": self.kind, "content": self.content}))}
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **about, **self.arrays)  # type: ignore[arg-type]  # an option's type is taken for all
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, str(self.path)) from error  # a full disk names no file by itself


def _read(path: Path, kind: str) -> tuple[dict[str, Any], Arrays]:
    try:
        # Opened here, since numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        about = json.loads(str(arrays.pop("about")))
        found, content = about["kind"], about["content"]
    except OSError as error:
        raise DecodingError(f"{path} cannot be read ({error}). Give another path.") from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # Not numpy's reason: of text it says that it might be loaded unsafely.
        raise DecodingError(f"{path} is damaged, or not the file of a {kind}. Give another path, or delete the file.") from error
    if found != kind:
        raise DecodingError(f"{path} is the file of a {found}, not of a {kind}. Give another path.")
    return content, arrays


def _difference(stored: dict[str, Any], content: dict[str, Any]) -> str:
    said = []
    for name in dict.fromkeys([*stored, *content]):
        before, now = stored.get(name), content.get(name)
        if before != now:
            said.append(f"the {name} differ" if name in _HASHED else f"{name} was {before} and is {now}")
    return "; ".join(said)


def fingerprint(params: Mapping[str, Any], samples: Samples, design: Design, *, hashed: int | None = None, **more: Any) -> dict[str, Any]:
    """Say what scores depend on, JSON-able; reads the voxels once, unless their hash is known.

    Parameters
    ----------
    params : mapping of str to object
        Of the decoder, as ``get_params(deep=False)`` gives them.
    samples : Samples
    design : Design
    hashed : int, optional
        Hash of all values, :func:`data_hash` or another.
    **more
        What else they depend on, JSON-able.
    """
    folds = [*design.outer, *(split for fold in design.inner or () for split in fold)]
    return {
        "data": f"{samples.x.dtype.str} {samples.x.shape} {data_hash(samples) if hashed is None else hashed:016x}",
        "labels": digest_of(in_classes(np.asarray(samples.y))),
        "runs": digest_of([] if samples.groups is None else [samples.groups.astype(str)]),
        "folds": digest_of(part for split in folds for part in split),
        **{name: shown(value) for name, value in params.items() if name not in _NOT_CONTENT},
        "screening": repr(design.screening),
        "confounds": digest_of([] if design.within is None else [design.within.confounds]),
        "weights": digest_of([] if samples.weight is None else [samples.weight]),
        **more,
        **versions(),
    }


def in_classes(y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Names of classes (or values) in their order, which is that of scores, and the number of each sample's: 9 and 10, but "10" and "9"."""
    values, codes = np.unique(y, return_inverse=True)
    return values.astype(str), codes


def digest_of(arrays: Iterable[NDArray[Any]]) -> str:
    """Digest of arrays, their kinds and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.kind}{array.shape}".encode())
        found.update(json.dumps(array.tolist()).encode())
    return found.hexdigest()[:16]


def data_hash(samples: Samples) -> int:
    """Hash all values with their places, 64 bits: independent of chunks, since a sum modulo 2^64 has no order. Reads the voxels once."""
    blocks = VoxelBlocks(samples.x)
    return int(blocks.map_sum_with(hash_values, np.arange(blocks.shape[1], dtype=np.uint64)).compute())


def hash_values(x: NDArray[Any], columns: NDArray[np.uint64], rows: NDArray[np.uint64] | None = None) -> np.uint64:
    """Hash part of a matrix, of which these are the numbers of rows (default: all) and columns; sums of such are one of the whole."""
    x = np.ascontiguousarray(x if x.dtype.itemsize <= 8 else x.astype(np.float64))  # no integer has the bits of a long double
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        by_column = _mix(columns + np.uint64(1))
        for row, values in zip(range(len(bits)) if rows is None else rows.tolist(), bits, strict=True):
            place = by_column ^ _mix(np.array([row + 1], dtype=np.uint64) << np.uint64(32))
            total += _mix(values ^ place).sum(dtype=np.uint64)
    return total


def _mix(v: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter the bits of integers (splitmix64's finaliser)."""
    v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return v ^ (v >> np.uint64(31))
