"""Does what was learnt here hold there? Other labels, other runs, other times after onset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from daskdecode import schema
from daskdecode.engine.design import Design
from daskdecode.engine.judge import judge_of
from daskdecode.engine.relabel import scores_of
from daskdecode.errors import DecodingError, nearest
from daskdecode.lost import ends_in_words
from daskdecode.models.decoder import Decoder, require_classifier
from daskdecode.models.exchange import Step, step_of, stretches, times_of
from daskdecode.models.outcome import plain
from daskdecode.models.samples import Samples, as_samples
from daskdecode.models.splitters import Split, outer_splits

Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


def cross_decode(
    decoder: Decoder, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None, *, train: Any, test: Any
) -> Decoder:
    """Train on one set of samples and test on another: other labels, other runs, or any samples.

    Each run that has test samples is a fold: tested on its test samples, trained on the training samples of all *other* runs. So no run is
    on both sides, also where the two sets share runs; where they share none, all training samples train every fold.

    Parameters
    ----------
    decoder : Decoder
        Configured; it is not changed. Its ``cv`` is not used outside; inside, tuning leaves out one training run at a time.
    X, y, groups
        As for :meth:`daskdecode.Decoder.fit`.
    train, test : mapping, sequence of runs, or sequence of bool
        - a mapping from labels to the classes they stand for: ``train={"face": "animate", "house": "inanimate"},
          test={"cat": "animate", "chair": "inanimate"}``; other labels are left out. Classes that are all numbers
          stay numbers;
        - runs by name: ``train=["1", "2"], test=["3"]``;
        - a mask, shape (n_samples,).

    Returns
    -------
    Decoder
        Fitted; sample numbers in ``cv_`` and ``cv_predictions_`` count in X. Data are scaled over the samples that take part. Without
        ``groups`` there is a single fold, and no sample may be in both sets.

    Raises
    ------
    DecodingError, SelectionError
        Unknown labels or runs, a set without samples, a label that stands for two classes, and all that fitting raises; before data
        are read.
    """
    require_classifier(decoder, "cross_decode")
    samples = as_samples(X, y, groups, decoder.mask, confounds=decoder.confounds)
    if samples.y is None:
        raise DecodingError("There are no labels: pass y=, one label a sample.")
    trains, train_classes = _side("train", train, samples)
    tests, test_classes = _side("test", test, samples)
    both = trains & tests
    for row in np.flatnonzero(both).tolist():
        learnt, asked = train_classes[row], test_classes[row]
        if _text(learnt) != _text(asked):
            raise DecodingError(f"Label {samples.y[row]!s} stands for {learnt!s} in train and for {asked!s} in test.")
    strange = sorted(set(map(_text, test_classes[tests])) - set(map(_text, train_classes[trains])))
    if strange:
        raise DecodingError(f"test has class {strange[0]!r}, which train has not: a decoder can only find classes that it was trained on.")
    rows = np.flatnonzero(trains | tests)
    labels = _of_one_kind(np.where(trains, train_classes, test_classes)[rows].tolist())
    folds = _folds(trains[rows], tests[rows], None if samples.groups is None else samples.groups[rows])
    found: Decoder = clone(decoder).set_params(mask=None, cv=folds)
    found.fit(*_take(samples, rows, labels), confounds=samples.confound_table(rows))
    found.cv_ = [(rows[a], rows[b]) for a, b in found.cv_]
    found.cv_predictions_["sample"] = rows[found.cv_predictions_["sample"]]
    return found


def _side(name: str, wanted: Any, samples: Samples) -> tuple[Bools, NDArray[Any]]:
    """Samples of one side, and the class that each sample's label stands for, as it was given (dtype object)."""
    labels: list[Any] = np.asarray(samples.y).tolist()
    classes = np.empty(len(labels), dtype=object)
    classes[:] = labels
    if isinstance(wanted, Mapping):
        stands_for = {_text(label): plain(given) for label, given in wanted.items()}
        text = [_text(label) for label in labels]
        _check_known(name, "label", stands_for, sorted(set(text)))
        chosen = np.array([label in stands_for for label in text])
        classes[:] = [stands_for.get(label) for label in text]
    elif not isinstance(wanted, str) and isinstance(wanted, Iterable) and np.asarray(wanted).dtype == bool:
        chosen = np.asarray(wanted)
        if chosen.shape != classes.shape:
            raise DecodingError(f"{name} is a mask of shape {chosen.shape} but X has {classes.size} samples.")
    elif isinstance(wanted, Iterable) and not isinstance(wanted, str):
        if samples.groups is None:
            raise DecodingError(f"{name} names runs, but the run of each sample is not known: pass groups=.")
        runs = [str(run) for run in wanted]
        _check_known(name, "run", runs, np.unique(samples.groups))
        chosen = np.isin(samples.groups, runs)
    else:
        raise DecodingError(f"{name} must be a mapping of labels to classes, a list of runs, or a mask; found {type(wanted).__name__}.")
    if not chosen.any():
        raise DecodingError(f"{name} selects no samples.")
    return chosen, classes


def _text(label: Any) -> str:
    """What a label is called, as a number of whatever type: a key 1 names the label 1.0 too, which is what tables with gaps make of it."""
    label = plain(label)
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _of_one_kind(labels: list[Any]) -> NDArray[Any]:
    """Labels as they are where all are numbers or all are of one type; else as text, so that 1 and "1" are one class."""
    kinds = {type(label) for label in labels}
    return np.asarray(labels if len(kinds) == 1 or kinds == {int, float} else [_text(label) for label in labels])


def _check_known(side: str, kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    known = [str(k) for k in known]
    for name in wanted:
        if name not in known:
            raise DecodingError(f"{side} names the {kind} {name!r}, which no sample has. {nearest(name, known)}")


def _folds(trains: Bools, tests: Bools, groups: NDArray[Any] | None) -> list[Split]:
    if groups is None:
        if (trains & tests).any():
            raise DecodingError("Without groups= train and test may share no samples: pass the run of each sample.")
        return [(np.flatnonzero(trains), np.flatnonzero(tests))]
    return [(np.flatnonzero(trains & (groups != run)), np.flatnonzero(tests & (groups == run))) for run in dict.fromkeys(groups[tests])]


def _take(samples: Samples, rows: Ints, labels: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any] | None]:
    """X, y and groups of some samples in some order, lazily: what :meth:`daskdecode.Decoder.fit` takes without ``mask=``."""
    groups = None if samples.keys is None else samples.keys[rows]
    x = samples.x.rechunk({0: -1})[rows]
    if samples.grid is None:
        return x, labels, groups
    return samples.grid.assign({schema.BOLD: ((schema.TIME, schema.VOXEL), x)}), labels, groups


# ---------------------------------------------------------------------------------------------------------------- times


@ends_in_words()
def temporal_generalization(
    decoder: Decoder,
    X: Any,
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    labels: Sequence[Any] | None = None,
    lags: Sequence[int] | None = None,
) -> xr.Dataset:
    """Train on the volumes at one time after onset, test on those at another: see whether a code lasts or changes.

    An *event* is a block of one label (a maximal stretch of volumes within a run). For every fold of events (default: leave one run out)
    and every lag t, a decoder is trained on the volumes t after the onsets of the training events, and tested on those t' after the onsets
    of the others, for all t'. All volumes share one Gram matrix where nothing is screened: set ``screening_percentile=None`` for speed.

    Parameters
    ----------
    decoder : Decoder
        Configured; it is not changed.
    X, y, groups
        As for :meth:`daskdecode.Decoder.fit`. The volumes of a run must be in order of time; runs may be
        mixed. A dataset's gaps in ``time`` end events.
    labels : sequence, optional
        Conditions to tell apart. Default: all but ``"rest"``.
    lags : sequence of int, optional
        Volumes after onset. Default: 0 up to the shortest event. A larger lag than an event is long, or a negative one, takes the rest
        before or after it; never a volume of another event. Events that have no such volume are left out at that lag.

    Returns
    -------
    Dataset
        ``score(train_time, test_time)``, the mean over folds and classes; ``fold_score(class, fold, train_time, test_time)``. Times are
        volumes after onset; ``train_time_s``, ``test_time_s`` are seconds where X knows them and all runs have one repetition time.
        Eager. Data are scaled over the volumes that take part.

    Raises
    ------
    DecodingError
        Unknown labels, a lag that no event or not every class has, and all that fitting raises; before data are read.

    References
    ----------
    King & Dehaene 2014, Trends in Cognitive Sciences 18:203-210.
    """
    require_classifier(decoder, "temporal_generalization")
    samples, times, step_s = as_samples(X, y, groups, decoder.mask, confounds=decoder.confounds), times_of(X), step_of(X)
    if samples.y is None:
        raise DecodingError("There are no labels: pass y=, one label a sample.")
    conditions = _conditions(labels, np.asarray(samples.y))
    events = _events(samples, conditions, times, step_s)
    steps = _lags(lags, events)
    rows, event_of, lag_of = _volumes(samples, events, conditions, steps, times, step_s)
    names = np.asarray(samples.y)[np.array([event[0] for event in events])]
    runs = None if samples.keys is None else samples.keys[np.array([event[0] for event in events])]
    folds = outer_splits(decoder.cv, names, runs)
    pairs = []
    for train, test in folds:
        for step in steps:
            learnt = np.flatnonzero(np.isin(event_of, train) & (lag_of == step))
            missing = set(names.tolist()) - set(names[event_of[learnt]].tolist())
            if missing:
                raise DecodingError(f"At lag {step} a training set has no volumes of {sorted(map(str, missing))[0]!r}. Leave the lag out.")
            pairs.append((learnt, np.flatnonzero(np.isin(event_of, test))))
    timed = clone(decoder).set_params(mask=None, cv=pairs)
    *_, design, plan, blocks = timed._prepare(*_take(samples, rows, names[event_of]), confounds=samples.confound_table(rows))
    judge = judge_of(decoder.scoring, design.scorer, classes=True)
    scores = scores_of(blocks, _by_lag(design, lag_of, steps), plan, judge)
    table = scores.reshape(len(folds), len(steps), len(steps), -1).transpose(3, 0, 1, 2)
    return _as_dataset(table, [plain(c) for c in np.unique(names)], steps, _one_step(samples, times, step_s))


def _conditions(labels: Sequence[Any] | None, y: NDArray[Any]) -> list[Any]:
    present = [label for label in np.unique(y).tolist() if str(label) != schema.REST]
    if labels is None:
        return present
    _check_known("labels", "label", map(str, labels), map(str, np.unique(y)))
    return [label for label in np.unique(y).tolist() if str(label) in {str(wanted) for wanted in labels}]


def _events(samples: Samples, conditions: Sequence[Any], times: NDArray[np.float64] | None, step_s: Step) -> list[Ints]:
    y = np.asarray(samples.y)
    runs = np.zeros(y.size, dtype=str) if samples.groups is None else samples.groups
    return [block for block in stretches(y, runs, times, step_s) if y[block[0]] in conditions]


def _one_step(samples: Samples, times: NDArray[np.float64] | None, step_s: Step) -> float | None:
    """Seconds from one volume to the next; None where runs differ in it, so that a lag is not one time, and where it is not known."""
    if step_s is None:
        if times is None:
            return None
        runs = np.zeros(times.size, dtype=str) if samples.groups is None else samples.groups
        steps = np.concatenate([np.diff(times[runs == run]) for run in np.unique(runs)])
        step_s = float(steps[steps > 0].min()) if (steps > 0).any() else None
    found = np.unique(np.asarray([] if step_s is None else step_s))
    return float(found[0]) if found.size == 1 else None


def _lags(lags: Sequence[int] | None, events: Sequence[Ints]) -> list[int]:
    if not events:
        raise DecodingError("There are no events: no volume has one of the labels.")
    if lags is None:
        return list(range(min(event.size for event in events)))
    found = [int(lag) for lag in lags]
    if not found or len(set(found)) != len(found):
        raise DecodingError(f"lags={list(lags)} must name some volumes after onset, each once.")
    return found


def _volumes(
    samples: Samples,
    events: Sequence[Ints],
    conditions: Sequence[Any],
    lags: Sequence[int],
    times: NDArray[np.float64] | None,
    step_s: Step,
) -> tuple[Ints, Ints, Ints]:
    """Volumes that take part, with event and lag of each; a volume of rest may belong to two events, and then stands twice."""
    y = np.asarray(samples.y)
    runs = np.zeros(y.size, dtype=str) if samples.groups is None else samples.groups
    # Neighbours in time: what stretches of a constant label tell, since then only runs and gaps end them.
    pieces = stretches(np.zeros(y.size), runs, times, step_s)
    at = {int(row): (piece, place) for piece in pieces for place, row in enumerate(piece)}
    taken = np.isin(y, conditions)
    found = []
    for number, event in enumerate(events):
        piece, onset = at[int(event[0])]
        for lag in lags:
            place = onset + lag
            if 0 <= place < piece.size and (not taken[piece[place]] or 0 <= lag < event.size):
                found.append((int(piece[place]), number, lag))
    rows, event_of, lag_of = np.array(found, dtype=np.intp).reshape(-1, 3).T
    absent = set(lags) - set(lag_of.tolist())
    if absent:
        raise DecodingError(f"No event has a volume at lag {sorted(absent)[0]}.")
    return rows, event_of, lag_of


def _by_lag(design: Design, lag_of: Ints, lags: Sequence[int]) -> Design:
    """Split each test set by lag: from (fold, train lag) to (fold, train lag, test lag)."""
    outer = [(train, test[lag_of[test] == lag]) for train, test in design.outer for lag in lags]
    inner = None if design.inner is None else [fold for fold in design.inner for _ in lags]
    return replace(design, outer=outer, inner=inner)


def _as_dataset(table: NDArray[np.float64], classes: Sequence[Any], lags: Sequence[int], repetition_s: float | None) -> xr.Dataset:
    defined = np.isfinite(table)
    count = defined.sum(axis=(0, 1))
    mean = np.divide(np.where(defined, table, 0).sum(axis=(0, 1)), count, out=np.full(count.shape, np.nan), where=count > 0)
    problems = classes[1:] if len(classes) == 2 else classes
    found = xr.Dataset(
        {"score": (("train_time", "test_time"), mean), "fold_score": (("class", "fold", "train_time", "test_time"), table)},
        coords={"class": [str(c) for c in problems], "train_time": list(lags), "test_time": list(lags)},
    )
    for name in ("train_time", "test_time"):
        found[name].attrs["long_name"] = "volumes after onset"
        if repetition_s is not None:
            found = found.assign_coords({f"{name}_s": (name, np.asarray(lags) * repetition_s, {"units": "s"})})
    return found
