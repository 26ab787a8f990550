"""The errors daskdecode raises: each says what failed, where, what was found and what to do.

Every class is also the built-in exception that a caller would expect (``ValueError``, ``OSError``,
``MemoryError``), so code that knows nothing of daskdecode can still catch it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DaskDecodeError(Exception):
    """Base of every error that daskdecode raises on purpose."""


class SourceError(DaskDecodeError, ValueError):
    """A NIfTI image, a label table or a BIDS folder is not what it should be."""


class CorruptFileError(SourceError, OSError):
    """A file ends early or its content does not match its checksum."""


class FailedSubjectsError(SourceError):
    """Some subjects of a study could not be converted; the others were.

    Attributes
    ----------
    failed : dict of str to str
        Why, by subject.
    """

    failed: dict[str, str] = {}  # noqa: RUF012  # replaced, never changed


class StoreError(DaskDecodeError, ValueError):
    """A study store cannot be written or read as asked."""


class IncompleteStoreError(StoreError):
    """A conversion has not finished: some runs are missing from the store."""


class FormatVersionError(StoreError):
    """A store was written in a format that this version does not read."""


class SelectionError(DaskDecodeError, ValueError):
    """A label, mask, subject or session that was asked for is not there, or selects nothing."""


class GridMismatchError(SelectionError):
    """An image lies on another voxel grid than the data."""


class DecodingError(DaskDecodeError, ValueError):
    """Labels, groups, folds or parameters do not make a decodable problem."""


class MemoryBudgetError(DaskDecodeError, MemoryError, ValueError):
    """The work cannot be done within the memory budget."""


class ClusterError(DaskDecodeError, OSError):
    """A scheduler cannot be reached, no worker came, or workers are not fit for the work."""


class ClusterSpecError(ClusterError, ValueError):
    """What describes a cluster is not understood, or needs a package that is not installed."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Say which known names are close to a wrong one: ``"did you mean 'face'? Known: 'cat', 'face'."``."""
    names = list(dict.fromkeys(str(k) for k in known))
    if not names:
        return "None are known."
    same = [k for k in names if k.lower() == str(name).lower()]
    close = same or difflib.get_close_matches(str(name), names, n=n, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    shown = ", ".join(map(repr, names[:20])) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    return f"{hint}Known: {shown}."
