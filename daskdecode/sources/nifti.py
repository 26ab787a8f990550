"""NIfTI images as streams: blocks of whole volumes, one pass, bounded memory.

nibabel hands out either the whole 4-D image or seeks inside a gzip stream, which decompresses it from the start again; so the
voxels are read here. Nothing is memory-mapped: mapped pages count against a worker's memory limit.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from daskdecode.errors import CorruptFileError, SourceError
from daskdecode.sources.nifti_header import NiftiHeader, data_offset_of, files_of, grid_of, parse_header, read_header, real_dtype
from daskdecode.sources.streams import READ_ERRORS, Hasher, atomic_file, open_stream, read_or_explain

__all__ = ["BLOCK_NBYTES", "NiftiHeader", "check_length", "read_header", "stream_volumes", "voxel_file_order", "write_nifti"]

BLOCK_NBYTES: Final = 16 * 2**20
"""Blocks above 32 MiB cost a tenth more time: the allocator hands each one back to the system and faults its pages in again."""

_SKIP_NBYTES: Final = 2**20
_BEST_COMPRESSION: Final = 1032  # deflate spends at least 2 bits on 258 bytes


def stream_volumes(
    header: NiftiHeader, *, block_nbytes: int = BLOCK_NBYTES, hasher: Hasher | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Read all volumes of an image in one pass, in blocks of whole volumes.

    Parameters
    ----------
    header : NiftiHeader
        From :func:`read_header`.
    block_nbytes : int
        Size of a block, bytes; a block holds at least one volume.
    hasher : hashlib object, optional
        Updated with every byte of ``header.data_path`` as it lies on disk, so that a checksum costs no second read. It has seen the
        whole file once the iterator is exhausted.

    Yields
    ------
    first_volume : int
        Index of the block's first volume in the file.
    block : ndarray, shape (n, n_voxels), ``header.dtype``, read-only
        Stored values (unscaled), voxels in file order: i runs fastest, see :func:`voxel_file_order`.

    Raises
    ------
    CorruptFileError
        The file ends early, fails its checksum, or goes on for a whole volume or more after the last one. A gzip checksum stands at
        the end of its file, so blocks that came before the error are not to be trusted: use nothing until the iterator has ended.

    Notes
    -----
    Memory: the block being read and, for as long as the caller keeps it, the block before. Gzip files of several members (bgzip) are
    read whole.
    """
    per_block = max(1, block_nbytes // header.volume_nbytes)
    with open_stream(header.data_path, hasher) as stream:
        _skip(stream, header)
        for first in range(0, header.n_volumes, per_block):
            n = min(per_block, header.n_volumes - first)
            # A generator's frame outlives each yield: a name for the block here would keep it while the next one is read.
            yield first, _read_block(stream, header, first, n)
        _check_end(stream, header)


def check_length(header: NiftiHeader) -> None:
    """Raise where the file cannot hold the volumes that its header announces.

    A plain file is judged by its size, and so is a gzip file that even the best compression could not make so small. Other gzip
    files say how long they were in their last four bytes; only where that disagrees (several members, or truncation, which leaves
    arbitrary bytes at the end) is the file decompressed, in bounded memory.

    Raises
    ------
    CorruptFileError
        The file is too short, or longer by a volume or more.
    """
    expected = header.data_offset + header.data_nbytes
    size = header.data_path.stat().st_size
    if header.is_compressed:
        if size * _BEST_COMPRESSION < expected:
            raise CorruptFileError(
                f"{header.data_path} has {size} bytes, which cannot hold the {expected} that its header announces, however well "
                "compressed. It is truncated or its header is damaged: copy or download it again."
            )
        with header.data_path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            (length_modulo,) = struct.unpack("<I", file.read(4))
        if length_modulo != expected % 2**32:
            for _ in stream_volumes(header):
                pass
        return
    if size < expected:
        raise _too_short(header, max(0, size - header.data_offset))
    if size >= expected + header.volume_nbytes:
        raise _too_long(header)


def voxel_file_order(voxel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Where voxels, named by their flat C-order index, stand in a volume of a NIfTI file.

    Parameters
    ----------
    voxel : ndarray of int, shape (n_voxels,)
        ``numpy.ravel_multi_index((i, j, k), shape)``.
    shape : tuple of int
        (nx, ny, nz).

    Returns
    -------
    ndarray of int64, shape (n_voxels,)
        ``i + nx * (j + ny * k)``.
    """
    return np.asarray(np.ravel_multi_index(np.unravel_index(voxel, shape), shape, order="F"), dtype=np.int64)


def write_nifti(path: str | os.PathLike[str], header_bytes: bytes, volumes: Iterable[np.ndarray], *, compresslevel: int = 1) -> Path:
    """Write an image from the header of another, bit for bit, and blocks of volumes.

    Parameters
    ----------
    path : path-like
        ``.nii`` or ``.nii.gz`` for the header of a single file; ``.hdr`` or ``.img`` (or with ``.gz``) for that of a pair.
    header_bytes : bytes
        ``NiftiHeader.header_bytes``, written as they are.
    volumes : iterable of ndarray, shape (n, n_voxels), the header's dtype
        Stored values in file order, block after block.
    compresslevel : int
        0 to 3, of isal.

    Returns
    -------
    Path
        `path`. Written under a temporary name beside it and renamed at the end: a failure leaves nothing behind. Equal input gives
        equal bytes (the gzip stream carries no time and no name).

    Raises
    ------
    SourceError
        The name does not suit the header, or the blocks are not the voxels that it announces.

    Notes
    -----
    Memory: one block.
    """
    path = Path(path)
    header_path, data_path = files_of(path, must_exist=False)
    is_pair = header_path != data_path
    header = parse_header(header_bytes, path, is_pair=is_pair)
    (shape, n_volumes), dtype = grid_of(header, path), real_dtype(header, path)
    with contextlib.ExitStack() as stack:
        data_file = stack.enter_context(atomic_file(data_path, compresslevel))
        header_file = stack.enter_context(atomic_file(header_path, compresslevel)) if is_pair else data_file
        header_file.write(header_bytes)
        if is_pair:
            data_file.write(bytes(data_offset_of(header, path)))
        n_written = 0
        for block in volumes:
            if block.ndim != 2 or block.shape[1] != np.prod(shape) or block.dtype.newbyteorder("=") != dtype.newbyteorder("="):
                raise SourceError(
                    f"Cannot write {path}: its header announces volumes of {np.prod(shape)} {dtype} voxels, "
                    f"but a block of shape {block.shape} and dtype {block.dtype} came."
                )
            data_file.write(np.ascontiguousarray(block, dtype=dtype).data.cast("B"))
            n_written += len(block)
        if n_written != n_volumes:
            raise SourceError(f"Cannot write {path}: its header announces {n_volumes} volumes, but {n_written} came.")
    return path


def _skip(stream: IO[bytes], header: NiftiHeader) -> None:
    """Read up to the voxels: a gzip stream cannot seek, and the hasher has to see every byte."""
    left = header.data_offset
    while left > 0:
        skipped = len(read_or_explain(stream, min(left, _SKIP_NBYTES), header.data_path))
        if skipped == 0:
            raise _too_short(header, 0)
        left -= skipped


def _read_block(stream: IO[bytes], header: NiftiHeader, first: int, n: int) -> np.ndarray:
    """Read `n` volumes; bytes that the stream has just allocated become the array without a copy."""
    wanted = n * header.volume_nbytes
    try:
        data = stream.read(wanted)
    except READ_ERRORS as error:
        reached = min(max((stream.tell() - header.data_offset) // header.volume_nbytes, first), first + n - 1)
        raise _damaged(header, f"in or soon after volume {reached}", error) from error
    if len(data) < wanted:
        raise _too_short(header, first * header.volume_nbytes + len(data))
    return np.frombuffer(data, dtype=header.dtype).reshape(n, header.n_voxels)


def _check_end(stream: IO[bytes], header: NiftiHeader) -> None:
    """Read what follows the last volume: the gzip checksum is only tested there, and padding may follow, but not data."""
    extra = 0
    try:
        while more := len(stream.read(_SKIP_NBYTES)):
            extra += more
    except READ_ERRORS as error:
        raise _damaged(header, f"after its last volume, {header.n_volumes - 1}", error) from error
    if extra >= header.volume_nbytes:
        raise _too_long(header)


def _damaged(header: NiftiHeader, where: str, error: Exception) -> CorruptFileError:
    return CorruptFileError(
        f"{header.data_path} is damaged {where} (its header announces {header.n_volumes} volumes): {error}. Copy or download it again."
    )


def _too_short(header: NiftiHeader, found: int) -> CorruptFileError:
    return CorruptFileError(
        f"{header.data_path} ends in volume {found // header.volume_nbytes}, after {found} of the {header.data_nbytes} bytes of voxels "
        f"that its header announces ({header.n_volumes} volumes of {' x '.join(map(str, header.shape))} {header.dtype.name}). "
        "It is truncated: copy or download it again."
    )


def _too_long(header: NiftiHeader) -> CorruptFileError:
    return CorruptFileError(
        f"{header.data_path} holds more volumes than the {header.n_volumes} that its header announces: header and data do not "
        "belong together. Write the image again from its source."
    )
