"""Whose store it is: one conversion at a time, nothing overwritten that is not ours, and what is there already is told apart."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import Store

from daskdecode._version import __version__
from daskdecode.alone import alone
from daskdecode.errors import StoreError
from daskdecode.schema import FORMAT_VERSION
from daskdecode.store import layout
from daskdecode.store.compare import Comparison, compare
from daskdecode.store.layout import StoreLike, address, local_path, reason
from daskdecode.store.open import missing_runs
from daskdecode.store.plan import Plan
from daskdecode.store.subjects import voxels_to_write, write_subject

logger = logging.getLogger("daskdecode")


@contextlib.contextmanager
def one_conversion(store: StoreLike) -> Iterator[None]:
    """Keep other conversions from a local store; elsewhere, equal conversions write equal values."""
    path = real_path(store)
    if path is None:
        yield
        return
    if path.is_file():
        raise StoreError(f"{path} is a file; a store is a folder. Choose another name.")
    _refuse_inside_a_store(path)
    with contextlib.ExitStack() as stack:
        try:
            mark = path.with_name(f".{path.name}.lock")
            stack.enter_context(alone(mark, f"{path} is being written by another conversion", StoreError))
        except OSError as error:
            raise StoreError(f"{path} cannot be made: {reason(error)}.") from error
        yield


def real_path(store: StoreLike) -> Path | None:
    """The folder of a local store, the same however its path is spelled; None for any other store."""
    path = local_path(store)
    return None if path is None else Path(os.path.realpath(path))


def _refuse_inside_a_store(path: Path) -> None:
    for parent in path.parents:
        if (parent / "zarr.json").exists():
            raise StoreError(f"{path} lies inside a Zarr store, {parent}. A study store has a folder of its own.")


def study_attributes(store: Store) -> dict[str, Any] | None:
    """Attributes of the study store that is there; None where there is nothing.

    Raises
    ------
    StoreError
        Something else is there, which is never touched.
    """
    if layout.is_empty(store):
        return None
    found = layout.read_attributes(store)
    if found is None or "plan" not in found or "format_version" not in found:
        raise StoreError(
            f"{address(store)} exists and is not a daskdecode study store, so it is left alone, with overwrite=True too. "
            "Choose another name, or delete it yourself."
        )
    return found


def claim(store: Store, plan: Plan, *, overwrite: bool, resume: bool, progress: bool) -> Plan | None:
    """Write the plan into the root, if the store may be written; None where it is complete already.

    Returns
    -------
    Plan
        Without subjects that turned out to have no brain.
    """
    found = study_attributes(store)
    compared: Comparison | None = None
    if found is not None and not overwrite:
        layout.require_readable(store)
        compared = _require_resumable(store, found, plan, resume=resume)
        if found["complete"] and not compared.added and not _lacks_runs(store, found):
            logger.info("%s is complete already.", address(store))
            return None
    clear = found is not None and (overwrite or found.get("clear_first", False))
    changed = set(compared.changed.values()) if compared else set()
    voxels, brainless = voxels_to_write(store, plan, fresh=found is None or clear, changed=changed, progress=progress)
    plan = plan.without(brainless)
    tell_failed(brainless)
    root = {"format_version": FORMAT_VERSION, "complete": False, "daskdecode_version": __version__, **plan.root}
    if clear:
        _clear(store, root)
    elif found is not None:
        # Before the plan changes: killed in between, the next call finds the same changes again.
        for node in [*voxels, *_no_longer_planned(found, plan)]:
            layout.delete_node(store, node)
    layout.delete_unfinished(store, ["", *(subject.node for subject in plan.subjects)])
    layout.write_group(store, "", root)
    for subject in plan.subjects:
        if subject.node in voxels:
            write_subject(store, subject, voxels[subject.node])
    return plan


def tell_failed(failed: Mapping[str, Exception]) -> None:
    """Name subjects that cannot be converted when it is found: the error comes once the others are done."""
    for subject, error in failed.items():
        logger.warning("Subject %s cannot be converted: %s", subject, error)


def require_no_loss(store: Store, plan: Plan) -> None:
    """Raise what is wrong with a subject that a complete store holds and that could not be converted again."""
    found = study_attributes(store)
    if found is not None and found["complete"]:
        for entry in found["plan"]["subjects"]:
            if entry["subject"] in plan.failed:
                raise plan.failed[entry["subject"]]


def _clear(store: Store, root: Mapping[str, Any]) -> None:
    """Delete what is there, in two steps, so that a conversion killed between them does not take runs of the old store for its own."""
    layout.write_group(store, "", {**root, "clear_first": True})
    for name in layout.children(store):
        if name.startswith("sub-"):
            layout.delete_node(store, name)


def _require_resumable(store: Store, found: Mapping[str, Any], plan: Plan, *, resume: bool) -> Comparison:
    """What has changed since; raises where this is another conversion, or may not go on."""
    state = "is complete" if found["complete"] else "was not finished"
    compared = compare(found, plan)
    if compared.other is not None:
        raise StoreError(
            f"{address(store)} holds another conversion, which {state}: {compared.other}. "
            "Pass overwrite=True to replace it, or choose another name."
        )
    if not resume:
        raise StoreError(f"{address(store)} exists and {state}. Pass resume=True to go on with it, or overwrite=True to begin again.")
    for path, subject in compared.changed.items():
        logger.info("%s has changed since the conversion was interrupted: its runs (subject %s) are written again.", path, subject)
    return compared


def _lacks_runs(store: Store, found: Mapping[str, Any]) -> bool:
    """Whether runs have gone from a store that was complete."""
    if missing := missing_runs(store, found):
        logger.warning("%s lacks %d of its runs (%s): they are written again.", address(store), len(missing), ", ".join(missing[:5]))
    return bool(missing)


def _no_longer_planned(found: Mapping[str, Any], plan: Plan) -> list[str]:
    planned, were = ({entry["node"] for key in ("subjects", "runs") for entry in p[key]} for p in (plan.content, found["plan"]))
    return sorted(were - planned)
