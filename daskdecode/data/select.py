"""Which volumes: selections along time that read nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from daskdecode import schema
from daskdecode.errors import SelectionError, nearest


def select_labels(ds: xr.Dataset, labels: str | Iterable[str]) -> xr.Dataset:
    """Keep the volumes of some conditions, in the order in which they were acquired.

    Parameters
    ----------
    ds : Dataset
        A subject dataset with a ``label`` on ``time``.
    labels : str or iterable of str
        Names of conditions, such as ``["face", "cat"]``.

    Returns
    -------
    Dataset
        ``ds`` restricted along ``time``. Lazy: when it is computed, only chunks that hold such a volume are read.

    Raises
    ------
    SelectionError
        If no label is given, or if one does not occur in ``ds`` (the nearest known names are offered).
    """
    wanted = [labels] if isinstance(labels, str) else [str(label) for label in labels]
    if not wanted:
        raise SelectionError("No labels given: name at least one condition to keep.")
    if schema.LABEL not in ds.variables:
        raise SelectionError("These data have no labels: convert them with labels= or events=, or assign a 'label' coordinate along time.")
    present = np.asarray(ds[schema.LABEL].values).astype(str)
    known = np.unique(present)
    for label in wanted:
        if label not in known:
            raise SelectionError(f"No volume has the label {label!r}. {nearest(label, known)}")
    return ds.isel({schema.TIME: np.flatnonzero(np.isin(present, wanted))})
