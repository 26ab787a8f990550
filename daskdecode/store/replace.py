"""Overwriting a local store: the new one is written beside it and takes its place by renaming, once it is whole."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from zarr.storage import LocalStore

from daskdecode.errors import DaskDecodeError
from daskdecode.store import layout
from daskdecode.store.claim import real_path, study_attributes
from daskdecode.store.compare import compare
from daskdecode.store.layout import StoreLike
from daskdecode.store.plan import Plan

logger = logging.getLogger("daskdecode")


def place_beside(store: StoreLike) -> Path | None:
    """Where the replacement of a local study store is written; None where none is needed or possible.

    Raises
    ------
    StoreError
        What is there is not a study store.
    """
    path = real_path(store)
    # Of a wrapped store only its owner knows how to make a second one.
    if path is None or not isinstance(store, str | os.PathLike | LocalStore):
        return None
    beside = _beside(path, "new")
    return beside if study_attributes(LocalStore(path)) is not None or beside.exists() else None


def forget_other(beside: Path, plan: Plan, *, resume: bool) -> None:
    """Delete an unfinished replacement that is not one of this conversion, or that may not be resumed."""
    if beside.exists() and not (resume and _is_of(beside, plan)):
        shutil.rmtree(beside)


def _is_of(beside: Path, plan: Plan) -> bool:
    try:
        found = layout.require_readable(LocalStore(beside))
    except DaskDecodeError:
        return False
    return compare(found, plan).other is None


def take_place(store: StoreLike) -> None:
    """Put the finished replacement in the place of a local store, and delete the old one."""
    path = real_path(store)
    assert path is not None
    old = _beside(path, "old")
    if path.exists():
        path.rename(old)
    try:
        _beside(path, "new").rename(path)
    except OSError:
        old.rename(path)
        raise
    _delete(old)


def recover(store: StoreLike) -> None:
    """End what :func:`take_place` was killed in: put the old store back if nothing has taken its place, delete it otherwise."""
    path = real_path(store)
    if path is None or not (old := _beside(path, "old")).exists():
        return
    if path.exists():
        _delete(old)
    else:
        old.rename(path)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _delete(folder: Path) -> None:
    """The new store is in its place: what cannot be deleted of the old one is no reason to fail, and the next conversion tries again."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning("%s, the store before, could not be deleted: delete it yourself.", folder)
