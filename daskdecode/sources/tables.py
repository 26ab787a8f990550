"""Text tables, read field by field: a row that does not fit its header is an error, never shifted."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from daskdecode.errors import SourceError

_BLANK: Final = " "


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
        Everything as text: 01 is not 1, and a condition may well be called "NA" or "true".

    Raises
    ------
    SourceError
        The file is missing, empty or not a table; a column is named twice; or a row has more or fewer fields than the header (one
        empty field after a trailing separator is passed over).

    Notes
    -----
    Not ``pandas.read_csv``: it takes the first field of longer rows for an index, which shifts all others, and fills shorter ones.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a table of {what}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines or not lines[0].strip():
            raise csv.Error("its first line is empty")
        separator = _separator(lines[0], path)
        (_, names), *rows = _split(lines, separator)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not a table of {what}: {error}. Expected a header line and one row a line, as text.") from error
    names = names if names[-1] or len(names) == 1 else names[:-1]  # a trailing separator
    _check_names(names, path)
    fitting = (_fit(fields, names, separator, f"{path}, line {number},") for number, fields in rows)
    return pd.DataFrame([fields for fields in fitting if fields], columns=names, dtype=object)


def _separator(header: str, path: Path) -> str:
    separator = next((s for s in ("\t", ",") if s in header), _BLANK)
    if separator == _BLANK and ";" in header:
        raise SourceError(f"{path} separates its columns by semicolons ({header.strip()!r}): write it with commas or tabs.")
    return separator


def _split(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and fields of every row, quotes taken off."""
    if separator == _BLANK:
        lines = [line.replace("\t", " ").strip() for line in lines]
    reader = csv.reader((line + "\n" for line in lines), delimiter=separator, skipinitialspace=True)
    number = 1
    for fields in reader:
        if fields and fields[-1].endswith("\n"):
            raise csv.Error(f"a quote that is opened in line {number} is not closed")
        yield number, [field.strip() for field in fields]
        number = reader.line_num + 1


def _check_names(names: Sequence[str], path: Path) -> None:
    again = [name for n, name in enumerate(names) if name and name in names[:n]]
    if again:
        raise SourceError(f"{path} has two columns called {again[0]!r}: which of them is meant? Leave one.")


def _fit(fields: list[str], names: Sequence[str], separator: str, where: str) -> list[str]:
    """The fields of a row, as many as there are names; none for an empty line."""
    if not any(fields) and len(fields) <= 1:
        return [] if len(names) > 1 else [""]  # in a table of one column, an empty line is an empty field
    if len(fields) == len(names) + 1 and not fields[-1]:
        return fields[:-1]
    if len(fields) == len(names):
        return fields
    hint = " Names that hold blanks need columns separated by tabs or commas." if separator == _BLANK else ""
    raise SourceError(
        f"{where} has {len(fields)} field{'s' * (len(fields) != 1)} ({', '.join(map(repr, fields[:6]))}); expected {len(names)}, "
        f"as many as its header has columns ({', '.join(map(repr, names[:6]))}).{hint}"
    )
