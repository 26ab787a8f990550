"""What a decoder is given, in one shape: a lazy matrix (samples, voxels), labels, runs, and the grid that leads back to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any

import dask
import dask.array as da
import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from daskdecode import schema
from daskdecode.data.mask import apply_mask
from daskdecode.data.preprocess import confound_table
from daskdecode.errors import DecodingError, GridMismatchError, SelectionError, SourceError, nearest
from daskdecode.models.splitters import natural_order
from daskdecode.sources.nifti import NiftiHeader, read_header, stream_volumes, voxel_file_order
from daskdecode.store.masks import load_mask

_COLUMN_CHUNK = 4096
_VOXELS_TURNED = 256


@dataclass(frozen=True)
class Quality:
    """Numbers of voxels with a value that is not finite, and of voxels that never change."""

    n_nonfinite: int
    n_constant: int


@dataclass(frozen=True)
class Samples:
    """Samples for decoding.

    Attributes
    ----------
    x : dask array, shape (n_samples, n_voxels)
        Lazy; as given, not scaled.
    y : ndarray, shape (n_samples,), or None
        Labels.
    groups : ndarray of str, shape (n_samples,), or None
        Name of the run of each sample.
    keys : ndarray, shape (n_samples,), or None
        The same for splitters: as the user gave them, or numbers in the natural order of a dataset's runs.
    grid : Dataset or None
        Voxel coordinates and attributes, without the signal: what :func:`daskdecode.to_nifti` needs.
    voxels : ndarray of int, shape (n_voxels,), or None
        Flat indices of the voxels, where they are known.
    source : dict
        Where the data came from, for the record.
    confounds : ndarray of float64, shape (n_samples, n_confounds), or None
    confound_names : list of str
    weight : ndarray of float64, shape (n_samples,), or None
        Weight of each sample in the fits.
    rows : ndarray of int, shape (n_samples,), or None
        Which samples of X these are, where some were left out.
    n_given : int
        Samples of X.
    """

    x: da.Array
    y: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    keys: NDArray[Any] | None = None
    grid: xr.Dataset | None = None
    voxels: NDArray[np.int64] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    confounds: NDArray[np.float64] | None = None
    confound_names: list[str] = field(default_factory=list)
    weight: NDArray[np.float64] | None = None
    rows: NDArray[np.intp] | None = None

    n_given: int = 0

    def numbers(self, samples: NDArray[np.intp]) -> NDArray[np.intp]:
        """Numbers that samples have in X."""
        return samples if self.rows is None else self.rows[samples]

    def confound_table(self, samples: NDArray[np.intp]) -> pd.DataFrame | None:
        """Confounds of some samples, by name."""
        return None if self.confounds is None else pd.DataFrame(self.confounds[samples], columns=self.confound_names)

    @property
    def voxel_order(self) -> NDArray[np.intp]:
        """Columns in canonical order: C order of the grid where voxels are known."""
        if self.voxels is None:
            return np.arange(self.x.shape[1], dtype=np.intp)
        return np.argsort(self.voxels, kind="stable").astype(np.intp)

    def finite(self) -> da.Array:
        """Signals with what is not finite set to 0, as nilearn's maskers do; lazy."""
        return da.map_blocks(_zero_where_not_finite, self.x, dtype=self.x.dtype) if self.x.dtype.kind == "f" else self.x


def _zero_where_not_finite(x: NDArray[np.floating]) -> NDArray[np.floating]:
    finite = np.isfinite(x)
    return x if finite.all() else np.where(finite, x, x.dtype.type(0))


def count_bad(x: NDArray[Any]) -> NDArray[np.intp]:
    """Count the voxels of a block (all samples, some voxels) for :class:`Quality`."""
    bad = ~np.isfinite(x).all(axis=0)
    return np.array([bad.sum(), (~bad & (x == x[:1]).all(axis=0)).sum()])


def as_samples(
    X: Any,
    y: Any = None,
    groups: Any = None,
    mask: Any = None,
    *,
    confounds: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
) -> Samples:
    """Take any of the inputs of :meth:`daskdecode.Decoder.fit`.

    Parameters
    ----------
    X : Dataset, DataArray, dask array, array-like, path or image, or a sequence of paths or images
    y : array-like, shape (n_samples,), optional
        Default: the ``label`` of a Dataset or DataArray.
    groups : array-like, shape (n_samples,), optional
        Default: the ``run`` of a Dataset or DataArray.
    mask : str, path, image or array, optional
        For a Dataset what :func:`daskdecode.apply_mask` takes; for NIfTI an image or path.
    confounds : str, sequence of str, DataFrame or array-like, shape (n_samples, n_confounds), optional
        Names are of variables or coordinates of a Dataset or DataArray along its samples.
    sample_weight : array-like of float, shape (n_samples,), optional
    sample_mask : array-like of bool, shape (n_samples,), or of int, optional
        Samples to take; all others are as if they were not in X.

    Raises
    ------
    DecodingError
        Lengths differ, X is not 2-D, or its type is not known; weights that are no weights, a mask that is none.
    SourceError
        Confounds that are not one row a sample, not numeric or not finite.
    SelectionError
        The mask is missing, empty, or on another grid.
    """
    if isinstance(X, xr.Dataset):
        found = _from_dataset(X, mask)
    elif _is_nifti(X):
        found = _from_nifti(X, mask)
    else:
        if mask is not None:
            raise DecodingError(f"mask= needs a grid, but X is a {type(X).__name__}: pass a Dataset or NIfTI, or select the columns of X.")
        found = _from_dataarray(X) if isinstance(X, xr.DataArray) else _from_array(X)
    n_samples = found.x.shape[0]
    found = replace(found, n_given=n_samples)
    rows = None if sample_mask is None else _rows(sample_mask, n_samples)
    if rows is not None:
        taken: dict[str, Any] = {name: None if (a := getattr(found, name)) is None else a[rows] for name in ("y", "groups", "keys")}
        found = replace(found, x=found.x.rechunk({0: -1})[rows], rows=rows, **taken)
    if y is not None:
        found = replace(found, y=_per_sample("y", y, n_samples, rows))
    if groups is not None:
        keys = _per_sample("groups", groups, n_samples, rows)
        found = replace(found, groups=keys.astype(str), keys=keys)
    if sample_weight is not None:
        found = replace(found, weight=_weights(_per_sample("sample_weight", sample_weight, n_samples, rows)))
    if confounds is not None:
        table = _named(X, confounds)
        values = confound_table(table, n_samples, rows).astype(np.float64)
        names = [str(name) for name in table] if isinstance(table, pd.DataFrame) else by_place(values.shape[1])
        found = replace(found, confounds=values, confound_names=names)
    n_samples = found.x.shape[0]
    if not n_samples or not found.x.shape[1]:
        raise SelectionError(f"X has {n_samples} samples and {found.x.shape[1]} voxels: nothing to decode.")
    return found


def _rows(sample_mask: Any, n_samples: int) -> NDArray[np.intp]:
    """Numbers of the samples that a mask takes, in their order in X."""
    given = np.asarray(sample_mask)
    if given.dtype == bool:
        if given.shape != (n_samples,):
            raise DecodingError(
                f"sample_mask has shape {given.shape} but X has {n_samples} samples: one value a sample, or sample numbers."
            )
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise DecodingError(f"sample_mask must hold booleans, one a sample, or sample numbers; found {given.dtype} of shape {given.shape}.")
    rows, counts = np.unique(given.astype(np.intp), return_counts=True)
    wrong = rows[(rows < 0) | (rows >= n_samples) | (counts > 1)]
    if wrong.size:
        hint = " For a mask of zeros and ones pass booleans: sample_mask.astype(bool)." if np.isin(given, (0, 1)).all() else ""
        raise DecodingError(
            f"sample_mask names sample {wrong[0]} more than once, or there is none: sample numbers go from 0 to {n_samples - 1}.{hint}"
        )
    return np.asarray(rows)


def _weights(given: NDArray[Any]) -> NDArray[np.float64]:
    if given.dtype.kind not in "iufb":
        raise DecodingError(f"sample_weight must hold numbers; found {given.dtype}.")
    weight = given.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if bad.size:
        raise DecodingError(f"sample_weight must be finite and not negative, but sample {bad[0]} has {weight[bad[0]]}.")
    return weight


def by_place(n_confounds: int) -> list[str]:
    """What confounds are called that came without names."""
    return [f"confound {n + 1}" for n in range(n_confounds)]


def names_variables(confounds: Any) -> bool:
    """Whether confounds are given as names of variables of the data, not as values."""
    names = [confounds] if isinstance(confounds, str) else confounds
    return isinstance(names, Sequence) and len(names) > 0 and all(isinstance(name, str) for name in names)


def _named(X: Any, confounds: Any) -> Any:
    """Table of the variables of X that confounds name; confounds that are no names, as they are."""
    if isinstance(confounds, list | tuple) and not confounds:
        raise DecodingError("confounds= names no variable: give at least one, or None for no confounds.")
    if not names_variables(confounds):
        return confounds
    names = [confounds] if isinstance(confounds, str) else confounds
    if not isinstance(X, xr.Dataset | xr.DataArray):
        raise DecodingError(
            f"confounds={names!r} names variables, but X is a {type(X).__name__}: pass a Dataset, or the values themselves."
        )
    known = X.variables if isinstance(X, xr.Dataset) else X.coords
    along = X[schema.BOLD].dims[0] if isinstance(X, xr.Dataset) else X.dims[0]
    along = schema.TIME if schema.TIME in X.dims else along
    fitting = [str(name) for name in known if known[name].dims == (along,)]
    for name in names:
        if name not in fitting:
            raise DecodingError(f"X has no variable {name!r} along {along}. {nearest(name, fitting)}")
    return pd.DataFrame({name: np.asarray(X[name].values) for name in names})


def _per_sample(name: str, given: Any, n_samples: int, rows: NDArray[np.intp] | None = None) -> NDArray[Any]:
    """One value a sample (those in ``rows``), none missing."""
    values: NDArray[Any] = np.asarray(given)
    if values.ndim != 1 or values.size != n_samples:
        raise DecodingError(f"{name} has shape {values.shape} but X has {n_samples} samples: {name} needs one value a sample.")
    # As they were given: beside text NumPy makes a missing value the word "nan", and a number text.
    plain = np.asarray(given, dtype=object)
    values, plain = (values, plain) if rows is None else (values[rows], plain[rows])
    missing = np.flatnonzero(pd.isna(plain))
    if missing.size:
        raise DecodingError(f"{name} is missing for {missing.size} samples (the first is sample {missing[0]}): leave those samples out.")
    if values.dtype == object:
        kinds = {type(value) for value in values.tolist()}
        values = np.asarray(values.tolist()) if len(kinds) == 1 else values.astype(str)
    if values.dtype.kind == "U":
        alike = sorted({v for v in plain if isinstance(v, str)} & {str(v) for v in plain if not isinstance(v, str)})
        if alike:
            raise DecodingError(
                f"{name} holds both the number {alike[0]} and the text {alike[0]!r}: are they the same? Make all of one kind."
            )
    if values.dtype.kind not in "iufbU":
        raise DecodingError(f"{name} must hold text or numbers; found {values.dtype}.")
    return values


def _from_dataset(ds: xr.Dataset, mask: Any) -> Samples:
    if schema.BOLD not in ds:
        raise DecodingError(f"The Dataset has no variable {schema.BOLD!r}: open it with daskdecode.open_subject. It has: {list(ds)}.")
    if mask is not None:
        ds = apply_mask(ds, mask)
    source = {k: ds.attrs[k] for k in ("subject", "session", "task", "store", "repetition_time") if k in ds.attrs}
    grid = ds.drop_vars(schema.BOLD).drop_dims(schema.TIME, errors="ignore")
    return replace(_from_dataarray(ds[schema.BOLD]), grid=grid, source=source)


def _from_dataarray(bold: xr.DataArray) -> Samples:
    if bold.ndim != 2:
        raise DecodingError(f"X has dimensions {bold.dims}: decoding needs two, samples and features.")
    if set(bold.dims) == {schema.TIME, schema.VOXEL}:
        bold = bold.transpose(schema.TIME, schema.VOXEL)
    samples_dim = bold.dims[0]
    label, run = (bold.coords.get(name) for name in (schema.LABEL, schema.RUN))
    y = np.asarray(label.values).astype(str) if label is not None and label.dims == (samples_dim,) else None
    groups = schema.run_ids(bold) if run is not None and run.dims == (samples_dim,) else None
    keys = None if groups is None else natural_order(groups)
    voxels = np.asarray(bold[schema.VOXEL].values) if schema.VOXEL in bold.coords and bold.dims[1] == schema.VOXEL else None
    return replace(_from_array(bold.data), y=y, groups=groups, keys=keys, voxels=voxels)


def _from_array(X: Any) -> Samples:
    if not isinstance(X, da.Array):
        try:
            X = np.asarray(X)
        except ValueError as error:
            raise DecodingError(f"X must be a matrix of numbers (n_samples, n_features): {error}.") from error
        if X.ndim == 2 and X.dtype.kind in "fiub":
            # name=False: nothing is cached by content, so hashing the data would buy nothing.
            X = da.from_array(X, chunks=(max(1, X.shape[0]), _COLUMN_CHUNK), name=False)
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        raise DecodingError(f"X must be a matrix of numbers (n_samples, n_features); found shape {X.shape}, dtype {X.dtype}.")
    if any(np.isnan(size) for size in X.shape):
        raise DecodingError("X is a dask array of unknown shape: call X.compute_chunk_sizes() first.")
    return Samples(X)


def _is_nifti(X: Any) -> bool:
    if isinstance(X, str | PathLike | SpatialImage):
        return True
    return isinstance(X, Sequence) and len(X) > 0 and all(isinstance(x, str | PathLike | SpatialImage) for x in X)


def _from_nifti(X: Any, mask: Any) -> Samples:
    if mask is None:
        raise DecodingError("X is NIfTI: pass mask= (an image or a path), or convert it once with daskdecode.convert and open the store.")
    images = list(X) if isinstance(X, Sequence) and not isinstance(X, str) else [X]
    shape, affine = _grid_of(images[0])
    inside = load_mask(mask, shape, affine, _name(mask))
    voxels = np.flatnonzero(inside.ravel())
    parts = [_lazily_masked(image, affine, shape, voxels) for image in images]
    grid = _grid(affine, shape, voxels)
    return Samples(da.concatenate(parts), grid=grid, voxels=voxels, source={"source": [_name(i) for i in images]})


def _grid_of(image: Any) -> tuple[tuple[int, ...], NDArray[Any]]:
    opened = _opened(image)
    return tuple(opened.shape[:3]), opened.affine


def _opened(image: Any) -> Any:
    """A header of ours for the path of a 4-D image, else nibabel's image."""
    if not isinstance(image, str | PathLike):
        return image
    try:
        opened: Any = nib.load(image)
    except (OSError, ImageFileError) as error:
        raise SourceError(f"{fspath(image)} cannot be read: {error}") from error
    return read_header(image) if len(opened.shape) == 4 else opened


def _lazily_masked(image: Any, affine: NDArray[Any], shape: tuple[int, ...], voxels: NDArray[np.intp]) -> da.Array:
    """Signals inside the mask, (n_volumes, n_voxels), read when they are computed; a file is streamed, never held whole."""
    opened = _opened(image)
    _check_grid(_name(image), opened.shape[:3], opened.affine, shape, affine)
    if isinstance(opened, NiftiHeader):
        dtype = np.dtype(np.float64) if opened.scaled else _float_of(opened.dtype)
        read = dask.delayed(_stream_masked, pure=False)(opened, voxels, dtype)
        return _in_chunks(read, (opened.n_volumes, voxels.size), dtype)
    if len(opened.shape) > 4:
        raise DecodingError(f"{_name(image)} has {len(opened.shape)} dimensions: images of 3 or 4 are decoded.")
    n_volumes = opened.shape[3] if len(opened.shape) == 4 else 1
    read = dask.delayed(_mask_image, pure=False, traverse=False)(opened, voxels)
    return _in_chunks(read, (n_volumes, voxels.size), _float_of(_dtype_of(opened)))


def _in_chunks(read: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> da.Array:
    chunked: da.Array = da.from_delayed(read, shape, dtype=dtype).rechunk((shape[0], _COLUMN_CHUNK))
    return chunked


def _dtype_of(image: Any) -> np.dtype[Any]:
    """Type of an image's values once they are scaled."""
    if isinstance(image.dataobj, np.ndarray):
        return np.dtype(image.dataobj.dtype)
    scaled = (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)
    return np.dtype(np.float64 if scaled else image.get_data_dtype())


def _mask_image(image: Any, voxels: NDArray[np.intp]) -> NDArray[np.floating]:
    values = np.asarray(image.dataobj)
    series = values.reshape(-1, values.shape[3] if values.ndim == 4 else 1)
    masked = np.empty((series.shape[1], voxels.size), dtype=_float_of(series.dtype))
    # A few voxels at a time: turning all of them at once would run past every cache.
    for some in np.array_split(np.arange(voxels.size), -(-voxels.size // _VOXELS_TURNED)):
        masked[:, some[0] : some[-1] + 1] = series[voxels[some]].T
    return masked


def _float_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Floats keep their precision; integers become float32 as in nilearn, but for those of more than 16 bits, which it has no room for."""
    return dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def _stream_masked(header: NiftiHeader, voxels: NDArray[np.intp], dtype: np.dtype[Any]) -> NDArray[np.floating]:
    order = voxel_file_order(voxels, header.shape)
    raw = np.concatenate([block[:, order] for _, block in stream_volumes(header)])
    return np.asarray(raw * np.float64(header.slope) + np.float64(header.intercept) if header.scaled else raw.astype(dtype))


def _check_grid(name: str, shape: Sequence[int], affine: NDArray[Any], first_shape: Sequence[int], first_affine: NDArray[Any]) -> None:
    if tuple(shape) != tuple(first_shape) or not np.allclose(affine, first_affine, atol=1e-2):
        raise GridMismatchError(
            f"{name} lies on a grid of {tuple(shape)} voxels and the first image on one of {tuple(first_shape)}, or their affines differ. "
            "Resample it: nilearn.image.resample_to_img(image, first_image)."
        )


def _grid(affine: NDArray[Any], shape: tuple[int, ...], voxels: NDArray[np.intp]) -> xr.Dataset:
    ijk = np.unravel_index(voxels, shape)
    coords = {schema.VOXEL: (schema.VOXEL, voxels.astype(np.int64))}
    coords |= {name: (schema.VOXEL, index.astype(np.int32)) for name, index in zip("ijk", ijk, strict=True)}
    return xr.Dataset(coords=coords, attrs={"affine": np.asarray(affine, dtype=float).tolist(), "shape": list(map(int, shape))})


def _name(image: Any) -> str:
    if isinstance(image, str | PathLike):
        return fspath(image)
    filename = image.get_filename() if isinstance(image, SpatialImage) else None
    return filename or "image in memory"
