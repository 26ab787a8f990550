"""Scaling, detrending and confound removal: lazy arrays in, lazy arrays out.

Every function works on blocks that hold the whole time axis (or a whole run) of a few thousand voxels, and treats each voxel's time series
with operations whose order does not depend on its neighbours: the result is the same bit for bit however the data are chunked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
import xarray as xr
from dask.base import normalize_token

from daskdecode import schema
from daskdecode.errors import DecodingError, SourceError, nearest

Standardize: TypeAlias = Literal["zscore_run", "zscore_sample", "psc"]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

# nilearn compares float32 deviations with this bound as well; parity needs the same one.
_EPS = float(np.finfo(np.float64).eps)


def standardize(ds: xr.Dataset, how: Standardize) -> xr.Dataset:
    r"""Scale every voxel's time series.

    .. math:: z_{tv} = (x_{tv} - \bar x_v) / s_v, \qquad s_v^2 = \sum_t (x_{tv} - \bar x_v)^2 / (n - 1)

    Parameters
    ----------
    ds : Dataset
        A subject dataset with ``bold`` (time, voxel).
    how : {"zscore_run", "zscore_sample", "psc"}
        ``"zscore_run"``: mean 0 and standard deviation 1 within each run; no number crosses from one run to another, so
        a later leave-one-run-out stays honest. ``"zscore_sample"``: the same over all volumes of ``ds`` at once (nilearn's).
        ``"psc"``: percent signal change about the mean over all volumes of ``ds``, :math:`100 (x - \bar x) / |\bar x|`.
        The last two equal ``nilearn.signal.clean(..., detrend=False, standardize=how)`` bit for bit in the data's own dtype, for voxels
        that vary.

    Returns
    -------
    Dataset
        ``ds`` with ``bold`` replaced. Lazy. A constant voxel becomes 0, never NaN (nilearn can make it large: it divides one
        rounding error by another); with ``"psc"`` so does a voxel with mean 0.

    Raises
    ------
    DecodingError
        If ``how`` is unknown, or if a run has one volume only and ``how`` is ``"zscore_run"``.

    Notes
    -----
    Peak memory of a task: about three times one block of all volumes x one chunk of voxels (``"zscore_run"``: one run's volumes).
    """
    _check_how(how)
    x = _bold(ds)
    return _replace(ds, _zscore_runs(x, schema.run_ids(ds)) if how == "zscore_run" else _whole(x, how))


def standardize_samples(x: da.Array, runs: npt.ArrayLike | None, how: Standardize | None) -> da.Array:
    """Scale the columns of a matrix of samples, as :func:`standardize` does for a dataset.

    Parameters
    ----------
    x : dask Array, shape (n_samples, n_voxels)
        Any real dtype. float32 stays float32 and float64 float64; shorter floats and integers of up to 16 bits become float32, longer
        integers float64: float32 has 24 bits, and nilearn, which takes it for integers of 32 bits, rounds large ones.
    runs : array-like of shape (n_samples,) or None
        The run of each sample; used (and needed) by ``"zscore_run"`` only.
    how : {"zscore_run", "zscore_sample", "psc"} or None
        None returns ``x`` as floats.

    Returns
    -------
    dask Array, shape (n_samples, n_voxels)
        Lazy, in one block along samples and in the chunks of ``x`` along voxels.

    Raises
    ------
    DecodingError
        If ``how`` is unknown, if ``runs`` is missing or of the wrong length, or if a run has a single sample.

    Notes
    -----
    Bit for bit what nilearn 0.14.1 does with a C-ordered array, whatever the chunks, except that a constant voxel is always 0.
    A single sample has no variance: ``"zscore_sample"`` and ``"psc"`` leave it as it is, with a warning, as nilearn does.
    """
    x = _as_float(x)
    if how is None:
        return _one_block_of_time(x)
    _check_how(how)
    if how != "zscore_run":
        return _whole(x, how)
    if runs is None:
        raise DecodingError('standardize="zscore_run" needs the run of each sample: pass groups=, or choose standardize="zscore_sample".')
    return _one_block_of_time(_zscore_runs(x, np.asarray(runs)))


def detrend(ds: xr.Dataset) -> xr.Dataset:
    """Remove mean and linear trend from every voxel's time series, run by run.

    ``x - P x``, where ``P`` projects on a constant and a straight line over the volumes of the run, taken as equally spaced.

    Parameters
    ----------
    ds : Dataset
        A subject dataset with ``bold`` (time, voxel). Call this *before* :func:`daskdecode.select_labels`: a selection leaves gaps.

    Returns
    -------
    Dataset
        ``ds`` with ``bold`` replaced; its dtype is kept, sums are float64. Lazy. Every run has mean 0. Equal, to rounding, to
        ``nilearn.signal.clean(x, runs=runs, detrend=True, standardize=None)``. A run of one volume is left as it is, as nilearn does.
    """

    def line(n: int) -> FloatArray:
        centred = np.arange(n) - (n - 1) / 2
        return np.stack([np.full(n, n**-0.5), centred / np.linalg.norm(centred)], axis=1)

    runs = schema.run_ids(ds)
    bases = [line(len(rows)) if len(rows) > 1 else np.empty((1, 0)) for _, rows in _runs(runs)]
    return _replace(ds, _project_runs(_bold(ds), runs, bases))


def regress_out(ds: xr.Dataset, confounds: npt.ArrayLike | pd.DataFrame) -> xr.Dataset:
    """Remove what a linear regression on confounds explains, run by run.

    ``x - Q Q' x``, where the columns of ``Q`` are an orthonormal basis of the run's confounds after each confound was centred and scaled
    within the run. The *signals* are not centred: as the confounds have mean 0, every voxel keeps its mean in every run.

    Parameters
    ----------
    ds : Dataset
        A subject dataset with ``bold`` (time, voxel).
    confounds : DataFrame or array-like, shape (n_volumes, n_confounds) or (n_volumes,)
        One row a volume of ``ds``, matched by position: the index of a DataFrame and the coordinates of a DataArray (``time`` begins
        anew in every run, so it names no volume) are ignored. Bring the rows into the order of ``ds`` first. Constant or redundant
        columns do no harm.

    Returns
    -------
    Dataset
        ``ds`` with ``bold`` replaced; its dtype is kept, sums are float64. Lazy. Equal, to rounding, to
        ``nilearn.signal.clean(x, runs=runs, confounds=confounds, detrend=False, standardize=None)``.

    Raises
    ------
    SourceError
        If the rows are not one a volume, a column is not numeric or not finite (it is named), or a run has no more volumes than it has
        independent confounds, so that nothing but its mean would be left.

    Notes
    -----
    After :func:`detrend`, give the confounds a linear column as well (one straight line a run): regression then happens within what
    detrending left, which is what ``nilearn.signal.clean(detrend=True, confounds=...)`` does by detrending the confounds too.
    Peak memory of a task: about three times one run x one chunk of voxels in float64.
    """
    table = confound_table(confounds, ds.sizes[schema.TIME])
    runs = schema.run_ids(ds)
    bases = [_confound_basis(table[rows], str(name)) for name, rows in _runs(runs)]
    return _replace(ds, _project_runs(_bold(ds), runs, bases))


# -- blocks: NumPy in, NumPy out ---------------------------------------------------------------------------------------------------------


def _column_by_column(scale: Callable[[FloatArray], FloatArray], block: FloatArray) -> FloatArray:
    """Apply a scaling whose sums run over rows, so that a column's result does not depend on the other columns.

    NumPy adds the rows of a C-ordered block one after another, but adds a single column pairwise: a lone column gets a twin.
    """
    block = np.ascontiguousarray(block)
    if block.shape[1] == 1:
        return scale(np.repeat(block, 2, axis=1))[:, :1]
    return scale(block)


def _zscore(block: FloatArray) -> FloatArray:
    centred: FloatArray = block - block.mean(axis=0)
    sd = centred.std(axis=0, ddof=1)
    sd[sd < _EPS] = 1
    centred /= sd
    centred[:, _constant(block)] = 0
    return centred


def _percent_change(block: FloatArray) -> FloatArray:
    mean = block.mean(axis=0)
    meaningless = (np.abs(mean) < _EPS) | _constant(block)
    mean[meaningless] = 1
    change: FloatArray = (block - mean) / np.abs(mean)
    change *= 100
    change[:, meaningless] = 0
    return change


def _constant(block: FloatArray) -> np.ndarray:
    """Which columns hold one value only: the rounded mean of 0.1, 0.1, ... is not 0.1, and z-scores of that difference would be huge."""
    constant: np.ndarray = (block == block[:1]).all(axis=0)
    return constant


def _project_out(block: FloatArray, basis: FloatArray) -> FloatArray:
    """``block - basis (basis' block)`` with float64 sums, element by element: BLAS would round differently for other block widths."""
    x = block.astype(np.float64)
    weights = np.zeros((basis.shape[1], block.shape[1]))
    term = np.empty_like(weights)
    for row, values in zip(basis, x, strict=True):
        weights += np.multiply(row[:, None], values, out=term)
    term = np.empty_like(x)
    for column, weight in zip(basis.T, weights, strict=True):
        x -= np.multiply(column[:, None], weight, out=term)
    return x.astype(block.dtype)


# -- dask: the same on every block -------------------------------------------------------------------------------------------------------


def _map(x: da.Array, func: Callable[..., FloatArray], *args: Any) -> da.Array:
    """Apply ``func(block, *args)`` to blocks that hold all of the time axis."""
    x = _one_block_of_time(x)
    mapped: da.Array = da.map_blocks(_Bound(func, args), x, dtype=x.dtype, meta=np.empty((0, 0), dtype=x.dtype))
    return mapped


def _one_block_of_time(x: da.Array) -> da.Array:
    whole: da.Array = x.rechunk({0: -1})
    return whole


class _Bound:
    """``func`` with its trailing arguments, which dask would take for arrays to be cut into blocks.

    Dask names a task after ``__name__`` (without one: after the object's address) and a token, which it does not look into any further:
    arrays must be in it by their content, or two arrays that print alike (middles are left out) would be taken for one.
    """

    def __init__(self, func: Callable[..., FloatArray], args: Sequence[Any]) -> None:
        self.func, self.args = func, tuple(args)
        self.__name__ = func.__name__

    def __call__(self, block: FloatArray) -> FloatArray:
        return self.func(block, *self.args)

    def __dask_tokenize__(self) -> object:
        return normalize_token((self.func, self.args))


def _each_run(block: FloatArray, rows: Sequence[np.ndarray], func: Callable[..., FloatArray], own: Sequence[Sequence[Any]]) -> FloatArray:
    done = np.empty_like(block)
    for part, args in zip(rows, own, strict=True):
        done[_as_slice(part)] = func(block[_as_slice(part)], *args)
    return done


def _zscore_block(block: FloatArray) -> FloatArray:
    return _column_by_column(_zscore, block)


def _percent_change_block(block: FloatArray) -> FloatArray:
    return _column_by_column(_percent_change, block)


def _whole(x: da.Array, how: str) -> da.Array:
    """Scale by moments over all samples."""
    if x.shape[0] == 1:
        warnings.warn(f'A single sample has no variance: standardize="{how}" leaves it as it is.', UserWarning, stacklevel=3)
        return x
    return _map(x, _zscore_block if how == "zscore_sample" else _percent_change_block)


def _zscore_runs(x: da.Array, runs: np.ndarray) -> da.Array:
    if runs.shape != (x.shape[0],):
        raise DecodingError(f"Runs must be one a sample: {x.shape[0]} samples, but runs of shape {runs.shape}.")
    parts = list(_runs(runs))
    for name, rows in parts:
        if len(rows) == 1:
            raise DecodingError(
                f"Run {name} has one sample: a z-score within the run needs two or more. Select more volumes of it, drop the run, "
                'or choose standardize="zscore_sample".'
            )
    return _by_run(x, [rows for _, rows in parts], _zscore_block)


def _project_runs(x: da.Array, runs: np.ndarray, bases: Sequence[FloatArray]) -> da.Array:
    rows = [rows for _, rows in _runs(runs)]
    return _by_run(x, rows, _project_out, bases)


def _runs(runs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of each run, in order of first appearance."""
    names, first, codes = np.unique(runs, return_index=True, return_inverse=True)
    for code in np.argsort(first):
        yield str(names[code]), np.flatnonzero(codes == code)


def _by_run(x: da.Array, rows: Sequence[np.ndarray], func: Callable[..., FloatArray], *of_runs: Sequence[Any]) -> da.Array:
    """Apply ``func(block, *own)`` to each run's rows, ``own`` being its share of ``of_runs``; results are in the samples' order."""
    own = list(zip(*of_runs, strict=True)) if of_runs else [()] * len(rows)
    if x.numblocks[0] == 1 < x.numblocks[1]:
        # A task a block of voxels, not one a run: a single block is cut, so that its runs are worked on side by side.
        return _map(x, _each_run, rows, func, own)
    parts = [_map(x[_as_slice(part)], func, *args) for part, args in zip(rows, own, strict=True)]
    done: da.Array = da.concatenate(parts, axis=0)
    order = np.concatenate(rows)
    if np.array_equal(order, np.arange(len(order))):
        return done
    in_order: da.Array = done[np.argsort(order)]
    return in_order


def _as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """A slice where the rows are contiguous (dask then copies nothing)."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return slice(start, stop) if stop - start == len(rows) else rows


# -- checks and small parts --------------------------------------------------------------------------------------------------------------


def _check_how(how: str) -> None:
    if how not in get_args(Standardize):
        raise DecodingError(f"standardize={how!r} is unknown. {nearest(str(how), get_args(Standardize))}")


def _as_float(x: da.Array) -> da.Array:
    """Signals as native float32 or float64, whichever holds them: what compiled code takes, and sums need no less."""
    exact = np.dtype(np.float32 if x.dtype.itemsize <= (4 if x.dtype.kind == "f" else 2) else np.float64)
    floats: da.Array = x if x.dtype == exact else x.astype(exact)
    return floats


def _bold(ds: xr.Dataset) -> da.Array:
    return _as_float(da.asarray(ds[schema.BOLD].transpose(schema.TIME, schema.VOXEL).data))


def _replace(ds: xr.Dataset, x: da.Array) -> xr.Dataset:
    bold = ds[schema.BOLD].transpose(schema.TIME, schema.VOXEL)
    return ds.assign({schema.BOLD: bold.copy(data=x)})


def confound_table(confounds: npt.ArrayLike | pd.DataFrame, n_volumes: int, rows: npt.NDArray[np.intp] | None = None) -> FloatArray:
    """Confounds as finite float64, shape (n_volumes, n_confounds); of some of the volumes where ``rows`` says which.

    Raises
    ------
    SourceError
        If the rows are not one a volume, or a column is not numeric or (in the rows that are taken) not finite.
    """
    frame = confounds if isinstance(confounds, pd.DataFrame) else pd.DataFrame(np.asarray(confounds))
    if len(frame) != n_volumes:
        raise SourceError(
            f"Confounds have {len(frame)} rows but the data have {n_volumes} volumes: give one row a volume, in the data's order."
        )
    if not frame.shape[1]:
        raise SourceError("Confounds have no columns: there is nothing to regress out.")
    if rows is not None:
        frame = frame.iloc[rows]
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column.dtype):
            raise SourceError(f"Confound {name!r} is not numeric (its dtype is {column.dtype}): convert it to numbers or leave it out.")
        bad = np.flatnonzero(~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan)))
        if len(bad):
            raise SourceError(
                f"Confound {name!r} is not finite in {len(bad)} of {len(frame)} rows (first: row {bad[0]}): fill the gaps "
                "(fMRIPrep leaves the first row of derivatives empty; 0 is usual there) or leave the column out."
            )
    return frame.to_numpy(dtype=np.float64)


def _confound_basis(table: FloatArray, run: str) -> FloatArray:
    """Orthonormal basis of one run's z-scored confounds, shape (n_volumes, rank)."""
    if len(table) == 1:
        return np.empty((1, 0))
    q, r, _ = scipy.linalg.qr(_column_by_column(_zscore, table), mode="economic", pivoting=True)
    # The threshold is nilearn's: scaled columns have norm sqrt(n - 1), so what is left of a redundant one is rounding.
    basis: FloatArray = q[:, np.abs(np.diag(r)) > 100 * _EPS]
    if basis.shape[1] >= len(table) - 1:
        raise SourceError(
            f"Run {run} has {len(table)} volumes and {basis.shape[1]} independent confounds: nothing but its mean would be left. "
            "Use fewer confounds, or regress them out before selecting volumes."
        )
    return basis
