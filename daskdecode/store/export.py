"""From a study store back to NIfTI: a store gives back its sources bit for bit, a dataset is written as it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import xarray as xr
from zarr.abc.store import Store

from daskdecode.errors import StoreError
from daskdecode.lost import ends_in_words
from daskdecode.schema import BOLD, TIME, VOXEL, run_ids
from daskdecode.sources.nifti import voxel_file_order, write_nifti
from daskdecode.store.layout import StoreLike, address, as_store, read_attributes
from daskdecode.store.open import require_complete
from daskdecode.store.read import open_array, read_stored, read_vector
from daskdecode.store.write import SOURCE_HEADER

_BLOCK_NBYTES: Final = 16 * 2**20
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")


@ends_in_words()
def export(ds_or_store: xr.Dataset | StoreLike, path: str | os.PathLike[str]) -> list[Path]:
    """Write NIfTI files from a study store, or from a dataset.

    Parameters
    ----------
    ds_or_store : Dataset, or path, URL or Zarr store
        A store gives back each of its source files: header and extensions bit for bit, and the stored values of every voxel that was
        kept; the others are zero. With ``mask="none"`` the uncompressed file equals the source. Where volumes were left out at
        conversion they are missing here, and the header says how many there are. A dataset is written as one image of its float
        values, zero outside its voxels.
    path : path-like
        A file name (``.nii``, ``.nii.gz``; ``.hdr`` or ``.img`` for a source that is a pair) for a dataset or a store of one source
        file; otherwise a folder, in which files stand as ``sub-<id>/[ses-<id>/]<name of the source file>``.

    Returns
    -------
    list of Path
        What was written. Existing files are replaced; each appears under its name once it is whole.

    Raises
    ------
    StoreError
        The store is incomplete or damaged, has several source files but `path` names one, or would replace one of its own sources; the
        runs of the dataset differ in repetition time. No empty folder is left then.

    Notes
    -----
    Eager, run by run; memory: one time chunk of a run (at most 96 MiB from a store).
    """
    path = Path(path)
    if isinstance(ds_or_store, xr.Dataset):
        with _folders([path.parent]):
            return [_export_dataset(ds_or_store, path)]
    store = as_store(ds_or_store, read_only=True)
    plan = require_complete(store)["plan"]
    runs_of: dict[int, list[dict[str, Any]]] = {}
    for run in plan["runs"]:
        runs_of.setdefault(run["source"], []).append(run)
    targets = _targets(path, {n: (plan["sources"][n]["path"], runs) for n, runs in runs_of.items()}, address(store))
    sources = {os.path.realpath(source["path"]) for source in plan["sources"]}
    for target in targets.values():
        if os.path.realpath(target) in sources:
            raise StoreError(f"{target} is a source of {address(store)}: exporting there would replace it. Choose another path.")
    with _folders([target.parent for target in targets.values()]):
        for n, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _export_source(store, runs_of[n], target)
    return list(targets.values())


@contextlib.contextmanager
def _folders(folders: Iterable[Path]) -> Iterator[None]:
    """Remove those of these folders, and of their parents, that an error leaves empty and that were not there before."""
    absent = {folder for path in folders for folder in (path, *path.parents) if not folder.exists()}
    try:
        yield
    except BaseException:
        for folder in sorted(absent, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _is_image_name(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI) and not path.is_dir()


def _targets(path: Path, sources: Mapping[int, tuple[str, list[dict[str, Any]]]], where: str) -> dict[int, Path]:
    """The file to write for each source."""
    if _is_image_name(path):
        if len(sources) > 1:
            raise StoreError(f"{where} was made from {len(sources)} files, which cannot be written into one, {path}: pass a folder.")
        return dict.fromkeys(sources, path)
    targets: dict[int, Path] = {}
    for n, (source, runs) in sources.items():
        folder = path / Path(runs[0]["node"]).parent
        target = folder / Path(source).name
        # Files of one name from several folders are told apart by their first run.
        targets[n] = target if target not in targets.values() else folder / f"run-{runs[0]['run']}_{target.name}"
    return targets


def _export_source(store: Store, runs: list[dict[str, Any]], target: Path) -> None:
    runs = sorted(runs, key=lambda run: int(run["start"]))
    header = read_vector(store, f"{runs[0]['node']}/{SOURCE_HEADER}").tobytes()
    n_volumes = sum(run["stop"] - run["start"] for run in runs)
    attributes = read_attributes(store, runs[0]["node"]) or {}
    if n_volumes != attributes["source"]["n_volumes"]:
        header = _with_n_volumes(header, n_volumes)
    write_nifti(target, header, (block for run in runs for block in _volumes(store, run)))


def _with_n_volumes(header_bytes: bytes, n_volumes: int) -> bytes:
    sizes = (int.from_bytes(header_bytes[:4], "little"), int.from_bytes(header_bytes[:4], "big"))
    kind: Any = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    header = kind(header_bytes[: kind.sizeof_hdr], check=False)
    header["dim"][4] = n_volumes
    return bytes(header.binaryblock) + header_bytes[kind.sizeof_hdr :]


def _volumes(store: Store, run: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Stored values of a run as volumes in file order, block by block."""
    subject_node = run["node"].split("/")[0]
    subject, attributes = read_attributes(store, subject_node) or {}, read_attributes(store, run["node"]) or {}
    bold = open_array(store, f"{run['node']}/{BOLD}")
    voxel = read_vector(store, f"{subject_node}/{VOXEL}")
    outside = _stored_zero(bold.dtype, attributes["slope"], attributes["intercept"])
    for start in range(0, bold.shape[0], bold.chunks[0]):
        stored = read_stored(bold, slice(start, start + bold.chunks[0]), run["node"], address(store))
        yield from _spread(stored, voxel, subject["shape"], outside)


def _stored_zero(dtype: np.dtype[Any], slope: float, intercept: float) -> Any:
    """The stored value that scales to zero, or as near as the type allows."""
    value = -intercept / slope
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        value = int(np.clip(np.rint(value), limits.min, limits.max))
    return dtype.type(value)


def _spread(values: np.ndarray, voxel: np.ndarray, shape: list[int], outside: Any) -> Iterator[np.ndarray]:
    """Put (time, voxel) values into whole volumes, (n, nx * ny * nz) in file order, a bounded number at a time."""
    columns, n_all = voxel_file_order(voxel, (shape[0], shape[1], shape[2])), int(np.prod(shape))
    n_at_once = max(1, _BLOCK_NBYTES // (n_all * values.dtype.itemsize))
    for start in range(0, len(values), n_at_once):
        part = values[start : start + n_at_once]
        block = np.full((len(part), n_all), outside, dtype=values.dtype)
        block[:, columns] = part
        yield block


def _export_dataset(ds: xr.Dataset, path: Path) -> Path:
    if not _is_image_name(path):
        raise StoreError(f"A dataset is written into one image, but {path} is not named as one: expected .nii or .nii.gz.")
    bold = ds[BOLD].transpose(TIME, VOXEL)
    repetition_time = _repetition_time(ds, path)
    shape = [*ds.attrs["shape"], bold.sizes[TIME]]
    kind: Any = nib.Nifti1Header if max(shape) < 2**15 else nib.Nifti2Header
    header = kind()
    header.set_data_dtype(bold.dtype)
    header.set_data_shape(shape)
    affine = np.array(ds.attrs["affine"])
    header.set_qform(affine, code=ds.attrs.get("qform_code", 0), strip_shears=True)
    header.set_sform(affine, code=ds.attrs.get("sform_code", 0) or 2)
    header.set_zooms([*nib.affines.voxel_sizes(affine), repetition_time])
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    lengths = bold.chunksizes.get(TIME, (64,) * -(-shape[3] // 64))
    stops = np.cumsum(lengths)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = (bold[stop - n : stop].to_numpy() for n, stop in zip(lengths, stops, strict=True))
    voxel = ds[VOXEL].to_numpy()
    return write_nifti(
        path, header.binaryblock + bytes(4), (block for part in parts for block in _spread(part, voxel, shape[:3], bold.dtype.type(0)))
    )


def _repetition_time(ds: xr.Dataset, path: Path) -> float:
    """The one repetition time of the dataset's volumes, which is all that the header of one image can say."""
    each = ds.attrs.get("repetition_times")
    if each is None:
        return float(ds.attrs["repetition_time"])
    times = {run: float(each[run]) for run in dict.fromkeys(run_ids(ds).tolist())}
    if len(set(times.values())) > 1:
        said = ", ".join(f"run {run}: {time:g} s" for run, time in times.items())
        raise StoreError(
            f"{path} cannot be written as one image, because its runs differ in repetition time ({said}): export runs of one "
            "repetition time, ds.isel(time=ds.run == ...), or the store, which gives every source file back."
        )
    return next(iter(times.values()))
