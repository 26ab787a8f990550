"""One run as a person names it: a 4-D image and what says which condition each volume belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import pandas as pd

from daskdecode.errors import SourceError
from daskdecode.sources.arguments import as_count, as_seconds
from daskdecode.sources.events import GAP_S, HRF_DELAY_S

_PREFIXES = {"subject": "sub-", "session": "ses-", "task": "task-", "run": "run-"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Run:
    """One 4-D image, its labels or events, and where it belongs in a study.

    Nothing is read here; :func:`daskdecode.sources.partition.resolve` (which ``convert`` calls first) reads headers and tables.

    Parameters
    ----------
    bold : path-like
        4-D NIfTI image: ``.nii``, ``.nii.gz``, ``.hdr`` or ``.img``.
    labels : path-like, DataFrame, Series or sequence of str, optional
        The condition of every volume, one row a volume. A table has a column called ``label``, ``labels``, ``trial_type`` or
        ``condition`` and may have one called ``run``, ``runs`` or ``chunks``, which cuts the image into several runs.
    events : path-like or DataFrame, optional
        BIDS events (``onset``, ``duration`` in seconds, ``trial_type``), made into one label a volume by
        :func:`daskdecode.sources.events.events_to_labels`. Give `labels`, `events` or neither (all rest), not both.
    subject, session, task, run : str
        BIDS entities, with or without their ``sub-`` prefixes; numbers are taken as text. Unnamed runs are counted "1", "2", ...
    repetition_time : float, optional
        Seconds from one volume to the next; by default ``metadata["RepetitionTime"]``, then the image's header.
    drop_volumes : int
        Volumes to leave out of each run: the first ones where positive (scanner warm-up), the last ones where negative. Labels may
        be given for all volumes or only for those that are kept.
    hrf_delay_s : float
        Seconds by which the response in the images trails the events.
    gap_s : float
        Events of one condition no further apart than this (seconds, end to next onset) are one block.
    metadata : mapping
        BIDS side-car keys, kept verbatim in the store; has to be JSON-able.

    Raises
    ------
    SourceError
        Both `labels` and `events` are given, an entity or a number is not usable, or an argument is of another type.
    """

    bold: str | os.PathLike[str]
    _: KW_ONLY
    labels: str | os.PathLike[str] | pd.DataFrame | pd.Series | Sequence[str] | None = None
    events: str | os.PathLike[str] | pd.DataFrame | None = None
    subject: str = "1"
    session: str | None = None
    task: str | None = None
    run: str | None = None
    repetition_time: float | None = None
    drop_volumes: int = 0
    hrf_delay_s: float = HRF_DELAY_S
    gap_s: float = GAP_S
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.bold, str | os.PathLike):
            raise SourceError(f"bold= is a {type(self.bold).__name__}: expected the path of a 4-D NIfTI image.")
        for entity in _PREFIXES:
            value = getattr(self, entity)
            if value is not None or entity == "subject":
                object.__setattr__(self, entity, entity_name(value, entity, self.bold))
        if self.labels is not None and self.events is not None:
            raise SourceError(f"{self.bold} has both labels= and events=: which of them is meant? Give one.")
        if self.events is not None and not isinstance(self.events, str | os.PathLike | pd.DataFrame):
            raise SourceError(
                f"events= of {self.bold} is a {type(self.events).__name__}: expected the path of an events.tsv or a DataFrame."
            )
        if not isinstance(self.metadata, Mapping):
            raise SourceError(f"metadata= of {self.bold} is a {type(self.metadata).__name__}: expected a mapping of side-car keys.")
        if self.repetition_time is not None:
            as_seconds(self.repetition_time, "repetition_time", self.bold, above=0)
        as_seconds(self.hrf_delay_s, "hrf_delay_s", self.bold)
        as_seconds(self.gap_s, "gap_s", self.bold, least=0, finite=False)
        object.__setattr__(self, "drop_volumes", as_count(self.drop_volumes, "drop_volumes", self.bold, least=None))


def entity_name(value: object, entity: str, where: object) -> str:
    """Text of a BIDS entity without its prefix (``"sub-01"`` is ``"01"``), checked to be usable as a name of groups and files.

    Raises
    ------
    SourceError
        It is empty or has characters other than letters, digits, ``.``, ``_``, ``+`` and ``-``.
    """
    name = str(value).removeprefix(_PREFIXES.get(entity, ""))
    if value is None or not _NAME.fullmatch(name):
        raise SourceError(
            f"{entity}={value!r} of {where} is not a name that a store can use: expected letters and digits (and . _ + - within)."
        )
    return name
