"""The data of Haxby et al. (2001), which every decoding tutorial starts from."""

from __future__ import annotations

import os
from typing import Any

from nilearn import datasets
from sklearn.utils import Bunch

from daskdecode.errors import SelectionError, SourceError

_SUBJECTS = range(1, 7)


def fetch_haxby(subject: int = 2, data_dir: str | os.PathLike[str] | None = None, **kwargs: Any) -> Bunch:
    """Fetch one subject of Haxby et al. (2001) through nilearn, downloading it (about 300 MB) unless it is there.

    Parameters
    ----------
    subject : int
        1 to 6.
    data_dir : path, optional
        Folder that has or shall have ``haxby2001/mask.nii.gz``, ``haxby2001/MD5SUMS`` and ``haxby2001/subj<subject>/...``;
        by default nilearn's own (``NILEARN_SHARED_DATA``, ``NILEARN_DATA``, ``~/nilearn_data``).
    **kwargs
        Passed to :func:`nilearn.datasets.fetch_haxby`: ``fetch_stimuli``, ``url``, ``resume``, ``verbose``.

    Returns
    -------
    Bunch
        nilearn's fields. Lists with one path each: ``func`` (4-D, 1452 volumes, 12 runs), ``session_target`` (label and run of each
        volume), ``anat`` (None for subject 6), ``mask_vt``, ``mask_face``, ``mask_house``, ``mask_face_little``,
        ``mask_house_little``. Besides ``mask`` (a path), ``t_r`` (2.5 s) and ``description``.

    Raises
    ------
    SelectionError
        There is no such subject.
    SourceError
        The data are neither there nor can they be downloaded.

    References
    ----------
    Haxby et al. (2001), Distributed and overlapping representations of faces and objects in ventral temporal cortex.
    Science 293:2425-2430.
    """
    if isinstance(subject, bool) or subject not in _SUBJECTS:
        raise SelectionError(f"Haxby et al. (2001) have no subject {subject!r}: choose one of {', '.join(map(str, _SUBJECTS))}.")
    where = None if data_dir is None else os.fspath(data_dir)
    try:
        return datasets.fetch_haxby(data_dir=where, subjects=[int(subject)], **kwargs)
    except OSError as error:  # of which requests' errors are a kind
        folder = "nilearn's data folder" if where is None else where
        raise SourceError(
            f"Subject {subject} of the Haxby data is not whole in {folder} and could not be downloaded ({type(error).__name__}): "
            "connect to a network, or name as data_dir= a folder into which nilearn has downloaded it before."
        ) from error
