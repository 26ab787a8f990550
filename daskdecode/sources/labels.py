"""Labels in whatever holds them: the condition, and perhaps the run, of every volume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from daskdecode.errors import SourceError, nearest
from daskdecode.schema import REST
from daskdecode.sources.tables import read_table

LABEL_COLUMNS: Final = ("label", "labels", "trial_type", "condition")
RUN_COLUMNS: Final = ("run", "runs", "chunks")

_NOT_APPLICABLE: Final = "n/a"  # BIDS's word; "none", "NA" or "null" may well be the names of conditions
_MISSING: Final = frozenset({"", "nan", "<na>"})  # what pandas writes where it had no value

LabelSource = str | os.PathLike[str] | pd.DataFrame | pd.Series | Sequence[str] | np.ndarray


def read_label_table(source: LabelSource) -> pd.DataFrame:
    """Read one label a volume, and its run where the table says, from whatever holds them.

    Parameters
    ----------
    source : path-like, DataFrame, Series or sequence of str
        A text file with a header line, its columns separated by tabs, commas or spaces (whichever its header uses, whatever its
        name): the ``labels chunks`` file of the Haxby tutorial, CSV, TSV. The label column is called ``label``, ``labels``,
        ``trial_type`` or ``condition``, the run column ``run``, ``runs`` or ``chunks``; others are ignored. A Series or a sequence
        holds labels only.

    Returns
    -------
    DataFrame, one row a volume
        Columns ``label`` and, where the table has runs, ``run``; both str. The label ``n/a`` becomes ``"rest"``. Eager.

    Raises
    ------
    SourceError
        The file is missing or not a table, no column or more than one holds labels (or runs), or a label or run is missing: whether
        that volume is rest or its label was lost, only its owner knows.
    """
    if isinstance(source, str | os.PathLike):
        return _tidy(read_table(source, "labels"), str(source))
    if isinstance(source, pd.DataFrame):
        return _tidy(source, "The label table")
    values = np.asarray(source, dtype=object)
    if values.ndim != 1:
        raise SourceError(f"labels have shape {values.shape}; expected one label a volume, or a table with a column of labels.")
    return pd.DataFrame({"label": _labels(values, "The list of labels")})


def column_of(table: pd.DataFrame, names: Sequence[str], where: str, *, required: bool) -> str | None:
    """Name of the one column of a table that is called by one of `names`."""
    present = [str(c) for c in table.columns if str(c).strip() in names]
    if len(present) > 1:
        raise SourceError(f"{where} has the columns {' and '.join(map(repr, present))}: which of them is meant? Leave one.")
    if not present and required:
        wanted = " or ".join(map(repr, names))
        raise SourceError(f"{where} has no column called {wanted}. {nearest(names[0], [str(c) for c in table.columns])}")
    return present[0] if present else None


def as_texts(values: Iterable[Any]) -> np.ndarray:
    """Values as text, dtype object."""
    return np.array([_text(v) for v in values], dtype=object)


def is_missing(values: Iterable[Any]) -> np.ndarray:
    """Which values are none: None, NaN, empty text or what pandas writes for them; not ``n/a``, which says that there is nothing."""
    return np.array([_text(v).lower() in _MISSING for v in values], dtype=bool)


def is_not_applicable(values: Iterable[Any]) -> np.ndarray:
    """Which values are BIDS's ``n/a``."""
    return np.array([_text(v).lower() == _NOT_APPLICABLE for v in values], dtype=bool)


def _tidy(table: pd.DataFrame, where: str) -> pd.DataFrame:
    label = column_of(table, LABEL_COLUMNS, where, required=True)
    run = column_of(table, RUN_COLUMNS, where, required=False)
    tidy = pd.DataFrame({"label": _labels(table[label], where)})
    if run is not None:
        missing = is_missing(table[run]) | is_not_applicable(table[run])
        if missing.any():
            raise SourceError(f"{where} has no run in row {missing.argmax()} (counted from 0): every volume belongs to a run.")
        tidy["run"] = as_texts(table[run])
    return tidy


def _labels(values: Iterable[Any], where: str) -> np.ndarray:
    """Labels as text, `n/a` as rest; an error where there is none."""
    values = list(values)
    missing = is_missing(values)
    if missing.any():
        raise SourceError(
            f"{where} has no label in row {missing.argmax()} (counted from 0; {missing.sum()} of {len(values)} are missing). "
            f"Every volume has one: write {REST!r} or 'n/a' where there was no condition."
        )
    return np.where(is_not_applicable(values), REST, as_texts(values))


def _text(value: Any) -> str:
    """A value as text: a whole number that pandas made a float loses its ``.0``, and what stands for no value is empty."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value).strip()
