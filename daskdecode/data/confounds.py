"""Confounds as variables of a dataset, so that they follow its selections; what is done with them is said where it is done."""

from __future__ import annotations

import os

import pandas as pd
import xarray as xr

from daskdecode import schema
from daskdecode.errors import SourceError
from daskdecode.sources.tables import read_table

_MISSING = ("n/a", "na", "nan", "")


def assign_confounds(ds: xr.Dataset, confounds: pd.DataFrame | str | os.PathLike[str]) -> xr.Dataset:
    """Add confounds to a dataset, a coordinate along ``time`` for each column of a table.

    Parameters
    ----------
    ds : Dataset
        A subject dataset, all volumes of all runs: before :func:`daskdecode.select_labels`.
    confounds : DataFrame or path
        One row a volume of ``ds``, in its order (run after run); or a text table with a header, such as a part of fMRIPrep's
        ``desc-confounds_timeseries.tsv`` of all runs. ``n/a`` is a missing value: it may stand in volumes that are not used later.

    Returns
    -------
    Dataset
        ``ds`` with float64 coordinates named as the columns. Lazy. ``Decoder(confounds=["trans_x", "rot_z"])`` then regresses them out
        inside each fold.

    Raises
    ------
    SourceError
        The rows are not one a volume, a column is not numeric, or its name is taken by something that is in ``ds``.
    """
    table = confounds if isinstance(confounds, pd.DataFrame) else read_table(confounds, "confounds")
    n_volumes = ds.sizes[schema.TIME]
    if len(table) != n_volumes:
        raise SourceError(f"Confounds have {len(table)} rows but the data have {n_volumes} volumes: give one row a volume, in their order.")
    taken = [name for name in map(str, table) if name in ds.variables or name in ds.dims]
    if taken:
        raise SourceError(f"Confound {taken[0]!r} has the name of something that is in the data: rename the column.")
    return ds.assign_coords({str(name): (schema.TIME, _numbers(str(name), table[name])) for name in table})


def _numbers(name: str, column: pd.Series) -> object:
    text = column.astype(str).str.strip()
    try:
        return pd.to_numeric(text.where(~text.str.lower().isin(_MISSING))).to_numpy(dtype="float64")
    except ValueError as error:
        raise SourceError(f"Confound {name!r} is not numeric ({error}): convert it to numbers or leave it out.") from error
