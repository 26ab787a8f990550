"""Folds: which samples train and which test, outside and inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, LeaveOneGroupOut, PredefinedSplit, StratifiedKFold

from daskdecode.errors import DecodingError
from daskdecode.quiet import quiet

Ints = NDArray[np.intp]
Split: TypeAlias = tuple[Ints, Ints]


def outer_splits(cv: Any, y: NDArray[Any], groups: NDArray[Any] | None, *, classes: bool = True) -> list[Split]:
    """Folds of a cross-validation.

    Parameters
    ----------
    cv : "run", int, splitter or iterable
        ``"run"``: leave one run out, in the natural order of their names. An int: :class:`~sklearn.model_selection.StratifiedKFold`
        without shuffling (nilearn takes leave-one-group-out instead, unasked, where groups are given). Else a scikit-learn splitter or
        an iterable of (train, test).
    y : ndarray, shape (n_samples,)
        Labels.
    groups : ndarray, shape (n_samples,), or None
        Run of each sample; splitters of scikit-learn see it as it is.
    classes : bool
        Whether y are classes. Of numbers, an int is :class:`~sklearn.model_selection.KFold` without shuffling.

    Returns
    -------
    list of (train, test)
        Sorted sample indices.

    Raises
    ------
    DecodingError
        Fewer than two runs, no folds, a fold without samples, a class missing from a training set.
    """
    splits = _split(_splitter(cv, classes), y, groups)
    for number, (train, test) in enumerate(splits):
        _check_fold(number, train, test, y if classes else None, groups)
    return splits


def inner_splits(cv: Any, train: Ints, y: NDArray[Any], groups: NDArray[Any] | None, *, classes: bool = True) -> list[Split]:
    """Folds inside one training set, by the same rule as outside; indices count in the whole data.

    A list of folds says nothing about other samples: there the rule is leave-one-run-out where runs are known, else five folds
    (stratified where y are classes).

    Raises
    ------
    DecodingError
        If the training set has a single run, or a class is missing from an inner training set.
    """
    rule: Any = _splitter(cv, classes)
    if isinstance(rule, list | PredefinedSplit):
        rule = (StratifiedKFold if classes else KFold)(5) if groups is None else _LeaveOneRunOut()
    inside_groups = None if groups is None else groups[train]
    if isinstance(rule, LeaveOneGroupOut) and groups is not None and np.unique(groups[train]).size < 2:
        raise DecodingError(
            "tune='nested' chooses hyperparameters by leaving out one of the training runs, which takes at least 2 of them, and a fold "
            f"has only one (in all there are {np.unique(groups).size} runs). Give a single setting (param_grid={{'C': 1}}), another cv=, "
            "or tune='held_out' (optimistic)."
        )
    try:
        splits = _split(rule, y[train], inside_groups)
    except DecodingError as error:
        raise DecodingError(
            f"tune='nested' splits each training set again by the rule of cv=: {error} Give a single setting (param_grid={{'C': 1}}), "
            "another cv=, or tune='held_out' (optimistic)."
        ) from error
    found = [(train[a], train[b]) for a, b in splits]
    for a, _ in found if classes else ():
        missing = set(np.unique(y).tolist()) - set(np.unique(y[a]).tolist())
        if missing:
            raise DecodingError(
                f"tune='nested': class {sorted(map(str, missing))[0]!r} is missing from a training set inside the training runs, because "
                "too few runs have it. Give a single setting (param_grid={'C': 1}), another cv=, or tune='held_out' (optimistic)."
            )
    return found


def among(cv: Any, rows: Ints | None, n_samples: int) -> Any:
    """Folds given as sample numbers of X, as folds of the samples ``rows`` that are taken; any other rule for cv as it is.

    Parameters
    ----------
    cv : "run", int, splitter or iterable
    rows : ndarray of int, or None
        Samples of X that are taken; None: all.
    n_samples : int
        Samples of X.
    """
    listed = isinstance(cv, PredefinedSplit) or (not isinstance(cv, str | int | np.integer) and not hasattr(cv, "split"))
    if rows is None or not listed:
        return cv
    place = np.full(n_samples, -1)
    place[rows] = np.arange(rows.size)
    pairs = _split(list(cv.split()) if isinstance(cv, PredefinedSplit) else _splitter(cv, True), np.zeros(n_samples), None)
    return [tuple(part[part >= 0] for part in (place[train], place[test])) for train, test in pairs]


def mixes_groups(splits: Sequence[Split], groups: NDArray[Any] | None) -> int:
    """Count the folds whose training and test samples share a run: their scores profit from noise that lasts over a run."""
    if groups is None:
        return 0
    return sum(bool(np.intersect1d(groups[train], groups[test]).size) for train, test in splits)


class _LeaveOneRunOut(LeaveOneGroupOut):  # type: ignore[misc]
    """Leave-one-group-out whose folds follow the natural order of the runs' names."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        return super().split(X, y, natural_order(groups))

    def __repr__(self) -> str:
        return "leave-one-run-out"


def _splitter(cv: Any, classes: bool) -> Any:
    """Return something with ``split``, or a list of folds."""
    if isinstance(cv, str):
        if cv != "run":
            raise DecodingError(f"cv={cv!r} is not known: give 'run', a number of folds, a scikit-learn splitter or a list of folds.")
        return _LeaveOneRunOut()
    if isinstance(cv, int | np.integer) and not isinstance(cv, bool):
        if cv < 2:
            raise DecodingError(f"cv={cv}: cross-validation needs at least 2 folds.")
        return (StratifiedKFold if classes else KFold)(int(cv))
    if hasattr(cv, "split"):
        return cv
    if isinstance(cv, Iterable):
        return list(cv)
    raise DecodingError(f"cv={cv!r} is not known: give 'run', a number of folds, a scikit-learn splitter or a list of folds.")


def _split(rule: Any, y: NDArray[Any], groups: NDArray[Any] | None) -> list[Split]:
    if isinstance(rule, list):
        pairs = rule
    else:
        if isinstance(rule, LeaveOneGroupOut):
            _check_runs(groups)
        try:
            with quiet("The groups parameter is ignored"):  # Runs are offered to every splitter.
                pairs = list(rule.split(np.zeros((y.size, 1)), y, groups))
        except ValueError as error:
            raise DecodingError(f"{rule} cannot split {y.size} samples: {str(error).rstrip('.')}.") from error
    if not pairs:
        raise DecodingError("cv gives no folds (a generator gives its folds only once: pass a list).")
    try:
        return [(_indices(train, y.size), _indices(test, y.size)) for train, test in pairs]
    except (TypeError, ValueError) as error:
        if isinstance(error, DecodingError):
            raise
        raise DecodingError(f"cv must give pairs of (training, test) sample indices: {error}") from error


def natural_order(groups: NDArray[Any]) -> Ints:
    """Number the runs so that run 2 comes before run 10."""
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    keys = [[(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)] for name in names]
    rank = np.empty(names.size, dtype=np.intp)
    rank[sorted(range(names.size), key=keys.__getitem__)] = np.arange(names.size)
    return np.asarray(rank[codes])


def _indices(samples: Any, n_samples: int) -> Ints:
    samples = np.asarray(samples)
    if samples.dtype == bool:
        if samples.shape != (n_samples,):
            raise DecodingError(f"A fold is given as {samples.size} booleans, but there are {n_samples} samples.")
        samples = np.flatnonzero(samples)
    if samples.ndim != 1 or (samples.size and samples.dtype.kind not in "iu"):
        raise DecodingError(f"A fold must be a list of sample numbers; found {samples.dtype} of shape {samples.shape}.")
    samples, counts = np.unique(samples.astype(np.intp), return_counts=True)
    outside = samples[(samples < 0) | (samples >= n_samples)]
    if outside.size:
        raise DecodingError(f"A fold names sample {outside[-1]}, but there are {n_samples} samples (0 to {n_samples - 1}).")
    if (counts > 1).any():
        raise DecodingError(f"A fold names sample {samples[counts > 1][0]} more than once: each sample counts once.")
    return np.asarray(samples)


def _check_runs(groups: NDArray[Any] | None) -> None:
    if groups is None:
        raise DecodingError("Leave-one-run-out needs the run of each sample: pass groups=, or another cv= (a number of folds, a splitter).")
    runs = np.unique(groups)
    if runs.size < 2:
        raise DecodingError(f"Leave-one-run-out needs at least 2 runs, but all samples are of run {runs[0]!s}. Use cv=5, or add runs.")


def _check_fold(number: int, train: Ints, test: Ints, labels: NDArray[Any] | None, groups: NDArray[Any] | None) -> None:
    where = f"Fold {number}" if groups is None else f"Fold {number} (test run {', '.join(map(str, np.unique(groups[test])))})"
    if not train.size or not test.size:
        raise DecodingError(f"{where} has {train.size} training and {test.size} test samples: both need some.")
    if np.intersect1d(train, test).size:
        raise DecodingError(f"{where} trains and tests on the same samples.")
    missing = [] if labels is None else [str(label) for label in np.unique(labels) if not np.any(labels[train] == label)]
    if missing:
        raise DecodingError(
            f"{where}: class {', '.join(map(repr, missing))} has no training samples. Leave the class out, or use another cv=."
        )
