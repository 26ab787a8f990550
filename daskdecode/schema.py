"""The names that a study has on disk and in memory: one place, so that no room invents its own.

A *subject dataset* (what :func:`daskdecode.open_subject` returns) is an :class:`xarray.Dataset` with

=================  ==============  ==========================================================================================
name               dims            content
=================  ==============  ==========================================================================================
``bold``           time, voxel     signal, lazy; float32, or float64 where the source's dtype or scaling needs it
``time``           time            float64, seconds from the start of the volume's own run (attribute ``units: "s"``)
``run``            time            str, the run's name, unique within a session
``label``          time            str, the condition of the volume (``"rest"`` where there is none)
``subject``        time            str
``session``        time            str; only where there are sessions
``voxel``          voxel           int64, flat C-order index into the volume's grid (``numpy.ravel_multi_index``)
``i``, ``j``, ``k``  voxel         int32, grid indices of the voxel
``mask_<name>``    voxel           bool, a region of interest
=================  ==============  ==========================================================================================

and the attributes ``affine`` (4 x 4 nested list, voxel to world, mm), ``shape`` (three ints), ``repetition_time`` (s), ``subject``,
``session`` (where there is one) and ``format_version``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr

FORMAT_VERSION: Final = 1
"""Version of the layout on disk; raised whenever an older reader would misread a newer store."""

TIME: Final = "time"
VOXEL: Final = "voxel"
BOLD: Final = "bold"
RUN: Final = "run"
LABEL: Final = "label"
SUBJECT: Final = "subject"
SESSION: Final = "session"
MASK_PREFIX: Final = "mask_"
REST: Final = "rest"


def mask_names(ds: xr.Dataset) -> list[str]:
    """Names of the regions of interest that a subject dataset carries, without their prefix."""
    return [str(name).removeprefix(MASK_PREFIX) for name in ds.variables if str(name).startswith(MASK_PREFIX)]


def run_ids(ds: xr.Dataset | xr.DataArray) -> np.ndarray:
    """The run of every volume, as strings unique over the subject's sessions.

    Parameters
    ----------
    ds : Dataset or DataArray
        With a ``run`` coordinate on ``time`` and, where there are sessions, a ``session`` coordinate.

    Returns
    -------
    ndarray of str, shape (n_samples,)
        ``"01"``, or ``"ses-a/01"`` where there are sessions. Eager (coordinates are in memory).
    """
    run = np.asarray(ds[RUN].values).astype(str)
    if SESSION in ds.coords:
        session = np.asarray(ds[SESSION].values).astype(str)
        return np.char.add(np.char.add(np.char.add("ses-", session), "/"), run)
    return run
