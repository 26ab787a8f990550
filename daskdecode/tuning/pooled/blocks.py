"""Samples that are never in memory together: runs that are read inside tasks, what is seen of them, how models are scored on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import UndefinedMetricWarning

from daskdecode import schema
from daskdecode.data.preprocess import standardize_samples
from daskdecode.engine.moments import is_rounding
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.solvers import Scorer
from daskdecode.errors import DecodingError
from daskdecode.models.decoder import Decoder
from daskdecode.models.record import hash_values
from daskdecode.models.samples import Samples
from daskdecode.quiet import quiet

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Runs = Sequence[tuple[Ints, da.Array]]
"""Samples of each run, and their lazily scaled signals."""

BLOCK_NBYTES = 64 * 2**20
"""Enough for a task to be worth its overhead, little beside a worker's memory."""

COPIES = 4
"""Of a block, while it is read, scaled and put together."""

SHARE_OF_LIMIT = 0.6
"""Of a worker's memory: above it, workers begin to write to disk."""


class Recipe:
    """Runs of samples that are read and scaled inside a task; not a dataclass, which Dask would look into.

    Parameters
    ----------
    runs : sequence of dask arrays, each (n_samples_of_run, n_voxels)
    columns : ndarray of int, optional
        Voxels to keep.
    """

    def __init__(self, runs: Sequence[da.Array], columns: Ints | None = None) -> None:
        self.runs, self.columns = list(runs), columns

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of samples and of voxels kept."""
        n_voxels = self.runs[0].shape[1] if self.columns is None else self.columns.size
        return sum(run.shape[0] for run in self.runs), int(n_voxels)

    def keeping(self, columns: Ints | None) -> Recipe:
        """Return the same runs with some of the voxels."""
        return Recipe(self.runs, columns)


def load(recipe: Recipe) -> NDArray[np.floating]:
    """Read runs, (n_samples, n_columns), one after another."""
    x = np.empty(recipe.shape, dtype=recipe.runs[0].dtype)
    start = 0
    for run in recipe.runs:
        # Not on the cluster: this is a task of it, and the pieces of a run are of use to no other.
        signals = run.compute(scheduler="synchronous")
        x[start : start + len(signals)] = signals if recipe.columns is None else signals[:, recipe.columns]
        start += len(signals)
    return x


def classes_of(samples: Samples) -> tuple[NDArray[Any], Ints]:
    """Classes, and the number of its class for each sample."""
    if samples.y is None:
        raise DecodingError("There are no labels: pass y=, one label a sample.")
    classes, codes = np.unique(samples.y, return_inverse=True)
    if classes.size < 2:
        raise DecodingError(f"All {codes.size} samples have the label {classes[0]!s}: decoding needs at least two classes.")
    return classes, codes.astype(np.intp)


def groups_of(X: Any, samples: Samples, groups: Any) -> NDArray[Any]:
    """What is held out whole: what the caller says, else subjects where there are several, else runs."""
    if groups is not None:
        found = np.asarray(groups)
        if found.shape != (samples.x.shape[0],):
            raise DecodingError(f"groups has shape {found.shape} but X has {samples.x.shape[0]} samples: it needs one value a sample.")
        return found
    if isinstance(X, xr.Dataset) and schema.SUBJECT in X.coords and np.unique(X[schema.SUBJECT].values).size > 1:
        return np.asarray(X[schema.SUBJECT].values)
    if samples.groups is None:
        raise DecodingError("Whole groups of samples are held out: pass groups= (the subject or the run of each).")
    return samples.groups


def runs_of(samples: Samples, who: NDArray[Any], how: Any) -> list[tuple[Ints, da.Array]]:
    """Samples of each run of each group, with their lazily scaled signals, in order of first appearance."""
    names = who.astype(str) if samples.groups is None else np.char.add(np.char.add(who.astype(str), "\n"), samples.groups)
    _, first, of = np.unique(names, return_index=True, return_inverse=True)
    signals = samples.finite()
    found = []
    for code in np.argsort(first):
        rows = np.flatnonzero(of == code)
        stretch = slice(int(rows[0]), int(rows[-1]) + 1)
        part = signals[stretch] if stretch.stop - stretch.start == rows.size else signals[rows]
        scaled = standardize_samples(part, np.zeros(rows.size, dtype=str), how)
        found.append((rows, dask.optimize(scaled)[0]))
    return found


def sums_of_classes(x: NDArray[np.floating], codes: Ints, n_classes: int) -> Floats:
    """Sums over each class and, last, of all squares; (n_classes + 1, n_voxels)."""
    sums = np.zeros((n_classes + 1, x.shape[1]))
    for k in range(n_classes):
        sums[k] = x[codes == k].sum(axis=0, dtype=np.float64)
    sums[-1] = np.einsum("ij,ij->j", x, x, dtype=np.float64)
    return sums


def f_of_classes(sums: Floats, counts: Ints) -> Floats:
    """One-way analysis of variance from class sums and the sum of squares, shape (n_voxels,), as scikit-learn's ``f_classif``.

    NaN for a voxel that is constant over the samples.
    """
    n, n_classes = int(counts.sum()), counts.size
    correction = np.square(sums[:-1].sum(axis=0)) / n
    between = (np.square(sums[:-1]) / counts[:, None]).sum(axis=0) - correction
    power = sums[-1] - correction
    within = power - between
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(is_rounding(power, sums[-1], n), np.nan, (between / (n_classes - 1)) / (within / (n - n_classes)))


class Block:
    """Runs that are read together, and what is known of their samples without reading; not a dataclass, which Dask would look into.

    Parameters
    ----------
    recipe : Recipe
    codes : ndarray of int, shape (n_samples_of_block,)
        Class of each sample.
    who : ndarray of int, shape (n_samples_of_block,)
        Number of the group of each sample.
    """

    def __init__(self, recipe: Recipe, codes: Ints, who: Ints) -> None:
        self.recipe, self.codes, self.who = recipe, codes, who


def blocks_of(runs: Runs, codes: Ints, who: Ints, seed: int) -> list[Block]:
    """Put shuffled runs together to blocks of up to 64 MiB, so that a block mixes groups.

    The size depends on nothing else: models that learn block by block depend on their blocks, and should not on where they are trained.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(runs))
    return [
        Block(Recipe([runs[r][1] for r in block]), *(np.concatenate([of[runs[r][0]] for r in block]) for of in (codes, who)))
        for block in packed(runs, order.tolist(), BLOCK_NBYTES)
    ]


def packed(runs: Runs, order: Sequence[int], nbytes: int) -> list[list[int]]:
    """Numbers of runs, put together in their order to blocks of up to so many bytes; at least one a block."""
    blocks: list[list[int]] = []
    size = 0
    for r in order:
        own = int(runs[r][1].nbytes)
        if not blocks or size + own > nbytes:
            blocks.append([])
            size = 0
        blocks[-1].append(r)
        size += own
    return blocks


@dataclass(frozen=True)
class Look:
    """What a pass sees of samples; that of samples put together is the sum.

    Attributes
    ----------
    sums : ndarray of float64, shape (n_classes + 1, n_voxels)
        Sums over each class and, last, of all squares; of shape (0, n_voxels) where none are asked for.
    hashed : int
        Hash of all values with their places, modulo 2^64; 0 where none is asked for.
    """

    sums: Floats
    hashed: int

    def __add__(self, other: Look) -> Look:
        return Look(self.sums + other.sums, (self.hashed + other.hashed) % 2**64)


def looks(parts: Iterable[Runs], codes: Ints, n_classes: int, *, summing: bool, hashing: bool) -> list[Delayed]:
    """Tasks that each give the :class:`Look` of some runs: for screening, and to tell whether data are those of a file, in one pass.

    Parameters
    ----------
    parts : iterable of lists of (samples, signals)
    codes : ndarray of int, shape (n_samples,)
        Class of each sample.
    n_classes : int
    summing, hashing : bool
        What is asked for.

    Notes
    -----
    Lazy. A task reads one run after another, so that no two of them are in memory together.
    """
    task, found = dask.delayed(_look_at, pure=False), []
    for own in parts:
        rows = np.concatenate([rows for rows, _ in own])
        found.append(task(Recipe([x for _, x in own]), rows, codes[rows], n_classes, summing=summing, hashing=hashing))
    return found


def _look_at(recipe: Recipe, rows: Ints, codes: Ints, n_classes: int, *, summing: bool, hashing: bool) -> Look:
    sums, hashed, start = np.zeros(((n_classes + 1) * summing, recipe.shape[1])), 0, 0
    columns = np.arange(recipe.shape[1], dtype=np.uint64)
    for run in recipe.runs:
        x, own = load(Recipe([run])), slice(start, start + run.shape[0])
        if summing:
            sums += sums_of_classes(x, codes[own], n_classes)
        if hashing:
            hashed += int(hash_values(x, columns, rows[own].astype(np.uint64)))
        start = own.stop
    return Look(sums, hashed % 2**64)


@dataclass(frozen=True)
class BlockScorer:
    """Score of a classifier: of two classes the scorer's, of more its mean over one against the rest, as the Decoder's."""

    scorer: Scorer
    n_classes: int

    def __call__(self, model: Any, X: NDArray[np.floating], y: Ints) -> float:
        """Score samples (n_samples, n_voxels) with class codes y."""
        return self.of(decisions(model, X), y)

    def of(self, decision: Floats, y: Ints) -> float:
        """Score decisions (n_samples, n_problems): mean over the problems for which the score is defined."""
        positive = [1] if self.n_classes == 2 else range(self.n_classes)
        with quiet(UndefinedMetricWarning):
            each = [score_decisions(self.scorer, d, np.where(y == c, 1, -1)) for d, c in zip(decision.T, positive, strict=True)]
        defined = np.asarray(each)[~np.isnan(each)]
        return float(defined.mean()) if defined.size else float("nan")


def decisions(model: Any, x: NDArray[np.floating]) -> Floats:
    """Decision values, or log-odds, shape (n_samples, 1) for two classes, else (n_samples, n_classes)."""
    if hasattr(model, "decision_function"):
        found = np.asarray(model.decision_function(x), dtype=np.float64)
    else:
        p = np.log(np.clip(model.predict_proba(x), np.finfo(np.float64).tiny, None))
        found = p[:, 1] - p[:, 0] if p.shape[1] == 2 else p
    return found[:, None] if found.ndim == 1 else found


def decide_on(model: Any, recipe: Recipe) -> Floats:
    """Decisions of a model on samples that are read here."""
    return decisions(model, load(recipe))


def as_decoder(decoder: Decoder, model: Any, columns: Ints | None, samples: Samples, classes: NDArray[Any]) -> Decoder | None:
    """A decoder that predicts with the weights of a linear model, and has their maps; None where the model has no weights."""
    if not hasattr(model, "coef_"):
        return None
    n_voxels = samples.x.shape[1]
    fitted: Decoder = clone(decoder)
    fitted._rows = decoder._question(samples).rows
    fitted._voxels, fitted._grid = samples.voxels, samples.grid
    fitted.n_elements_ = fitted.n_features_in_ = n_voxels
    fitted.confound_names_, fitted.confound_coef_ = [], None
    fitted.classes_, fitted.intercept_ = classes, np.ravel(model.intercept_).astype(np.float64)
    fitted.coef_ = np.zeros((model.coef_.shape[0], n_voxels))
    fitted.coef_[:, slice(None) if columns is None else columns] = model.coef_
    if samples.grid is not None:
        fitted.coef_img_ = fitted._images(fitted.coef_, samples.grid, signed=True)
    return fitted
