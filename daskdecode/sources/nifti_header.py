"""What a 4-D NIfTI image says about itself, checked: nibabel decodes the fields, this module decides whether they make a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError

from daskdecode.errors import CorruptFileError, SourceError
from daskdecode.sources.streams import is_gzip, open_stream, read_or_explain

# sizeof_hdr (first four bytes) -> header class of a single file and of a pair, bytes of the magic string in the header.
_FORMATS: Final = {
    348: (Nifti1Header, Nifti1PairHeader, slice(344, 348)),
    540: (Nifti2Header, Nifti2PairHeader, slice(4, 8)),
}
# Time units in xyzt_units; Hz, ppm and rad/s (32, 40, 48) are units of a spectrum, not of time.
_UNKNOWN_UNIT, _SECONDS = 0, {8: 1.0, 16: 1e-3, 24: 1e-6}
_LONGEST_TR_S: Final = 100.0
_LARGEST_HEADER_NBYTES: Final = 2**28  # a damaged offset should not make us ask for a terabyte


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
    header_path, data_path = files_of(path)
    is_pair = header_path != data_path
    with open_stream(header_path) as stream:
        raw = read_or_explain(stream, 540, header_path)
        header = parse_header(raw, path, is_pair=is_pair)
        offset = data_offset_of(header, path)
        raw += read_or_explain(stream, -1 if is_pair else max(0, offset - len(raw)), header_path)
    if not is_pair and len(raw) < offset:
        raise CorruptFileError(
            f"{path} ends inside its header: the voxels should begin at byte {offset} but the file has {len(raw)} bytes. "
            "It is truncated: copy it again."
        )
    slope, intercept = _scaling(header, path)
    shape, n_volumes = grid_of(header, path)
    zooms = header.get_zooms()
    return NiftiHeader(
        path=path,
        data_path=data_path,
        shape=shape,
        n_volumes=n_volumes,
        dtype=real_dtype(header, path),
        slope=slope,
        intercept=intercept,
        affine=_affine(header, path),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        zooms=(float(zooms[0]), float(zooms[1]), float(zooms[2])),
        repetition_time_s=_repetition_time(header),
        header_bytes=raw if is_pair else raw[:offset],
        data_offset=offset,
        is_compressed=is_gzip(data_path),
    )


def files_of(path: Path, *, must_exist: bool = True) -> tuple[Path, Path]:
    """Header file and data file of an image: twice the same, or the two of a pair."""
    stem, gz = (path.name[:-3], path.name[-3:]) if path.name.lower().endswith(".gz") else (path.name, "")
    kind = Path(stem).suffix.lower()
    if must_exist and not path.is_file():  # first: what does not exist may well be a folder, and has no wrong name then
        raise SourceError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a NIfTI file.")
    if kind not in (".nii", ".hdr", ".img"):
        raise SourceError(f"{path} is not named as a NIfTI image: expected .nii, .nii.gz, .hdr or .img.")
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


def parse_header(raw: bytes, path: Path, *, is_pair: bool) -> Any:
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
        raise SourceError(f"The NIfTI header of {path} is not valid: {error}") from error


def data_offset_of(header: Any, path: Path) -> int:
    """Byte at which the voxels begin."""
    offset = float(header["vox_offset"])
    if not (0 <= offset <= _LARGEST_HEADER_NBYTES and offset == int(offset)):
        raise SourceError(f"The NIfTI header of {path} says that the voxels begin at byte {offset}, which cannot be.")
    # Some writers of single files leave the field at 0 and mean "right after the header".
    return max(int(offset), header.single_vox_offset) if header.is_single else int(offset)


def grid_of(header: Any, path: Path) -> tuple[tuple[int, int, int], int]:
    """Voxels along i, j and k, and volumes, of an image that has to be 4-D."""
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


def real_dtype(header: Any, path: Path) -> np.dtype[Any]:
    """Type of the stored values, byte order included."""
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except HeaderDataError as error:
        raise SourceError(f"The NIfTI header of {path} names an unknown data type: {error}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SourceError(f"{path} holds {dtype} values; a BOLD image holds integers or floats of at most 64 bits.")
    return dtype


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise SourceError(f"The scaling in the NIfTI header of {path} is not valid: {error}") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def _affine(header: Any, path: Path) -> np.ndarray:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise SourceError(f"The orientation in the NIfTI header of {path} is not valid: {error}") from error
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
