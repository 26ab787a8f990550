"""Find the runs of a BIDS data set.

bids2table 2.3 and pybids 0.22 were tried first. bids2table finds no events by inheritance, passes over folders with a dot in their
name, drops side-cars that it cannot parse without a word and keeps old ones in caches of the process. pybids needs minutes for the
side-cars and events of 1,600 runs, which take under a second here. Both let a general side-car override a specific one beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskdecode.errors import SelectionError, SourceError, nearest
from daskdecode.sources.run import Run

_IMAGE_EXTENSIONS = (".nii", ".nii.gz")
_NAMED_BY_ARGUMENT = {"sub": "subjects", "ses": "sessions", "task": "task", "space": "space", "desc": "desc"}
_RUN_ENTITIES = ("sub", "ses", "task", "run")
_FOUND_HERE = {"bold", "subject", "session", "task", "run", "metadata"}  # fields of Run that the data set itself gives


def find_runs(
    bids_root: str | os.PathLike[str],
    *,
    subjects: str | Sequence[str] | None = None,
    sessions: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    space: str | None = None,
    desc: str | None = None,
    entities: Mapping[str, str] | None = None,
    raw_root: str | os.PathLike[str] | None = None,
    **run_options: Any,
) -> list[Run]:
    """List the functional runs of a BIDS data set, with their events and side-cars.

    Parameters
    ----------
    bids_root : path
        A data set, raw or derivative: the folder that holds the ``sub-<label>`` folders. The data sets in its ``derivatives`` folder
        are searched too where `space` or `desc` is given (raw images have neither), or where it has no runs of its own.
    subjects, sessions, task : str or sequence of str, optional
        Labels to keep, with or without their ``sub-``, ``ses-``, ``task-``; all by default.
    space, desc : str, optional
        The ``space-`` and ``desc-`` of the images. Needed where there are several; ``""`` asks for images without that entity.
    entities : mapping, optional
        Further entities by their short names, such as ``{"acq": "highres", "echo": "2"}``; ``""`` again means without.
    raw_root : path, optional
        Data set in which the events of derivatives are looked for if their own data set has none; by default the one that holds the
        ``derivatives`` folder.
    **run_options
        Passed to every :class:`~daskdecode.Run`, for example ``hrf_delay_s``, ``gap_s``, ``drop_volumes`` or ``repetition_time``.
        With ``events`` or ``labels`` the data set's own events are not looked for.

    Returns
    -------
    list of Run
        In natural order ("2" before "10") of subject, session, task and run. ``metadata`` holds the side-cars of all four levels
        (data set, subject, session, folder), merged so that lower levels, and names with more entities, win. ``events`` is the
        closest ``events.tsv`` that applies, or None. Only names and side-cars are read, no image.

    Raises
    ------
    SourceError
        The folder is no BIDS data set or has no runs; a side-car cannot be read; several images claim to be the same run, or lie in
        several spaces, and nothing says which to take.
    SelectionError
        Nothing has the subject, session, task or other entity that was asked for (the nearest known names are given).

    Examples
    --------
    >>> import tempfile, daskdecode as dd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = dd.simulate_study(folder, n_runs=2, n_blocks=1, shape=(7, 8, 9))
    ...     [(run.subject, run.task, run.run) for run in dd.find_runs(study)]
    [('01', 'objectviewing', '01'), ('01', 'objectviewing', '02')]
    """
    root = Path(bids_root)
    _check_run_options(run_options)
    wanted: dict[str, str | Sequence[str] | None] = {"sub": subjects, "ses": sessions, "task": task, "space": space, "desc": desc}
    wanted |= entities or {}
    images = _images(root, derivatives=space is not None or desc is not None)
    for entity, values in wanted.items():
        if values is not None:
            images = _select(images, entity, values, root)
    _check_one_image_a_run(images, root)
    folders = _Folders()
    needs_events = not {"events", "labels"} & run_options.keys()
    runs = []
    for image in sorted(images, key=_natural_order):
        e = image.entities
        options = dict(run_options)
        if needs_events:
            options["events"] = _events(image, folders, raw_root)
        metadata = _side_car(image, folders)
        runs.append(
            Run(image.path, subject=e["sub"], session=e.get("ses"), task=e.get("task"), run=e.get("run"), metadata=metadata, **options)
        )
    return runs


# --- names ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of a data set and what its name says."""

    path: Path
    data_set: Path
    entities: Mapping[str, str] = field(repr=False)
    suffix: str
    extension: str

    @classmethod
    def parse(cls, path: Path, data_set: Path) -> _File:
        stem, dot, extension = path.name.partition(".")
        *pairs, suffix = stem.split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return cls(path, data_set, entities, suffix, dot + extension)

    def applies_to(self, entities: Mapping[str, str]) -> bool:
        """Whether the inheritance principle lets this file describe one with these entities: it has no entity that the other lacks."""
        return all(name in entities and _same(name, value, entities[name]) for name, value in self.entities.items())


def _same(entity: str, value: str, other: str) -> bool:
    # A run is an index: fMRIPrep calls run-01 of the raw data run-1 or run-01, depending on its version.
    if entity == "run" and value.isdecimal() and other.isdecimal():
        return int(value) == int(other)
    return value == other


def _natural_order(file: _File) -> list[list[tuple[int, str]]]:
    labels = (file.entities.get(entity, "") for entity in _RUN_ENTITIES)
    return [[(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", label)] for label in labels]


class _Folders:
    """Files of each folder, listed once: thousands of runs share the folders above them."""

    def __init__(self) -> None:
        self._files: dict[Path, list[_File]] = {}

    def applicable(self, image: _File, folder: Path, data_set: Path, suffix: str, extension: str) -> list[_File]:
        """Files in a folder that apply to an image, the most specific last."""
        if folder not in self._files:
            self._files[folder] = [_File.parse(path, data_set) for path in folder.glob("*") if path.suffix in (".json", ".tsv")]
        found = [f for f in self._files[folder] if f.suffix == suffix and f.extension == extension and f.applies_to(image.entities)]
        return sorted(found, key=lambda f: (len(f.entities), f.path.name))


def _levels(folder: Path, data_set: Path) -> list[Path]:
    """Folders from the data set down to one of its folders."""
    return [*(parent for parent in reversed(folder.parents) if parent == data_set or data_set in parent.parents), folder]


# --- images --------------------------------------------------------------------------------------------------------------------------


def _images(root: Path, *, derivatives: bool) -> list[_File]:
    """All functional images below a data set."""
    if not root.is_dir():
        raise SourceError(f"{root} {'is no folder' if root.exists() else 'does not exist'}: expected the folder of a BIDS data set.")
    images = list(_images_of(root))
    if derivatives or not images:
        nested = root / "derivatives"
        data_sets = [nested, *nested.glob("*")] if nested.is_dir() else []
        images += [image for data_set in data_sets if data_set.is_dir() for image in _images_of(data_set)]
    if not images:
        raise SourceError(
            f"No functional images in {root}: expected sub-<label>/[ses-<label>/]func/*_bold.nii.gz below it. "
            "Is it the folder of a BIDS data set, the one that holds dataset_description.json?"
        )
    return images


def _images_of(data_set: Path) -> Iterator[_File]:
    for pattern in ("sub-*/func/sub-*_bold.nii*", "sub-*/ses-*/func/sub-*_bold.nii*"):
        for path in data_set.glob(pattern):
            image = _File.parse(path, data_set)
            if image.extension in _IMAGE_EXTENSIONS:
                yield image


def _select(images: list[_File], entity: str, values: str | Sequence[str], root: Path) -> list[_File]:
    """Images whose entity has one of the values."""
    argument = _NAMED_BY_ARGUMENT.get(entity, f"entities[{entity!r}]")
    known = sorted({image.entities.get(entity, "") for image in images})
    labels = [str(value).removeprefix(f"{entity}-") for value in ([values] if isinstance(values, str | int) else values)]
    for label in labels:
        if not any(_same(entity, label, name) for name in known):
            raise SelectionError(f"{argument}={label!r} selects no run of {root}. {nearest(label, known)}")
    return [image for image in images if any(_same(entity, label, image.entities.get(entity, "")) for label in labels)]


def _check_one_image_a_run(images: Iterable[_File], root: Path) -> None:
    """Raise if nothing says which of several images of a run is meant."""
    images = list(images)
    for entity in ("space", "desc"):  # also where no run is in two: runs in different spaces do not make one study
        _check_one_value({image.entities.get(entity, "") for image in images}, entity, root)
    same_run = defaultdict(list)
    for image in images:
        same_run[tuple(image.entities.get(entity, "") for entity in _RUN_ENTITIES)].append(image)
    for group in same_run.values():
        for entity in sorted({name for image in group for name in image.entities}):
            _check_one_value({image.entities.get(entity, "") for image in group}, entity, group[0].path.name)
        if len(group) > 1:
            paths = ", ".join(sorted(str(image.path) for image in group))
            raise SourceError(
                f"Several images are the same run: {paths}. Give the folder of one data set as bids_root, or take one image away."
            )


def _check_one_value(values: set[str], entity: str, where: object) -> None:
    if len(values) > 1:
        shown = ", ".join(repr(value) if value else f"'' (no {entity}-)" for value in sorted(values))
        choice = f"{entity}=" if entity in _NAMED_BY_ARGUMENT else f"entities={{{entity!r}: ...}}"
        raise SourceError(f"Images of {where} differ in {entity!r}: found {shown}. Choose one with {choice}.")


# --- what describes them -------------------------------------------------------------------------------------------------------------


def _side_car(image: _File, folders: _Folders) -> dict[str, Any]:
    """The image's JSON side-cars of all levels, lower and more specific ones winning."""
    metadata: dict[str, Any] = {}
    for folder in _levels(image.path.parent, image.data_set):
        for file in folders.applicable(image, folder, image.data_set, image.suffix, ".json"):
            metadata |= _read_json(file.path)
    return metadata


def _events(image: _File, folders: _Folders, raw_root: str | os.PathLike[str] | None) -> Path | None:
    """The closest events.tsv that applies to an image, in its own data set or else in the raw one."""
    data_sets = [image.data_set]
    if raw_root is not None:
        data_sets.append(Path(raw_root))
    elif (holder := _holder_of_derivatives(image.data_set)) is not None:
        data_sets.append(holder)
    for data_set in data_sets:
        folder = data_set / image.path.parent.relative_to(image.data_set)
        for level in reversed(_levels(folder, data_set)):
            found = folders.applicable(image, level, data_set, "events", ".tsv")
            if found:
                return _most_specific(found, image)
    return None


def _most_specific(found: list[_File], image: _File) -> Path:
    """The events file with the most entities of those in one folder."""
    *others, best = found
    if others and len(others[-1].entities) == len(best.entities):
        raise SourceError(
            f"Both {others[-1].path.name} and {best.path.name} in {best.path.parent} apply to {image.path.name}. "
            "Keep one, or name the events after the run."
        )
    return best.path


def _holder_of_derivatives(data_set: Path) -> Path | None:
    """The raw data set in whose ``derivatives`` folder a data set lies."""
    for folder in (data_set.absolute(), *data_set.absolute().parents):
        if folder.name == "derivatives":
            return folder.parent
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SourceError(f"The side-car {path} cannot be read: {error}. Mend or remove it.") from error
    if not isinstance(content, dict):
        raise SourceError(f"The side-car {path} holds a {type(content).__name__}; expected an object of BIDS keys.")
    return content


def _check_run_options(options: Mapping[str, Any]) -> None:
    known = {f.name for f in dataclasses.fields(Run)} - _FOUND_HERE
    for name in options:
        if name not in known:
            raise TypeError(
                f"find_runs() has no argument {name!r}. {nearest(name, [*_NAMED_BY_ARGUMENT.values(), 'entities', 'raw_root', *known])}"
            )
