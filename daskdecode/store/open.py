"""A study store as lazy xarray: metadata and labels are read, no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store

from daskdecode.errors import DaskDecodeError, IncompleteStoreError, SelectionError, StoreError, nearest
from daskdecode.schema import BOLD, LABEL, MASK_PREFIX, RUN, SESSION, SUBJECT, TIME, VOXEL
from daskdecode.store.layout import (
    N_REQUESTS,
    StoreLike,
    address,
    as_store,
    digest,
    read_attributes,
    read_dtype,
    read_many,
    read_with_below,
    reason,
    require_readable,
)
from daskdecode.store.plan import by_subject, fingerprints, restrict
from daskdecode.store.read import Whole, read_stored

REPAIR: Final = "Restore them from a copy, or call convert again with the same source, which writes again what is missing."


def open_subject(store: StoreLike, subject: str | None = None, session: str | None = None) -> xr.Dataset:
    """Open one subject of a study store.

    Parameters
    ----------
    store : path, URL or Zarr store
    subject : str, optional
        With or without ``sub-``; may be left out where there is only one.
    session : str, optional
        With or without ``ses-``; by default all sessions.

    Returns
    -------
    Dataset
        As described in :mod:`daskdecode.schema`: ``bold(time, voxel)`` is a Dask array with the chunks of the store, its runs one
        after another. Integers of up to 16 bits are read as float32, scaled values (``slope * stored + intercept``) and longer
        integers as float64, floats as they are. Coordinates and masks are in memory. Where runs differ in repetition time, the
        attribute ``repetition_times`` says each run's.

    Raises
    ------
    StoreError
        There is no study store, or it cannot be read; :class:`~daskdecode.errors.IncompleteStoreError` where its conversion has not
        ended, :class:`~daskdecode.errors.FormatVersionError` where another version wrote it.
    SelectionError
        There is no such subject or session, or several and none is named.

    Notes
    -----
    Lazy. A chunk that is damaged or missing on disk raises :class:`~daskdecode.errors.StoreError` when it is computed.
    """
    opened = as_store(store, read_only=True)
    root = require_complete(opened)
    known = [entry["subject"] for entry in root["plan"]["subjects"]]
    name = _choose(subject, known, "subject", "sub-", opened, root.get("failed", {}))
    return StoredSubject(opened, name, _root_with(root, restrict(root["plan"], {name}))).open(session)


def open_study(store: StoreLike) -> xr.DataTree:
    """Open all subjects of a study store.

    Parameters
    ----------
    store : path, URL or Zarr store

    Returns
    -------
    DataTree
        A node ``sub-<id>`` for each subject, with nodes ``ses-<id>`` below where there are sessions; the dataset of each is what
        :func:`open_subject` gives for it.

    Raises
    ------
    StoreError

    Notes
    -----
    Lazy.
    """
    opened = as_store(store, read_only=True)
    root = require_complete(opened)
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in root["plan"]["runs"]:
        groups.setdefault(run["node"].rpartition("/")[0], []).append(run)
    tree = xr.DataTree.from_dict({f"/{node}": _open_runs(opened, root, runs) for node, runs in groups.items()})
    tree.attrs = {"format_version": root["format_version"], "store": address(opened)}
    return tree


@dataclass(frozen=True, eq=False)
class StoredSubject:
    """A subject as the root of a complete store tells of it: small to send, and all that opening it elsewhere needs.

    Attributes
    ----------
    store : Store
    subject : str
    root : dict
        The root's attributes, with the part of the plan that is about this subject.
    """

    store: Store
    subject: str
    root: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Labels in its runs, sorted."""
        return list(self.root["plan"]["subjects"][0]["labels"])

    def open(self, session: str | None = None) -> xr.Dataset:
        """:func:`open_subject`, without reading the root again."""
        return _open_runs(self.store, self.root, self._runs(session))

    def content(self, session: str | None = None) -> dict[str, Any]:
        """What its values are: of each run, the fingerprint and checksums; and the checksum of each mask. One small read.

        Raises
        ------
        StoreError
            Metadata of a run have gone.
        """
        node = self.root["plan"]["subjects"][0]["node"]
        attributes, below = read_with_below(self.store, node)
        masks = {name: attributes.get("mask_details", {}).get(name, {}).get("sha256", name) for name in attributes.get("masks", [])}
        runs = [run["node"] for run in self._runs(session)]
        require_all(self.store, [run for run in runs if run.removeprefix(f"{node}/") not in below])
        return {"runs": {run: _content(below[run.removeprefix(f"{node}/")], attributes) for run in runs}, "masks": masks}

    def _runs(self, session: str | None) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.root["plan"]["runs"]
        if session is None:
            return runs
        named = [run["session"] for run in runs if run["session"] is not None]
        chosen = _choose(session, list(dict.fromkeys(named)), "session", "ses-", self.store)
        return [run for run in runs if run["session"] == chosen]


def stored_subjects(store: StoreLike) -> tuple[dict[str, StoredSubject], dict[str, str]]:
    """All subjects of a store by name, and why others could not be converted, by theirs. One read, of the root.

    Raises
    ------
    StoreError
    """
    opened = as_store(store, read_only=True)
    root = require_complete(opened)
    parts = by_subject(root["plan"])
    return {name: StoredSubject(opened, name, _root_with(root, parts[name])) for name in parts}, dict(root.get("failed", {}))


def _root_with(root: Mapping[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The root's attributes as if the study were this part of it."""
    return {"format_version": root["format_version"], "complete": True, "plan": part}


def require_complete(store: Store) -> dict[str, Any]:
    """Attributes of the root of a store whose conversion has ended.

    Raises
    ------
    StoreError
    IncompleteStoreError
        Names the runs that are missing.
    """
    root = require_readable(store)
    if not root["complete"]:
        missing, total = missing_runs(store, root), len(root["plan"]["runs"])
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise IncompleteStoreError(
            f"The conversion to {address(store)} has not finished: "
            + (f"{len(missing)} of {total} runs are missing ({shown})" if missing else "its runs are there, but it was not closed")
            + ". Call convert again with the same source to resume it."
        )
    return root


def require_all(store: Store, missing: list[str]) -> None:
    """Raise where runs have gone from a store that was complete.

    Raises
    ------
    StoreError
    """
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise StoreError(f"{address(store)} was complete, but {len(missing)} of its runs are missing or damaged ({shown}). {REPAIR}")


def missing_runs(store: Store, root: Mapping[str, Any]) -> list[str]:
    """Nodes of the planned runs that are not whole, in the order of the plan."""
    expected = fingerprints(root["plan"])
    found = read_many(store, list(expected))
    return [node for node, attributes in zip(expected, found, strict=True) if (attributes or {}).get("fingerprint") != expected[node]]


def _choose(
    name: str | None, known: list[str], what: str, prefix: str, store: Store, failed: Mapping[str, str] = MappingProxyType({})
) -> str:
    if name is None:
        if len(known) != 1:
            raise SelectionError(f"{address(store)} has {len(known)} {what}s: name one. {nearest('', known)}")
        return known[0]
    plain = str(name).removeprefix(prefix)
    if plain in failed:
        raise SelectionError(f"Subject {plain!r} is not in {address(store)}, as it could not be converted: {failed[plain]}")
    if plain not in known:
        raise SelectionError(f"There is no {what} {plain!r} in {address(store)}. {nearest(plain, known)}")
    return plain


# --- building the dataset ---------------------------------------------------------------------------------------------------------


def _open_runs(store: Store, root: Mapping[str, Any], runs: list[dict[str, Any]]) -> xr.Dataset:
    """Runs of one subject as one dataset."""
    subject = runs[0]["subject"]
    node = next(entry["node"] for entry in root["plan"]["subjects"] if entry["subject"] == subject)
    # The subject's own consolidated metadata: one read, however many subjects the study has.
    group = _open_group(store, node)
    if "masks" not in group.attrs:
        raise StoreError(f"{address(store)} lacks the group of subject {subject!r}, {node}. {REPAIR}")
    relative = [run["node"].removeprefix(f"{node}/") for run in runs]
    attributes = dict(group.attrs)
    masks = [f"{MASK_PREFIX}{name}" for name in attributes["masks"]]
    small = [VOXEL, *masks, *(f"{run}/{name}" for run in relative for name in (TIME, LABEL))]
    try:
        with ThreadPoolExecutor(N_REQUESTS) as pool:
            read = dict(zip(small, pool.map(lambda path: _read_small(group, path, node, address(store)), small), strict=True))
    except StoreError:
        opened = {run["node"] for run in runs}
        require_all(store, [run for run in missing_runs(store, root) if run in opened])  # says more, where whole runs have gone
        raise
    voxel = read[VOXEL]
    i, j, k = (index.astype(np.int32) for index in np.unravel_index(voxel, tuple(attributes["shape"])))
    lengths = [len(read[f"{run}/{TIME}"]) for run in relative]
    labels = [np.array(group[f"{run}/{LABEL}"].attrs["labels"], dtype=np.str_)[read[f"{run}/{LABEL}"]] for run in relative]
    along_time = {
        TIME: (TIME, np.concatenate([read[f"{run}/{TIME}"] for run in relative]), {"units": "s"}),
        RUN: (TIME, _repeated([run["run"] for run in runs], lengths)),
        LABEL: (TIME, np.concatenate(labels)),
        SUBJECT: (TIME, _repeated([run["subject"] for run in runs], lengths)),
    }
    sessions = [run["session"] for run in runs]
    if any(session is not None for session in sessions):
        along_time[SESSION] = (TIME, _repeated([session or "" for session in sessions], lengths))
    along_voxel = {VOXEL: (VOXEL, voxel), "i": (VOXEL, i), "j": (VOXEL, j), "k": (VOXEL, k), **{m: (VOXEL, read[m]) for m in masks}}
    bold = da.concatenate([_lazy(group, store, run, node) for run in relative], axis=0, allow_unknown_chunksizes=False)
    return xr.Dataset(
        {BOLD: ((TIME, VOXEL), bold)},
        coords={**along_time, **along_voxel},
        attrs=_attributes(attributes, root, set(sessions), address(store)) | _repetition_times(group, relative, runs),
    )


def _open_group(store: Store, node: str) -> Any:
    try:
        return zarr.open_group(Whole(store), path=node, mode="r", zarr_format=3)
    except DaskDecodeError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise StoreError(
            f"The metadata of {node} in {address(store)} cannot be read: {reason(error)}. Restore them from a copy, or convert again "
            "with overwrite=True."
        ) from error


def _read_small(group: Any, path: str, node: str, where: str) -> np.ndarray:
    try:
        array = group[path]
    except KeyError as error:
        raise StoreError(f"{node}/{path} is missing in {where}. {REPAIR}") from error
    return read_stored(array, slice(None), f"{node}/{path}", where)


def _repeated(names: Iterable[str], lengths: list[int]) -> np.ndarray:
    return np.repeat(np.array(list(names), dtype=np.str_), lengths)


def _attributes(subject: Mapping[str, Any], root: Mapping[str, Any], sessions: set[str | None], where: str) -> dict[str, Any]:
    kept = ("affine", "shape", "qform_code", "sform_code", "repetition_time", "subject")
    attributes = {name: subject[name] for name in kept}
    only = next(iter(sessions)) if len(sessions) == 1 else None
    return {**attributes, **({SESSION: only} if only is not None else {}), "format_version": root["format_version"], "store": where}


def _repetition_times(group: Any, relative: list[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first run's repetition time and, only where others differ from it, those of all by :func:`daskdecode.schema.run_ids`."""
    times = [float(group[run].attrs["repetition_time"]) for run in relative]
    names = [run["run"] if all(r["session"] is None for r in runs) else f"ses-{run['session'] or ''}/{run['run']}" for run in runs]
    each = {"repetition_times": dict(zip(names, times, strict=True))} if len(set(times)) > 1 else {}
    return {"repetition_time": times[0], **each}


def _lazy(group: Any, store: Store, run: str, node: str) -> da.Array:
    """The bold signal of one run, one task a chunk on disk."""
    source = _ScaledRun(group[f"{run}/{BOLD}"], store, f"{node}/{run}", _content_of_run(group[run].attrs))
    token = digest([address(store), node, run, _content(group[run].attrs, group.attrs)])[:32]
    meta = np.empty((0, 0), dtype=source.dtype)
    bold: da.Array = da.from_array(source, chunks=source.chunks, name=f"{BOLD}-{token}", asarray=False, lock=False, meta=meta)
    return bold


def _content(run: Mapping[str, Any], subject: Mapping[str, Any]) -> list[Any]:
    """What decides the values of a run, by the attributes of its group and of its subject's.

    Fingerprints tell what was asked for and of which files, by size and time. Another file may have both, as a copy of other content
    that keeps its time; its checksum, taken as it was read, differs.
    """
    return [*_content_of_run(run), subject["fingerprint"], subject.get("voxel_sha256")]  # older stores have no last


def _content_of_run(run: Mapping[str, Any]) -> list[Any]:
    return [run["fingerprint"], run["source"]["sha256"]]


class _ScaledRun:
    """What Dask slices: stored values of a run, read and scaled when asked for."""

    ndim = 2

    def __init__(self, array: Any, store: Store, run: str, content: list[Any]) -> None:
        attributes = dict(array.attrs)
        self._array, self._store, self._run, self._content = array, store, run, content
        self._scaling = (attributes["scale_factor"], attributes["add_offset"]) if "scale_factor" in attributes else None
        self.shape, self.chunks = array.shape, array.chunks
        self.dtype = read_dtype(array.dtype, scaled=self._scaling is not None)

    def __getitem__(self, index: Any) -> np.ndarray:
        values = read_stored(self._array, index, self._run, address(self._store)).astype(self.dtype, copy=False)
        self._require_same()
        if self._scaling is not None:
            values *= self._scaling[0]
            values += self._scaling[1]
        return values

    def _require_same(self) -> None:
        """Raise where the run has been converted again since it was opened: chunks of the same size would be of other voxels or volumes.

        Looked at after each read, so that what was read is known to be of the run that was opened.
        """
        found = read_attributes(self._store, self._run) or {}
        if not found.get("complete") or _content_of_run(found) != self._content:
            raise StoreError(
                f"{self._run} in {address(self._store)} was converted again, or is being, after it was opened. Open it again "
                "(daskdecode.open_subject): its labels and voxels may be others."
            )
