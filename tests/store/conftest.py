"""Small images of any type, written byte by byte so that nothing is scaled behind the tests' back."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from daskdecode.sources.run import Run

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3.5, 0.2, -20], [0, -0.2, 4, 5], [0, 0, 0, 1]])


def _random_values(dtype: str, n_volumes: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Values over the whole range of a type; floats with NaN and infinity."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = (rng.standard_normal((*shape, n_volumes)) * 1e3).astype(kind)
        values[1, 2, 3, 0], values[2, 2, 2, 1], values[0, 0, 0, -1] = np.nan, np.inf, -0.0
        return values
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, (*shape, n_volumes), dtype=kind.newbyteorder("="), endpoint=True).astype(kind)


def _write_image(
    path: Path,
    values: np.ndarray,
    *,
    slope: float = np.nan,
    intercept: float = np.nan,
    extension: bytes = b"",
    kind: type = nib.Nifti1Header,
) -> Path:
    """Write stored values, i, j, k, t, under a header with this scaling, and an extension after it."""
    header = kind(endianness=">" if values.dtype.byteorder == ">" else "<")
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_sform(AFFINE, 2)
    header.set_qform(AFFINE, 1)
    header.set_zooms([*header.get_zooms()[:3], 2.5])
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"kept bit for bit"
    extra = b"\x00" * 4
    if extension:
        size = 16 * (-(-(len(extension) + 8) // 16))
        extra = b"\x01\x00\x00\x00" + np.array([size, 6], "<i4").tobytes()
        extra += extension.ljust(size - 8, b"\x00")
    header["vox_offset"] = header.sizeof_hdr + len(extra)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    raw = header.binaryblock + extra + values.tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 1, mtime=0) if path.suffix == ".gz" else raw)
    return path


@pytest.fixture
def write_image() -> Callable[..., Path]:
    return _write_image


@pytest.fixture
def random_values() -> Callable[..., np.ndarray]:
    return _random_values


@pytest.fixture
def make_runs(tmp_path: Path) -> Callable[..., list[Run]]:
    """Several labelled int16 runs of one subject, in files of their own."""

    def make(n_runs: int = 3, n_volumes: int = 6, subject: str = "1", session: str | None = None, folder: str = "nifti") -> list[Run]:
        runs = []
        for n in range(n_runs):
            name = f"sub-{subject}{'' if session is None else f'_ses-{session}'}_run-{n + 1:02}_bold.nii.gz"
            path = tmp_path / folder / name
            if not path.exists():  # the same files when asked again
                _write_image(path, _random_values("<i2", n_volumes, seed=n + 17 * len(subject)))
            labels = np.array(["face", "cat", "rest"])[np.arange(n_volumes) % 3].tolist()
            runs.append(Run(path, labels=labels, subject=subject, session=session, run=f"{n + 1:02}"))
        return runs

    return make
