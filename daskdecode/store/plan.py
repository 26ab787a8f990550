"""What a conversion is going to write, as JSON in the root of the store: a killed conversion goes on from it, another one is told apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskdecode.errors import SourceError
from daskdecode.sources.nifti import NiftiHeader
from daskdecode.sources.partition import Partition, SourceFile
from daskdecode.store.layout import digest, reason, run_node, subject_node
from daskdecode.store.masks import check_name, for_subject, load_mask


@dataclass(frozen=True, eq=False)
class SubjectPlan:
    """One subject: the grid of its runs, the voxels to keep, regions of interest.

    Attributes
    ----------
    subject, node : str
    header : NiftiHeader
        Of its first image; all lie on one grid.
    files : tuple of SourceFile
    mask : ndarray of bool, shape `header.shape`, or "auto" or "none"
    rois : dict of ndarray of bool, shape `header.shape`
    labels : list of str
        All labels of its runs, sorted; their positions are the codes on disk.
    """

    subject: str
    node: str
    header: NiftiHeader
    files: tuple[SourceFile, ...]
    mask: np.ndarray | str
    rois: dict[str, np.ndarray]
    labels: list[str]

    def to_json(self) -> dict[str, Any]:
        """What decides how the subject's group and the order of its voxels look."""
        return {
            "subject": self.subject,
            "node": self.node,
            "mask": self.mask if isinstance(self.mask, str) else f"sha256:{digest(self.mask.tobytes())}",
            "rois": {name: f"sha256:{digest(inside.tobytes())}" for name, inside in sorted(self.rois.items())},
            "labels": self.labels,
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """All subjects of a conversion.

    Attributes
    ----------
    subjects : tuple of SubjectPlan
    content : dict
        As kept in the root's attributes: ``sources``, ``subjects`` and ``runs``.
    """

    subjects: tuple[SubjectPlan, ...]
    content: dict[str, Any]


def make_plan(files: Sequence[SourceFile], mask: Any, rois: Mapping[str, Any] | None) -> Plan:
    """Plan a conversion; reads the mask images and checks them against the grids.

    Raises
    ------
    GridMismatchError, SelectionError
    """
    rois = dict(rois or {})
    for name in rois:
        check_name(name)
    by_subject: dict[str, list[SourceFile]] = {}
    for file in files:
        by_subject.setdefault(file.partitions[0].subject, []).append(file)
    subjects = tuple(_plan_subject(name, its_files, mask, rois) for name, its_files in by_subject.items())
    ordered = [file for subject in subjects for file in subject.files]
    runs = [_run_entry(n, p) for n, file in enumerate(ordered) for p in file.partitions]
    content = {"sources": [source_entry(file) for file in ordered], "subjects": [s.to_json() for s in subjects], "runs": runs}
    return Plan(subjects, content)


def _plan_subject(subject: str, files: Sequence[SourceFile], mask: Any, rois: Mapping[str, Any]) -> SubjectPlan:
    header = files[0].header
    kept: np.ndarray | str
    if isinstance(mask, str) and mask in ("auto", "none"):
        kept = mask
    elif mask is None:
        kept = "none"
    else:
        kept = load_mask(for_subject(mask, subject), header.shape, header.affine, "brain")
    regions = {name: load_mask(for_subject(image, subject), header.shape, header.affine, name) for name, image in rois.items()}
    labels = sorted({str(label) for file in files for p in file.partitions for label in np.unique(p.labels)})
    return SubjectPlan(subject, subject_node(subject), header, tuple(files), kept, regions, labels)


def source_entry(file: SourceFile) -> dict[str, Any]:
    """A file's fingerprint, without reading its voxels: another size, time of change or header means another file."""
    stat = file.header.data_path.stat()
    return {
        "path": _real_name(file.path),
        "nbytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "header_sha256": digest(file.header.header_bytes),
    }


def _real_name(path: Path) -> str:
    """A file's path, the same however its folder is spelled. A link keeps its own name: git-annex names what it points to by checksums."""
    return str(Path(os.path.realpath(path.parent)) / path.name)


def _run_entry(source: int, p: Partition) -> dict[str, Any]:
    try:
        described = digest([p.labels.tolist(), p.time_s.tolist(), p.repetition_time, p.metadata])
    except TypeError as error:
        raise SourceError(f"The metadata of run {p.run!r} of subject {p.subject!r} cannot be kept as JSON: {reason(error)}.") from error
    return {
        "subject": p.subject,
        "session": p.session,
        "task": p.task,
        "run": p.run,
        "node": run_node(p.subject, p.session, p.run),
        "source": source,
        "start": p.start,
        "stop": p.stop,
        "description_sha256": described,
    }


def fingerprints(content: Mapping[str, Any]) -> dict[str, str]:
    """What the attributes of each run say once it is whole, by its node: it depends on everything that decides its values."""
    subjects = {entry["subject"]: entry for entry in content["subjects"]}
    # The source itself, not its place in the list, which depends on other subjects.
    parts = ({**run, "source": content["sources"][run["source"]]} for run in content["runs"])
    return {run["node"]: digest([run, subjects[run["subject"]]]) for run in parts}


def restrict(content: Mapping[str, Any], subjects: Collection[str]) -> dict[str, Any]:
    """Return the part of a plan that is about some of its subjects."""
    runs = [run for run in content["runs"] if run["subject"] in subjects]
    place = {source: n for n, source in enumerate(sorted({run["source"] for run in runs}))}
    return {
        "sources": [content["sources"][source] for source in place],
        "subjects": [entry for entry in content["subjects"] if entry["subject"] in subjects],
        "runs": [{**run, "source": place[run["source"]]} for run in runs],
    }


def by_subject(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the part of a plan that is about each subject, in the order of the plan."""
    runs: dict[str, list[Mapping[str, Any]]] = {entry["subject"]: [] for entry in content["subjects"]}
    for run in content["runs"]:
        runs[run["subject"]].append(run)
    entries = {entry["subject"]: entry for entry in content["subjects"]}
    return {
        name: restrict({"sources": content["sources"], "subjects": [entries[name]], "runs": its_runs}, {name})
        for name, its_runs in runs.items()
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first thing in which two plans differ, in words; None where they are equal."""
    if old == new:
        return None
    old_files, new_files = ({source["path"]: source for source in plan["sources"]} for plan in (old, new))
    if old_files.keys() != new_files.keys():
        only_old, only_new = sorted(old_files.keys() - new_files.keys()), sorted(new_files.keys() - old_files.keys())
        missing = f"{len(only_old)} of its files are not among yours ({only_old[0]})" if only_old else ""
        added = f"{len(only_new)} of your files are not among its own ({only_new[0]})" if only_new else ""
        return "; ".join(filter(None, (missing, added)))
    for path, source in old_files.items():
        if source != new_files[path]:
            changed = [name for name in ("nbytes", "header_sha256", "mtime_ns") if source[name] != new_files[path][name]]
            words = {"nbytes": "size", "header_sha256": "header", "mtime_ns": "time of last change"}
            return f"{path} has changed since ({', '.join(words[name] for name in changed)})"
    old_runs, new_runs = ({run["node"]: run for run in plan["runs"]} for plan in (old, new))
    for node in old_runs.keys() | new_runs.keys():
        if old_runs.get(node) != new_runs.get(node):
            return f"labels, times, metadata or volumes of {node} are not the same"
    return "the brain mask or the regions of interest are not the same"


def changed_sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str] | None:
    """Files that have changed and their subjects, if two plans differ in nothing else; None where they differ in more.

    A changed file may have other volumes, and so other runs and labels; all else has to be the same.
    """
    if [source["path"] for source in old["sources"]] != [source["path"] for source in new["sources"]]:
        return None
    pairs = enumerate(zip(old["sources"], new["sources"], strict=True))
    changed = {n for n, (before, after) in pairs if before != after}
    if _unchanged(old["runs"], changed) != _unchanged(new["runs"], changed):
        return None
    subjects = {new["sources"][run["source"]]["path"]: run["subject"] for run in new["runs"] if run["source"] in changed}
    for before, after in zip(old["subjects"], new["subjects"], strict=True):
        loose = {"labels": None} if after["subject"] in subjects.values() else {}
        if {**before, **loose} != {**after, **loose}:
            return None
    return subjects


def _unchanged(runs: Sequence[Mapping[str, Any]], changed: set[int]) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["source"] not in changed]
