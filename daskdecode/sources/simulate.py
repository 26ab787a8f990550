"""A BIDS data set with a planted pattern: the truth is known, so what decoding finds can be checked against it."""

from __future__ import annotations

import json
import math
import operator
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dask
import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.first_level import compute_regressor
from numpy.polynomial.legendre import legvander
from scipy.signal import lfilter

from daskdecode._version import __version__
from daskdecode.errors import SourceError
from daskdecode.lost import ends_in_words
from daskdecode.schema import REST
from daskdecode.sources.phantom import Head

_TASK = "objectviewing"
_PIPELINE = "daskdecode-simulation"
_BIDS_VERSION = "1.10.0"

_BRAIN_INTENSITY = 1000.0  # scanner units
_THERMAL_SD = 8.0  # scanner units, in the air as in the brain: what compute_epi_mask tells the brain from
_ACTIVATION = 1.0  # response that all conditions share, in units of the pattern's standard deviation

_FEWEST_VOLUMES = 4  # fewer hold no haemodynamic response

_REMOVAL_TRIES, _REMOVAL_PAUSE_S = 100, 0.05

# Streams of random numbers; a subject's or a run's numbers do not depend on how many others there are.
_SHARED, _SUBJECT, _RUN = 0, 1, 2


@ends_in_words()
def simulate_study(
    path: str | os.PathLike[str],
    *,
    n_subjects: int = 1,
    n_sessions: int | None = None,
    n_runs: int = 8,
    shape: tuple[int, int, int] = (20, 24, 18),
    conditions: Sequence[str] = ("face", "cat"),
    n_blocks: int = 2,
    block_s: float = 16.0,
    rest_s: float = 12.0,
    repetition_time: float = 2.0,
    signal: float = 0.45,
    similarity: float = 0.5,
    noise: float = 1.0,
    ar1: float = 0.4,
    smoothness_mm: float = 12.0,
    drift: float = 1.0,
    seed: int = 0,
) -> Path:
    r"""Write a simulated block-design fMRI study as a BIDS data set.

    .. math:: S_{vt} = B_v \left(1 + \tfrac{1}{100} \left[ s \sum_c (1 + W_{cv}) (h * u_c)_t + d_{vt} + e_{vt} \right]\right)

    with the brightness B, the blocks :math:`u_c` of condition c convolved with the SPM haemodynamic response h, the planted
    pattern W (standard normal over the voxels of the region ``vt``, zero elsewhere; the shared response too is confined to the region),
    slow drifts d, and noise e that is first-order autoregressive in time and smooth in space. The magnitude of S plus complex thermal
    noise is stored as int16, about 1000 in the brain.

    Parameters
    ----------
    path : path
        Folder to create; it must not exist, or be empty.
    n_subjects : int
        Subjects ``01``, ``02``, ... Each has its own pattern and noise; all have the same brain and region.
    n_sessions : int, optional
        Sessions a subject; without it there is no session level. A subject's pattern is the same in all sessions.
    n_runs : int
        Runs a subject (a session, where there are sessions).
    shape : tuple of three ints
        Voxels along x (left to right), y and z. The field of view is 160 x 204 x 162 mm whatever the shape.
    conditions : sequence of str
        Names of the conditions, as in the ``trial_type`` of the events.
    n_blocks : int
        Blocks of each condition in each run; their order is drawn anew for each run.
    block_s, rest_s : float
        Duration of a block, and of the rest before, between and after blocks (s).
    repetition_time : float
        Seconds between volumes.
    signal : float
        Standard deviation of the pattern over voxels, and mean response of the region (percent signal change). 0 gives a null study:
        nothing differs between conditions, nor between conditions and rest.
    similarity : float
        Correlation of the patterns of two subjects, 0 to 1.
    noise : float
        Standard deviation of the autocorrelated, smooth noise (percent signal change).
    ar1 : float
        Correlation of that noise from one volume to the next, above -1 and below 1.
    smoothness_mm : float
        Full width at half maximum of the smoothing kernel, for noise, pattern and drift (mm).
    drift : float
        Standard deviation over voxels of the linear, and half as much of the quadratic, trend across a run (percent signal change).
    seed : int
        The same seed gives the same files, byte for byte (on the same versions of the numerical libraries).

    Returns
    -------
    Path
        The folder: ``sub-<label>[/ses-<label>]/func`` holds the images and events, and ``derivatives/daskdecode-simulation``
        the truth of each subject: ``anat/sub-<label>_desc-brain_mask.nii.gz``, ``anat/sub-<label>_label-vt_mask.nii.gz`` and, for each
        condition, ``func/sub-<label>_task-objectviewing_contrast-<condition>_stat-effect_statmap.nii.gz`` (float32, percent signal change).

    Raises
    ------
    SourceError
        If a parameter makes no sense, or the folder has content. Nothing is written then.

    Notes
    -----
    Eager; runs are simulated in parallel on the active Dask scheduler. Peak memory is about six times a run in float32 for each worker
    thread. The study appears under its name only when it is whole.
    """
    path = Path(path)
    study = _Study(
        n_subjects=_count("n_subjects", n_subjects),
        n_sessions=None if n_sessions is None else _count("n_sessions", n_sessions),
        n_runs=_count("n_runs", n_runs),
        head=Head(_checked_shape(shape), smoothness_mm=_within("smoothness_mm", smoothness_mm, least=0.0)),
        conditions=_checked_conditions(conditions),
        n_blocks=_count("n_blocks", n_blocks),
        block_s=_within("block_s", block_s, above=0.0),
        rest_s=_within("rest_s", rest_s, least=0.0),
        repetition_time=_within("repetition_time", repetition_time, above=0.0),
        signal=_within("signal", signal, least=0.0),
        similarity=_within("similarity", similarity, least=0.0, most=1.0),
        noise=_within("noise", noise, least=0.0),
        ar1=_within("ar1", ar1, above=-1.0, below=1.0),
        drift=_within("drift", drift, least=0.0),
        seed=_count("seed", seed, least=0),
    )
    if study.n_volumes < _FEWEST_VOLUMES:
        raise SourceError(
            f"simulate_study: a run would have {study.n_volumes} volumes, fewer than {_FEWEST_VOLUMES}. "
            "Make the blocks longer or more, or repetition_time shorter."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SourceError(f"Cannot simulate a study in {path}: it exists and is not an empty folder. Choose another path or remove it.")
    whole = path.resolve()  # "." has no name to derive another from
    partial = whole.with_name(f"{whole.name}.partial-{os.getpid()}")
    try:
        study.write(partial)
        if whole.exists():  # empty, checked above; it may be the working directory, so it stays
            for content in partial.iterdir():
                content.rename(whole / content.name)
        else:
            partial.rename(whole)
    finally:
        _remove(partial)
    return path


@dataclass(frozen=True)
class _Study:
    """The checked parameters of :func:`simulate_study`, and what follows from them."""

    n_subjects: int
    n_sessions: int | None
    n_runs: int
    head: Head
    conditions: tuple[str, ...]
    n_blocks: int
    block_s: float
    rest_s: float
    repetition_time: float
    signal: float
    similarity: float
    noise: float
    ar1: float
    drift: float
    seed: int

    # --- response --------------------------------------------------------------------------------------------------------------------

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def effects(self, subject: int) -> np.ndarray:
        """Response of each voxel to each condition (percent signal change), float32, shape (*shape, n_conditions)."""
        n_conditions = len(self.conditions)
        shared = self.head.smooth_maps(self._rng(_SHARED), n_conditions)
        own = self.head.smooth_maps(self._rng(_SUBJECT, subject), n_conditions)
        pattern = math.sqrt(self.similarity) * shared + math.sqrt(1 - self.similarity) * own
        inside = pattern[self.head.region]
        inside = (inside - inside.mean(axis=0)) / inside.std(axis=0)
        effects: np.ndarray = np.zeros_like(pattern)
        effects[self.head.region] = self.signal * (_ACTIVATION + inside)
        return effects

    @cached_property
    def n_volumes(self) -> int:
        """Volumes in a run."""
        n_blocks = self.n_blocks * len(self.conditions)
        return int(np.ceil((n_blocks * (self.block_s + self.rest_s) + self.rest_s) / self.repetition_time))

    def events(self, rng: np.random.Generator) -> pd.DataFrame:
        """Blocks of one run, as BIDS events: each condition once, in random order, then again."""
        order = [self.conditions[i] for _ in range(self.n_blocks) for i in rng.permutation(len(self.conditions))]
        onset = self.rest_s + np.arange(len(order)) * (self.block_s + self.rest_s)
        return pd.DataFrame({"onset": onset, "duration": self.block_s, "trial_type": order})

    def regressors(self, events: pd.DataFrame) -> np.ndarray:
        """Blocks convolved with the SPM haemodynamic response, float32, shape (n_conditions, n_volumes)."""
        frame_times = np.arange(self.n_volumes) * self.repetition_time
        columns = []
        for condition in self.conditions:
            blocks = events[events.trial_type == condition]
            block_spec = np.stack([blocks.onset, blocks.duration, np.ones(len(blocks))])
            columns.append(compute_regressor(block_spec, "spm", frame_times)[0][:, 0])
        return np.array(columns, dtype=np.float32)

    # --- signal ----------------------------------------------------------------------------------------------------------------------

    def brightness(self, subject: int) -> np.ndarray:
        """Mean image of a subject (scanner units), float32, shape ``shape``: zero outside the brain."""
        texture = self.head.smooth_maps(self._rng(_SUBJECT, subject, 1), 1)[..., 0]
        return np.where(self.head.brain, _BRAIN_INTENSITY * (1 + 0.05 * np.clip(texture, -3, 3)), 0).astype(np.float32)

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        """Stationary AR(1) noise, smooth in space (percent signal change), float32, shape (*shape, n_volumes)."""
        innovations = self.head.smooth_maps(rng, self.n_volumes)
        innovations[..., 1:] *= np.sqrt(1 - self.ar1**2)  # the first volume has the stationary variance already
        numerator, denominator = np.array([self.noise], dtype=np.float32), np.array([1, -self.ar1], dtype=np.float32)
        return np.asarray(lfilter(numerator, denominator, innovations, axis=-1))

    def _drift(self, rng: np.random.Generator) -> np.ndarray:
        """Linear and quadratic trends (percent signal change), float32, shape (*shape, n_volumes)."""
        trends = legvander(np.linspace(-1, 1, self.n_volumes), 2)[:, 1:] * [self.drift, self.drift / 2]
        return np.asarray(self.head.smooth_maps(rng, 2) @ trends.T.astype(np.float32))

    def bold(self, subject: int, events: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
        """One run as the scanner stores it, int16, shape (*shape, n_volumes)."""
        percent = self.effects(subject) @ self.regressors(events)
        percent += self._drift(rng)
        percent += self._noise(rng)
        percent *= np.float32(0.01)
        percent += 1
        percent *= self.brightness(subject)[..., None]
        percent += np.float32(_THERMAL_SD) * rng.standard_normal(percent.shape, dtype=np.float32)
        imaginary = np.float32(_THERMAL_SD) * rng.standard_normal(percent.shape, dtype=np.float32)
        magnitude = np.hypot(percent, imaginary, out=percent)
        np.rint(magnitude, out=magnitude)
        return np.asarray(np.minimum(magnitude, np.iinfo(np.int16).max), dtype=np.int16)

    # --- files -----------------------------------------------------------------------------------------------------------------------

    def write(self, root: Path) -> None:
        """Write the whole data set below ``root``."""
        # Every folder beforehand: where one run fails, those still being written by other threads cannot bring removed folders back.
        for subject, session, _ in self._runs():
            self._func_folder(root, subject, session).mkdir(parents=True, exist_ok=True)
            for datatype in ("anat", "func"):
                (self._truth_folder(root, subject) / datatype).mkdir(parents=True, exist_ok=True)
        self._write_descriptions(root)
        tasks = [dask.delayed(self._write_truth)(root, subject) for subject in range(self.n_subjects)]
        tasks += [dask.delayed(self._write_run)(root, *where) for where in self._runs()]
        dask.compute(*tasks)

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        for subject in range(self.n_subjects):
            for session in range(self.n_sessions or 1):
                for run in range(self.n_runs):
                    yield subject, session, run

    def _entities(self, subject: int, session: int) -> list[str]:
        entities = [f"sub-{_label(subject, self.n_subjects)}"]
        return entities if self.n_sessions is None else [*entities, f"ses-{_label(session, self.n_sessions)}"]

    def _func_folder(self, root: Path, subject: int, session: int) -> Path:
        return root.joinpath(*self._entities(subject, session), "func")

    def _truth_folder(self, root: Path, subject: int) -> Path:
        return root / "derivatives" / _PIPELINE / self._entities(subject, 0)[0]

    def _write_descriptions(self, root: Path) -> None:
        truth = root / "derivatives" / _PIPELINE
        generated_by = [{"Name": "daskdecode", "Version": __version__, "Description": "simulate_study"}]
        description = {"Name": "Simulated study", "BIDSVersion": _BIDS_VERSION, "DatasetType": "raw", "GeneratedBy": generated_by}
        _write_json(root / "dataset_description.json", description)
        _write_json(truth / "dataset_description.json", {**description, "Name": "Truth of a simulated study", "DatasetType": "derivative"})
        readme = (
            f"Simulated by daskdecode {__version__}; no person was scanned.\n\n"
            f"Blocks of {', '.join(self.conditions)}: a pattern of {self.signal:g} % signal change in the region vt,\n"
            f"noise of {self.noise:g} %, seed {self.seed}.\n\n"
            f"Masks and planted patterns are in derivatives/{_PIPELINE}.\n"
        )
        (root / "README").write_text(readme, encoding="utf-8")
        participants = pd.DataFrame({"participant_id": [self._entities(s, 0)[0] for s in range(self.n_subjects)]})
        _write_tsv(root / "participants.tsv", participants)
        sidecar = {"RepetitionTime": self.repetition_time, "TaskName": _TASK}
        _write_json(root / f"task-{_TASK}_bold.json", sidecar)

    def _write_truth(self, root: Path, subject: int) -> None:
        folder = self._truth_folder(root, subject)
        name = folder.name
        self._write_image(folder / "anat" / f"{name}_desc-brain_mask.nii.gz", self.head.brain.astype(np.uint8))
        self._write_image(folder / "anat" / f"{name}_label-vt_mask.nii.gz", self.head.region.astype(np.uint8))
        for condition, effect in zip(self.conditions, np.moveaxis(self.effects(subject), -1, 0), strict=True):
            contrast = _bids_label(condition)
            self._write_image(folder / "func" / f"{name}_task-{_TASK}_contrast-{contrast}_stat-effect_statmap.nii.gz", effect)

    def _write_run(self, root: Path, subject: int, session: int, run: int) -> None:
        rng = self._rng(_RUN, subject, session, run)
        folder = self._func_folder(root, subject, session)
        stem = "_".join([*self._entities(subject, session), f"task-{_TASK}", f"run-{_label(run, self.n_runs)}"])
        events = self.events(rng)
        _write_tsv(folder / f"{stem}_events.tsv", events)
        self._write_image(folder / f"{stem}_bold.nii.gz", self.bold(subject, events, rng))

    def _write_image(self, path: Path, values: np.ndarray) -> None:
        image = nib.Nifti1Image(values, self.head.affine)
        image.header.set_xyzt_units("mm", "sec")
        if values.ndim == 4:
            image.header.set_zooms((*self.head.zooms_mm, self.repetition_time))
        image.to_filename(path)  # nibabel's gzip carries no time stamp: the same values are the same bytes


def _label(index: int, n: int) -> str:
    """BIDS index of the 0-based ``index`` of ``n``: counted from 1, padded to the same width, at least two digits."""
    return f"{index + 1:0{max(2, len(str(n)))}d}"


def _bids_label(name: str) -> str:
    """A name as a BIDS label, which may hold letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _remove(folder: Path) -> None:
    """Remove a folder; another thread may be finishing a file in it."""
    for _ in range(_REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVAL_PAUSE_S)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tsv(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, sep="\t", index=False, lineterminator="\n")


def _count(name: str, value: int, *, least: int = 1) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise SourceError(f"simulate_study: {name} must be a whole number, found {value!r}.") from None
    if count < least:
        raise SourceError(f"simulate_study: {name} must be at least {least}, found {count}.")
    return count


def _within(
    name: str,
    value: float,
    *,
    least: float = -np.inf,
    most: float = np.inf,
    above: float = -np.inf,
    below: float = np.inf,
) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SourceError(f"simulate_study: {name} must be a number, found {value!r}.") from None
    if not (np.isfinite(number) and least <= number <= most and above < number < below):
        bounds = [
            f"{word} {b:g}" for word, b in [("at least", least), ("at most", most), ("above", above), ("below", below)] if np.isfinite(b)
        ]
        raise SourceError(f"simulate_study: {name} must be {' and '.join(bounds)}, found {value!r}.")
    return number


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise SourceError(f"simulate_study: shape must be three numbers of voxels, found {tuple(shape)!r}.")
    x, y, z = (_count("shape", n, least=5) for n in shape)  # fewer could not hold a brain with air around it
    return x, y, z


def _checked_conditions(conditions: Sequence[str]) -> tuple[str, ...]:
    names = (conditions,) if isinstance(conditions, str) else tuple(map(str, conditions))
    labels = {_bids_label(name) for name in names}
    if not names or "" in labels or len(labels) < len(names):
        raise SourceError(f"simulate_study: conditions must be names told apart by their letters and digits, found {names!r}.")
    if REST in names or any(re.search(r"[\t\r\n]", name) for name in names):
        raise SourceError(f"simulate_study: a condition can neither be called {REST!r} nor hold tabs or line breaks, found {names!r}.")
    return names
