"""Label tables: the condition, and perhaps the run, of every volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from daskdecode.errors import SourceError, nearest
from daskdecode.schema import REST

LABEL_COLUMNS: Final = ("label", "labels", "trial_type", "condition")
RUN_COLUMNS: Final = ("run", "runs", "chunks")
MISSING: Final = frozenset({"", "n/a", "nan", "none", "<na>"})

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
        Columns ``label`` and, where the table has runs, ``run``; both str. Missing labels (empty, ``n/a``) become ``"rest"``. Eager.

    Raises
    ------
    SourceError
        The file is missing or not a table, no column or more than one holds labels (or runs), or a run is missing.
    """
    if isinstance(source, str | os.PathLike):
        return _tidy(read_table(source, "labels"), str(source))
    if isinstance(source, pd.DataFrame):
        return _tidy(source, "The label table")
    values = np.asarray(source, dtype=object)
    if values.ndim != 1:
        raise SourceError(f"labels have shape {values.shape}; expected one label a volume, or a table with a column of labels.")
    return pd.DataFrame({"label": _texts(values, REST)})


def read_table(path: str | os.PathLike[str], what: str) -> pd.DataFrame:
    """Read a text table as text, its separator told by its header line: a tab, else a comma, else white space.

    Parameters
    ----------
    path : path-like
    what : str
        What the table holds ("labels", "events"), for the error.

    Returns
    -------
    DataFrame of str

    Raises
    ------
    SourceError
        The file is missing, empty or not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a table of {what}.")
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline()
        separator = next((s for s in ("\t", ",") if s in header), r"\s+")
        # Everything as text: 01 is not 1, and a condition may well be called "NA" or "true".
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8", skipinitialspace=True)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SourceError(f"{path} is not a table of {what}: {error}. Expected a header line and one row a line, as text.") from error


def column_of(table: pd.DataFrame, names: Sequence[str], where: str, *, required: bool) -> str | None:
    """Name of the one column of a table that is called by one of `names`."""
    present = [str(c) for c in table.columns if str(c).strip() in names]
    if len(present) > 1:
        raise SourceError(f"{where} has the columns {' and '.join(map(repr, present))}: which of them is meant? Leave one.")
    if not present and required:
        wanted = " or ".join(map(repr, names))
        raise SourceError(f"{where} has no column called {wanted}. {nearest(names[0], [str(c) for c in table.columns])}")
    return present[0] if present else None


def _tidy(table: pd.DataFrame, where: str) -> pd.DataFrame:
    label = column_of(table, LABEL_COLUMNS, where, required=True)
    run = column_of(table, RUN_COLUMNS, where, required=False)
    tidy = pd.DataFrame({"label": _texts(table[label], REST)})
    if run is not None:
        tidy["run"] = _texts(table[run], "")
        if (tidy["run"] == "").any():
            row = int((tidy["run"] == "").to_numpy().argmax())
            raise SourceError(f"{where} has no run in row {row} (counted from 0): every volume belongs to a run.")
    return tidy


def _texts(values: Any, missing: str) -> np.ndarray:
    """Values as text; whole numbers that pandas made floats lose their ``.0``."""
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in values]
    return np.array([missing if t.lower() in MISSING else t for t in texts], dtype=object)
