"""Which volumes: selections along time that read nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
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
    present = _labels(ds)
    known = np.unique(present)
    for label in wanted:
        if label not in known:
            raise SelectionError(f"No volume has the label {label!r}. {nearest(label, known)}")
    return ds.isel({schema.TIME: np.flatnonzero(np.isin(present, wanted))})


def balance_labels(ds: xr.Dataset, random_state: int = 0) -> xr.Dataset:
    """Leave volumes out at random until every run holds equally many of each label.

    In each run every label keeps as many volumes as the rarest one has there; which ones is drawn. A classifier then cannot gain from
    guessing the label that is frequent, and accuracy has a chance level of 1 / (number of labels) in every fold of runs.

    Parameters
    ----------
    ds : Dataset
        A subject dataset with ``label`` and ``run`` on ``time``, of the labels that are to be told apart
        (:func:`daskdecode.select_labels` first: else ``rest`` counts as a label).
    random_state : int, default 0
        Seed. The same seed leaves the same volumes.

    Returns
    -------
    Dataset
        ``ds`` restricted along ``time``, in its order. Lazy.

    Raises
    ------
    SelectionError
        If there are no labels, or a run lacks one of them.

    Notes
    -----
    To keep all volumes and weigh them instead: ``Decoder(estimator_args={"class_weight": "balanced"})``.
    """
    labels, runs = _labels(ds), schema.run_ids(ds)
    rng = np.random.default_rng(random_state)
    names, taken = np.unique(labels), []
    for run in dict.fromkeys(runs.tolist()):
        rows = [np.flatnonzero((runs == run) & (labels == name)) for name in names]
        lacking = [str(name) for name, found in zip(names, rows, strict=True) if not found.size]
        if lacking:
            raise SelectionError(
                f"Run {run} has no volume of {lacking[0]!r}, so that its labels cannot be balanced. Leave the run or the label out first."
            )
        n = min(found.size for found in rows)
        taken += [rng.choice(found, n, replace=False) for found in rows]
    return ds.isel({schema.TIME: np.sort(np.concatenate(taken))})


def _labels(ds: xr.Dataset) -> npt.NDArray[np.str_]:
    if schema.LABEL not in ds.variables:
        raise SelectionError("These data have no labels: convert them with labels= or events=, or assign a 'label' coordinate along time.")
    return np.asarray(ds[schema.LABEL].values).astype(str)
