"""What a conversion is going to write, as JSON in the root of the store: a killed conversion goes on from it, another one is told apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from daskdecode.errors import DaskDecodeError, SourceError
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
    failed : dict of str to exception
        Subjects that cannot be converted, and why: they are not among the others.
    """

    subjects: tuple[SubjectPlan, ...]
    content: dict[str, Any]
    failed: dict[str, Exception]

    @property
    def root(self) -> dict[str, Any]:
        """What the root of the store says of the plan."""
        return {"plan": self.content, "failed": {name: " ".join(str(error).split()) for name, error in self.failed.items()}}

    def without(self, failed: Mapping[str, Exception]) -> Plan:
        """Return the plan of the other subjects; where there are none, raises what is wrong with most of them, or with the first."""
        subjects = tuple(s for s in self.subjects if s.subject not in failed)
        if not subjects:
            errors = [*self.failed.values(), *failed.values()]
            said = [str(error) for error in errors]
            raise max(errors, key=lambda error: said.count(str(error)))
        return Plan(subjects, restrict(self.content, {s.subject for s in subjects}), {**self.failed, **failed})


def make_plan(
    files: Sequence[SourceFile], mask: Any, rois: Mapping[str, Any] | None, failed: Mapping[str, Exception] = MappingProxyType({})
) -> Plan:
    """Plan a conversion; reads the mask images and checks them against the grids.

    Parameters
    ----------
    files : sequence of SourceFile
    mask, rois
        As for :func:`daskdecode.convert`.
    failed : mapping of str to exception
        Subjects that cannot be converted. Those to whom a mask does not fit join them.

    Raises
    ------
    DaskDecodeError
        Of no subject there is anything to convert: what is wrong with most of them, or with the first.
    """
    rois = dict(rois or {})
    for name in rois:
        check_name(name)
    by_subject: dict[str, list[SourceFile]] = {}
    for file in files:
        by_subject.setdefault(file.partitions[0].subject, []).append(file)
    subjects, content, wrong = [], dict[str, list[Any]](sources=[], subjects=[], runs=[]), dict(failed)
    for name, its_files in by_subject.items():
        try:
            subject = _plan_subject(name, its_files, mask, rois)
            sources, first = [source_entry(file) for file in its_files], len(content["sources"])
            runs = [_run_entry(n, p) for n, file in enumerate(its_files, start=first) for p in file.partitions]
        except DaskDecodeError as error:
            wrong[name] = error
            continue
        subjects.append(subject)
        for key, values in (("sources", sources), ("subjects", [subject.to_json()]), ("runs", runs)):
            content[key] += values
    return Plan(tuple(subjects), content, wrong).without({})


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
