"""NIfTI images as streams: the header first, then blocks of whole volumes, one pass, bounded memory.

nibabel reads the header; the voxels are read here, because nibabel hands out either the whole 4-D image or seeks inside a gzip
stream, which decompresses it from the start again. Nothing is memory-mapped: mapped pages count against a worker's memory limit.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError

from daskdecode.errors import CorruptFileError, SourceError

BLOCK_NBYTES: Final = 64 * 2**20
_SKIP_NBYTES: Final = 2**20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_READ_ERRORS: Any = (EOFError, OSError, isal_zlib.error)
# sizeof_hdr (first four bytes) -> header class of a single file and of a pair, bytes of the magic string in the header.
_FORMATS: Final = {
    348: (Nifti1Header, Nifti1PairHeader, slice(344, 348)),
    540: (Nifti2Header, Nifti2PairHeader, slice(4, 8)),
}
# Time units in xyzt_units; Hz, ppm and rad/s (32, 40, 48) are units of a spectrum, not of time.
_UNKNOWN_UNIT, _SECONDS = 0, {8: 1.0, 16: 1e-3, 24: 1e-6}
_LONGEST_TR_S: Final = 100.0


_gzip: Any = igzip.IGzipFile  # untyped


class Hasher(Protocol):
    """What :mod:`hashlib` objects do."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes in."""


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a 4-D NIfTI image says about itself; no voxel has been read.

    Attributes
    ----------
    path : Path
        The image as it was named: ``.nii``, ``.nii.gz``, or either file of a ``.hdr``/``.img`` pair.
    data_path : Path
        The file that holds the voxels: `path`, or the ``.img`` of a pair.
    shape : tuple of int
        Voxels along i, j and k.
    n_volumes : int
    dtype : numpy.dtype
        As on disk, byte order included.
    slope, intercept : float
        True value = ``slope * stored + intercept``; 1 and 0 where the header sets none (absent, zero or NaN slope).
    affine : ndarray, shape (4, 4), float64
        Voxel indices to world, mm, RAS+.
    qform_code, sform_code : int
    zooms : tuple of float
        Voxel sizes, mm.
    repetition_time_s : float or None
        Seconds, whatever unit the header counts in; None where it says nothing credible.
    header_bytes : bytes
        Everything before the voxels, bit for bit: header, extensions and padding of a single file, the whole ``.hdr`` of a pair.
    data_offset : int
        Where the voxels begin in the (decompressed) `data_path`.
    is_compressed : bool
        Whether `data_path` is gzipped, by its content rather than its name.
    """

    path: Path
    data_path: Path
    shape: tuple[int, int, int]
    n_volumes: int
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine: np.ndarray
    qform_code: int
    sform_code: int
    zooms: tuple[float, float, float]
    repetition_time_s: float | None
    header_bytes: bytes
    data_offset: int
    is_compressed: bool

    @property
    def scaled(self) -> bool:
        """Whether stored values have to be scaled to be true values."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def n_voxels(self) -> int:
        """Voxels of one volume."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def volume_nbytes(self) -> int:
        """Bytes of one volume as stored, decompressed."""
        return self.n_voxels * self.dtype.itemsize

    @property
    def data_nbytes(self) -> int:
        """Bytes of all volumes as stored, decompressed."""
        return self.n_volumes * self.volume_nbytes


def read_header(path: str | os.PathLike[str]) -> NiftiHeader:
    """Read the header of a 4-D NIfTI-1 or NIfTI-2 image, plain or gzipped, single file or pair.

    Parameters
    ----------
    path : path-like
        ``.nii``, ``.nii.gz``, ``.hdr`` or ``.img`` (each with ``.gz`` or not). Whether a file is gzipped is decided by its content.

    Returns
    -------
    NiftiHeader
        Eager; reads the header and its extensions only.

    Raises
    ------
    SourceError
        The file is missing, is no NIfTI image, is not 4-D, has no volumes, or holds values that are not real numbers.
    CorruptFileError
        The file ends inside its header.
    """
    path = Path(path)
    header_path, data_path = _files_of(path)
    is_pair = header_path != data_path
    with _open(header_path) as stream:
        raw = _read_or_explain(stream, 540, header_path)
        header = _parse(raw, path, is_pair=is_pair)
        offset = _data_offset(header, path)
        raw += _read_or_explain(stream, -1 if is_pair else max(0, offset - len(raw)), header_path)
    if not is_pair and len(raw) < offset:
        raise CorruptFileError(
            f"{path} ends inside its header: the voxels should begin at byte {offset} but the file has {len(raw)} bytes. "
            "It is truncated: copy it again."
        )
    slope, intercept = _scaling(header, path)
    shape, n_volumes = _grid(header, path)
    zooms = header.get_zooms()
    return NiftiHeader(
        path=path,
        data_path=data_path,
        shape=shape,
        n_volumes=n_volumes,
        dtype=_real_dtype(header, path),
        slope=slope,
        intercept=intercept,
        affine=_affine(header, path),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        zooms=(float(zooms[0]), float(zooms[1]), float(zooms[2])),
        repetition_time_s=_repetition_time(header),
        header_bytes=raw if is_pair else raw[:offset],
        data_offset=offset,
        is_compressed=_is_gzip(data_path),
    )


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
    with _open(header.data_path, hasher) as stream:
        _skip(stream, header)
        for first in range(0, header.n_volumes, per_block):
            n = min(per_block, header.n_volumes - first)
            # A generator's frame outlives each yield: a name for the block here would keep it while the next one is read.
            yield first, _read_block(stream, header, first, n)
        _check_end(stream, header)


def check_length(header: NiftiHeader) -> None:
    """Raise where the file cannot hold the volumes that its header announces.

    A plain file is judged by its size. A gzip file says how long it was in its last four bytes; only where that disagrees (several
    members, or truncation, which leaves arbitrary bytes at the end) is it decompressed, in bounded memory.

    Raises
    ------
    CorruptFileError
        The file is too short, or longer by a volume or more.
    """
    expected = header.data_offset + header.data_nbytes
    if header.is_compressed:
        with header.data_path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            (length_modulo,) = struct.unpack("<I", file.read(4))
        if length_modulo != expected % 2**32:
            for _ in stream_volumes(header):
                pass
        return
    found = header.data_path.stat().st_size
    if found < expected:
        raise _too_short(header, max(0, found - header.data_offset))
    if found >= expected + header.volume_nbytes:
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
    header_path, data_path = _files_of(path, must_exist=False)
    is_pair = header_path != data_path
    header = _parse(header_bytes, path, is_pair=is_pair)
    (shape, n_volumes), dtype = _grid(header, path), _real_dtype(header, path)
    with contextlib.ExitStack() as stack:
        data_file = stack.enter_context(_atomic(data_path, compresslevel))
        header_file = stack.enter_context(_atomic(header_path, compresslevel)) if is_pair else data_file
        header_file.write(header_bytes)
        if is_pair:
            data_file.write(bytes(_data_offset(header, path)))
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


# --- files ------------------------------------------------------------------------------------------------------------------------


def _files_of(path: Path, *, must_exist: bool = True) -> tuple[Path, Path]:
    """Header file and data file of an image: twice the same, or the two of a pair."""
    stem, gz = (path.name[:-3], path.name[-3:]) if path.name.lower().endswith(".gz") else (path.name, "")
    kind = Path(stem).suffix.lower()
    if kind not in (".nii", ".hdr", ".img"):
        raise SourceError(f"{path} is not named as a NIfTI image: expected .nii, .nii.gz, .hdr or .img.")
    if must_exist and not path.is_file():
        raise SourceError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a NIfTI file.")
    if kind == ".nii":
        return path, path
    other_kind = ".img" if kind == ".hdr" else ".hdr"
    other = path.with_name(Path(stem).stem + (other_kind.upper() if kind != Path(stem).suffix else other_kind))
    candidates = [other.with_name(other.name + ending) for ending in dict.fromkeys((gz, "", ".gz"))]
    found = next((c for c in candidates if c.is_file()), None)
    if found is None and must_exist:
        raise SourceError(f"{path} is one half of a .hdr/.img pair, but {candidates[0]} does not exist.")
    other = found if found is not None and must_exist else candidates[0]
    return (path, other) if kind == ".hdr" else (other, path)


class _HashingReader(io.RawIOBase):
    """A raw file that shows every byte it reads to a hasher."""

    def __init__(self, raw: io.FileIO, hasher: Hasher) -> None:
        self._raw, self._hasher = raw, hasher

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        n = self._raw.readinto(buffer)
        self._hasher.update(memoryview(buffer)[:n])
        return n

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextlib.contextmanager
def _open(path: Path, hasher: Hasher | None = None) -> Iterator[IO[bytes]]:
    """Open a file for one pass, decompressed; `hasher` sees the bytes on disk."""
    is_gzip = _is_gzip(path)
    raw: Any = io.FileIO(path)
    if hasher is not None:
        raw = _HashingReader(raw, hasher)
    with raw:
        stream = _gzip(fileobj=raw, mode="rb") if is_gzip else io.BufferedReader(raw)
        with stream:
            yield stream


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


@contextlib.contextmanager
def _atomic(path: Path, compresslevel: int) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if path.suffix.lower() == ".gz":
                with _gzip(filename="", mode="wb", compresslevel=compresslevel, fileobj=file, mtime=0) as stream:
                    yield stream
            else:
                yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------------------


def _read_or_explain(stream: IO[bytes], n: int, path: Path) -> bytes:
    try:
        return stream.read(n)
    except _READ_ERRORS as error:
        raise CorruptFileError(f"The header of {path} cannot be read: {error}. The file is damaged: copy it again.") from error


def _skip(stream: IO[bytes], header: NiftiHeader) -> None:
    """Read up to the voxels: a gzip stream cannot seek, and the hasher has to see every byte."""
    left = header.data_offset
    while left > 0:
        skipped = len(_read_or_explain(stream, min(left, _SKIP_NBYTES), header.data_path))
        if skipped == 0:
            raise _too_short(header, 0)
        left -= skipped


def _read_block(stream: IO[bytes], header: NiftiHeader, first: int, n: int) -> np.ndarray:
    """Read `n` volumes; bytes that the stream has just allocated become the array without a copy."""
    wanted = n * header.volume_nbytes
    try:
        data = stream.read(wanted)
    except _READ_ERRORS as error:
        raise _damaged(header, f"between volumes {first} and {first + n - 1}", error) from error
    if len(data) < wanted:
        raise _too_short(header, first * header.volume_nbytes + len(data))
    return np.frombuffer(data, dtype=header.dtype).reshape(n, header.n_voxels)


def _check_end(stream: IO[bytes], header: NiftiHeader) -> None:
    """Read what follows the last volume: the gzip checksum is only tested there, and padding may follow, but not data."""
    extra = 0
    try:
        while more := len(stream.read(_SKIP_NBYTES)):
            extra += more
    except _READ_ERRORS as error:
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


# --- header fields ----------------------------------------------------------------------------------------------------------------


def _parse(raw: bytes, path: Path, *, is_pair: bool) -> Any:
    """The nibabel header in `raw`: its fixed part only, so that broken extensions do no harm and stay as they are."""
    if len(raw) < 348:
        raise CorruptFileError(f"{path} has {len(raw)} bytes, fewer than a NIfTI header. It is truncated: copy it again.")
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    known = next((_FORMATS[size] for size in sizes if size in _FORMATS), None)
    magics = {b"ni1\0", b"ni2\0"} if is_pair else {b"n+1\0", b"n+2\0"}
    if known is None or raw[known[2]] not in magics:
        what = "is an Analyze 7.5 image or another kind of NIfTI than its name says" if known else "is not a NIfTI image"
        raise SourceError(f"{path} {what} (its first bytes are {raw[:4].hex(' ')}). Convert it to NIfTI, with nibabel for example.")
    header_class = known[1] if is_pair else known[0]
    try:
        build: Any = header_class
        return build(raw[: header_class.sizeof_hdr])
    except HeaderDataError as error:
        raise SourceError(f"The NIfTI header of {path} is not valid: {error}.") from error


def _data_offset(header: Any, path: Path) -> int:
    offset = float(header["vox_offset"])
    if not (np.isfinite(offset) and offset >= 0 and offset == int(offset)):
        raise SourceError(f"The NIfTI header of {path} says that the voxels begin at byte {offset}, which cannot be.")
    # Some writers of single files leave the field at 0 and mean "right after the header".
    return max(int(offset), header.single_vox_offset) if header.is_single else int(offset)


def _grid(header: Any, path: Path) -> tuple[tuple[int, int, int], int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) == 3:
        raise SourceError(
            f"{path} is 3-D, one volume of {' x '.join(map(str, shape))}; a run is 4-D, volumes one after another. "
            "Join single volumes first, with nilearn.image.concat_imgs for example."
        )
    if len(shape) < 4 or any(n != 1 for n in shape[4:]):
        raise SourceError(f"{path} has {len(shape)} dimensions, {shape}; a run has four: i, j, k and time.")
    if any(n < 1 for n in shape):
        raise SourceError(f"{path} is empty: its shape is {shape}, so it has no {'volumes' if shape[3] < 1 else 'voxels'}.")
    return (shape[0], shape[1], shape[2]), shape[3]


def _real_dtype(header: Any, path: Path) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except HeaderDataError as error:
        raise SourceError(f"The NIfTI header of {path} names an unknown data type: {error}.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SourceError(f"{path} holds {dtype} values; a BOLD image holds integers or floats of at most 64 bits.")
    return dtype


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise SourceError(f"The scaling in the NIfTI header of {path} is not valid: {error}.") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def _affine(header: Any, path: Path) -> np.ndarray:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise SourceError(f"The orientation in the NIfTI header of {path} is not valid: {error}.") from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise SourceError(
            f"The affine (voxel to world) in the NIfTI header of {path} cannot be inverted: {affine.tolist()}. "
            "Mend the header, with nibabel or fslorient for example."
        )
    return affine


def _repetition_time(header: Any) -> float | None:
    """Seconds from one volume to the next, or None.

    Writers that leave the unit out mean seconds, but some of them milliseconds: no volume takes 100 s, so such a number is not believed.
    """
    unit = int(header["xyzt_units"]) & 0b111000
    value = float(header.get_zooms()[3])
    if not (np.isfinite(value) and value > 0):
        return None
    if unit == _UNKNOWN_UNIT:
        return value if value < _LONGEST_TR_S else None
    return value * _SECONDS[unit] if unit in _SECONDS else None
