"""What a call of ``convert`` asks for, as runs; what cannot be meant is an error before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daskdecode.errors import SourceError
from daskdecode.sources.run import Run

_EXPECTED = "Expected a BIDS folder, one 4-D image, or a list of dd.Run"


def requested_runs(source: Any, labels: Any, repetition_time: float | None, hrf_delay_s: float | None, **which: Any) -> list[Run]:
    """The runs that a source names; options that mean nothing for this kind of source are errors, not ignored.

    Raises
    ------
    SourceError
    """
    options = {"repetition_time": repetition_time, "hrf_delay_s": hrf_delay_s}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    asked = [name for name, value in which.items() if value is not None]
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            if labels is not None:
                raise SourceError(
                    f"{path} is a folder, so labels= cannot say which image it is for: pass dd.Run(image, labels=...) for each."
                )
            from daskdecode.sources.bids import find_runs  # slow to import, and needed only here

            return list(find_runs(path, **which, **given))
        if not path.exists():
            raise SourceError(f"{path} does not exist: expected a BIDS folder or a 4-D NIfTI image.")
        _refuse(asked, f"{path} is one image")
        return [Run(path, labels=labels, **given)]
    runs = [source] if isinstance(source, Run) else _listed(source)
    wrong = next((run for run in runs if not isinstance(run, Run)), None)
    if wrong is not None:
        raise SourceError(f"{_EXPECTED}, but found {_what(wrong)} in the list.")
    _refuse([*asked, *given, *(["labels"] if labels is not None else [])], "source is a list of runs, which say it themselves")
    return runs


def check_rois(rois: Any) -> None:
    """Raise :class:`~daskdecode.errors.SourceError` where regions of interest do not come with names."""
    if rois is not None and not isinstance(rois, Mapping):
        raise SourceError(
            f"rois= is a {type(rois).__name__}, but every region needs a name: expected a mapping such as {{'vt': 'vt_mask.nii.gz'}}."
        )


def _listed(source: Any) -> list[Any]:
    if hasattr(source, "dataobj") or isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise SourceError(f"{_EXPECTED}, but found {_what(source)}.")
    return list(source)


def _what(found: Any) -> str:
    """A wrong source in words; whoever comes from nilearn passes loaded images."""
    name = type(found).__name__
    if hasattr(found, "dataobj"):
        path = found.get_filename() if hasattr(found, "get_filename") else None
        return f"a loaded image ({name}): pass its path" + (f", {path}" if path else "; save it first, as it lies in memory only")
    return repr(found) if found is None or isinstance(found, int | float) else f"a {name}"


def _refuse(options: Sequence[str], why: str) -> None:
    if options:
        raise SourceError(f"{', '.join(f'{name}=' for name in options)} cannot be used here: {why}.")
