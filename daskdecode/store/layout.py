"""How a study store is laid out in Zarr: names of nodes, chunks, order of voxels, codecs, and the marks that say what is whole.

::

    /                         attributes: format_version, complete, plan (what is to be converted from which files)
    /sub-1                    attributes: affine, shape, ...; arrays over voxel: voxel, i, j, k, mask_<name>
    /sub-1[/ses-a]/run-01     bold(time, voxel), time(time), label(time), source_header(header_byte)

The attributes of a run's group are written last, in one write that every store makes whole or not at all; they carry the run's
fingerprint from the plan. A run without them, or with those of another plan, does not count as there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BloscShuffle, BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from daskdecode.errors import DaskDecodeError, FormatVersionError, StoreError
from daskdecode.schema import FORMAT_VERSION, VOXEL

SEGMENT_NBYTES: Final = 96 * 2**20
"""A run is gathered in memory and written at once up to this size; a longer one is split along time."""
CHUNK_NBYTES: Final = 4 * 2**20
N_REQUESTS: Final = 8
VOXELS_PER_CHUNK: Final = (1024, 4096)
"""Fewer make too many files and too many reads, more make a region of interest read too much."""

StoreLike = str | os.PathLike[str] | Store


# --- where ------------------------------------------------------------------------------------------------------------------------


def as_store(store: StoreLike, *, read_only: bool = False) -> Store:
    """The Zarr store at a local path or at any URL that fsspec knows; a Zarr store is returned as it is."""
    if isinstance(store, Store):
        return store
    path = local_path(store)
    if path is not None:
        return LocalStore(path, read_only=read_only)
    try:
        return FsspecStore.from_url(os.fspath(store), read_only=read_only)
    except Exception as error:  # each kind of storage has errors of its own, and may not be installed
        raise StoreError(
            f"{os.fspath(store)} cannot be opened: {reason(error)}. Expected a local folder or a URL that fsspec knows, such as "
            "s3://bucket/study.zarr."
        ) from error


def local_path(store: StoreLike) -> Path | None:
    """The folder of a store on this machine, absolute; None for any other store."""
    if isinstance(store, WrapperStore):
        return local_path(store._store)
    if isinstance(store, LocalStore):
        return store.root.absolute()
    if isinstance(store, Store):
        return None
    if not isinstance(store, str | os.PathLike):
        raise StoreError(f"A store is the path of a folder, a URL or a Zarr store, but found {store!r}.")
    location = os.fspath(store)
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return None if "://" in location or "::" in location else Path(location).expanduser().absolute()


def address(store: Store) -> str:
    """A store's location for messages, provenance and tokens: one, however its path is spelled."""
    if isinstance(store, WrapperStore):
        return address(store._store)
    if isinstance(store, FsspecStore):
        return str(store.fs.unstrip_protocol(store.path))
    path = local_path(store)
    return str(store) if path is None else os.path.realpath(path)


def reason(error: BaseException) -> str:
    """What an error says, to stand within a sentence; its kind where it says nothing."""
    return str(error).strip().rstrip(".") or type(error).__name__


@contextlib.contextmanager
def reached(store: Store) -> Iterator[None]:
    """Make whatever goes wrong with a request to a distant store a :class:`~daskdecode.errors.StoreError`.

    Raises
    ------
    StoreError
        No credentials, no such bucket, no network, ...
    """
    try:
        yield
    except Exception as error:
        if not is_of_storage(error, store):
            raise
        raise StoreError(
            f"{address(store)} cannot be reached: {reason(error)}. Check the address, the credentials and the network."
        ) from error


def is_of_storage(error: Exception, store: Store) -> bool:
    """Whether a distant store is what failed.

    Every kind of storage has errors of its own (botocore's are no OSErrors), known only to packages that may not be there: whatever is
    neither Python's, nor ours, nor of what does the work, is taken for one.
    """
    if local_path(store) is not None or isinstance(error, DaskDecodeError):
        return False
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package not in {"builtins", "numpy", "zarr", "dask", "distributed", "tornado", "concurrent"}


def subject_node(subject: str) -> str:
    """Path of a subject's group."""
    return f"sub-{subject}"


def run_node(subject: str, session: str | None, run: str) -> str:
    """Path of a run's group."""
    parts = [subject_node(subject), f"run-{run}"]
    if session is not None:
        parts.insert(1, f"ses-{session}")
    return "/".join(parts)


# --- groups, read and written as the JSON they are ---------------------------------------------------------------------------------


def read_attributes(store: Store, path: str = "") -> dict[str, Any] | None:
    """Attributes of a group, None where there is no group. One small read, whatever consolidated metadata say."""
    node = _read_node(store, path)
    return None if node is None else _attributes_of(node)


def read_with_below(store: Store, path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Attributes of a group, and of the groups below by their paths from it, as its consolidated metadata have them. One small read."""
    node = _read_node(store, path) or {}
    below = (node.get("consolidated_metadata") or {}).get("metadata", {})
    return _attributes_of(node) or {}, {name: found for name, inner in below.items() if (found := _attributes_of(inner)) is not None}


def _attributes_of(node: Any) -> dict[str, Any] | None:
    return dict(node.get("attributes", {})) if isinstance(node, dict) and node.get("node_type") == "group" else None


def _read_node(store: Store, path: str) -> Any:
    """Metadata of a node, None where there is none."""
    key = f"{path}/zarr.json".lstrip("/")
    with reached(store):
        found = sync(store.get(key, default_buffer_prototype()))
    if found is None:
        return None
    try:
        return json.loads(found.to_bytes())
    except ValueError as error:
        # Overwriting needs the root, which alone says that what lies there is a study store.
        instead = "convert again with overwrite=True" if path else f"delete {address(store)} yourself and convert again"
        raise StoreError(f"{key} in {address(store)} is damaged ({reason(error)}): restore it from a copy, or {instead}.") from error


def read_many(store: Store, paths: Sequence[str]) -> list[dict[str, Any] | None]:
    """:func:`read_attributes` of many groups, several at once: a request to a distant store takes long, and little of anything else."""
    with ThreadPoolExecutor(N_REQUESTS) as pool:
        return list(pool.map(lambda path: read_attributes(store, path), paths))


def write_group(store: Store, path: str, attributes: Mapping[str, Any]) -> None:
    """Write a group's metadata in one write, without consolidated metadata; what lies below is left alone.

    Zarr's own calls refuse an existing group, or merge into it, or delete what lies below.
    """
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    encoded = json.dumps(node, indent=1, ensure_ascii=False).encode()
    sync(store.set(f"{path}/zarr.json".lstrip("/"), default_buffer_prototype().buffer.from_bytes(encoded)))


def children(store: Store, path: str = "") -> list[str]:
    """Names directly below a path, sorted."""
    return sorted(sync(_collect(store.list_dir(path))))


async def _collect(names: AsyncIterator[str]) -> list[str]:
    return [name.strip("/") async for name in names]


def delete_unfinished(store: Store, nodes: Iterable[str]) -> None:
    """Delete what is left of metadata whose writing was cut off: a local store writes a file beside its place and renames it."""
    root = local_path(store)
    for folder in [] if root is None else [root / node for node in nodes]:
        for left in folder.glob("zarr.*.partial"):
            left.unlink(missing_ok=True)


def delete_node(store: Store, path: str) -> None:
    """Delete a node and everything below it; nothing happens where there is none."""
    sync(store.delete_dir(path))


def is_empty(store: Store) -> bool:
    """Whether nothing at all lies at a store's location."""
    path = local_path(store)
    if path is not None:
        return not path.exists() or (path.is_dir() and next(path.iterdir(), None) is None)
    with reached(store):
        return bool(sync(store.is_empty("")))


def stored_nbytes(store: Store, path: str) -> int:
    """Bytes on disk below a path."""
    nbytes: int = sync(store.getsize_prefix(path))
    return nbytes


def consolidate(store: Store, subjects: Iterable[str]) -> None:
    """Copy all metadata into the root, for plain xarray, and each subject's into its own group, to open one of many quickly."""
    subjects = list(subjects)
    for node in subjects:  # or the copy in the root would hold these copies too
        write_group(store, node, read_attributes(store, node) or {})
    with warnings.catch_warnings():
        # Zarr warns that consolidated metadata are not in the v3 specification yet; without them xarray warns and is slow.
        warnings.simplefilter("ignore", ZarrUserWarning)
        for path in ["", *subjects]:
            zarr.consolidate_metadata(store, path=path)


def set_complete(store: Store) -> None:
    """Say in the root that every run is there; its consolidated metadata stay."""
    zarr.open_group(store, mode="r+", zarr_format=3).update_attributes({"complete": True})


def require_readable(store: Store) -> dict[str, Any]:
    """Attributes of a store's root, if it is a study store of a format version that this code reads."""
    path = local_path(store)
    attributes = read_attributes(store) if path is None or path.is_dir() else None
    if attributes is None or "format_version" not in attributes or "plan" not in attributes:
        what = "does not exist" if is_empty(store) else "is not a daskdecode study store"
        raise StoreError(f"{address(store)} {what}. Make a study store with daskdecode.convert(source, store).")
    if attributes["format_version"] != FORMAT_VERSION:
        raise FormatVersionError(
            f"{address(store)} has format version {attributes['format_version']}; this daskdecode reads version {FORMAT_VERSION}. "
            "Install the daskdecode that wrote it, or convert the sources again."
        )
    return attributes


# --- voxels and chunks ------------------------------------------------------------------------------------------------------------


def morton_order(voxel: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Sort voxels along a Morton (Z) curve, so that a compact region lies in few chunks.

    Parameters
    ----------
    voxel : ndarray of int, shape (n_voxels,)
        Flat C-order indices.
    shape : sequence of three ints

    Returns
    -------
    ndarray of int64, shape (n_voxels,)
        The same indices in another order.

    Notes
    -----
    The code interleaves the bits of i, j and k. Of the 52 chunks of 1,024 voxels of a brain (52,560 voxels), a sphere of 500 voxels
    touches 9.1 in C order, 5.3 along the Morton curve, and 5.2 in cubes of 8 voxels, which favour one size of region and of chunk
    (``benchmarks/voxel_order.py``).
    """
    ijk = np.unravel_index(np.asarray(voxel, dtype=np.int64), tuple(shape))
    code = np.zeros(len(voxel), dtype=np.int64)
    for bit in range(max(int(n - 1).bit_length() for n in shape)):
        for axis, index in enumerate(ijk):
            code |= ((index >> bit) & 1) << (3 * bit + axis)
    return np.asarray(voxel, dtype=np.int64)[np.argsort(code, kind="stable")]


def time_chunk(n_volumes: int, n_voxels: int, itemsize: int) -> int:
    """Volumes in a chunk: the whole run, or equal parts where all its voxels would not fit :data:`SEGMENT_NBYTES`."""
    n_segments = -(-n_volumes * n_voxels * itemsize // SEGMENT_NBYTES)
    return -(-n_volumes // max(1, n_segments))


def voxel_chunk(longest: int, n_voxels: int, itemsize: int) -> int:
    """Voxels in a chunk, the same in all runs of a subject so that their concatenation has even chunks.

    Parameters
    ----------
    longest : int
        Volumes in the longest time chunk of the subject.
    n_voxels, itemsize : int
    """
    fewest, most = VOXELS_PER_CHUNK
    fitting = max(1, CHUNK_NBYTES // (longest * itemsize))
    return min(n_voxels, max(fewest, min(most, 1 << (fitting.bit_length() - 1))))


def create_bold(
    store: Store, path: str, shape: tuple[int, int], chunks: tuple[int, int], dtype: np.dtype[Any], scaling: Mapping[str, float]
) -> Any:
    """An empty ``bold`` array: every chunk carries a CRC-32C, so that a flipped bit is an error and not a value.

    lz4 with bit shuffle: 370 MB of masked int16 took 0.5 s to write and 212 MB on disk, against 2.0 s and 195 MB for zstd with byte
    shuffle and 2.9 s and 255 MB for Zarr's default. Chunks of zeros are written too: a chunk that is not there is always an error.
    """
    return zarr.create_array(
        store,
        name=path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=0,
        serializer=BytesCodec(endian="little"),
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.bitshuffle, typesize=dtype.itemsize), Crc32cCodec()],
        dimension_names=("time", VOXEL),
        attributes=dict(scaling),
        config={"write_empty_chunks": True},
    )


def write_vector(store: Store, path: str, values: np.ndarray, dim: str, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a small one-dimensional array as one chunk, replacing one that is there."""
    zarr.create_array(
        store,
        name=path,
        data=np.ascontiguousarray(values),
        chunks=(max(1, len(values)),),
        fill_value=0,
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle=BloscShuffle.shuffle, typesize=values.dtype.itemsize), Crc32cCodec()],
        dimension_names=(dim,),
        attributes=dict(attributes or {}),
        overwrite=True,
        config={"write_empty_chunks": True},
    )


# --- values -----------------------------------------------------------------------------------------------------------------------


def read_dtype(stored: np.dtype[Any], *, scaled: bool) -> np.dtype[Any]:
    """The floating type in which stored values are read without loss.

    Scaled values and integers of 32 bits and more need float64; shorter integers fit float32; floats stay what they are.
    """
    if stored.kind == "f" and not scaled:
        return np.dtype(f"f{stored.itemsize}")
    return np.dtype(np.float64 if scaled or stored.itemsize > 2 else np.float32)


def flag_attributes(names: Sequence[str]) -> dict[str, Any]:
    """CF attributes of label codes 0, 1, ... CF separates meanings by spaces, so the exact labels stand in ``labels``."""
    meanings = " ".join(re.sub(r"\s+", "_", name) or "_" for name in names)
    return {"flag_values": list(range(len(names))), "flag_meanings": meanings, "labels": list(names)}


def digest(value: Any) -> str:
    """SHA-256 of bytes, or of the canonical JSON of anything else, as hexadecimal."""
    encoded = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(encoded).hexdigest()
