"""Hyperband on samples that are never in memory together: subjects pooled, runs read when a model needs them, and forgotten."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.utils import format_bytes
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

from daskdecode import schema
from daskdecode.data.preprocess import standardize_samples
from daskdecode.engine.moments import Screening
from daskdecode.engine.plan import memory_budget
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.solvers import Scorer
from daskdecode.engine.sweep import tree_sum
from daskdecode.engine.workers import check_workers_have
from daskdecode.errors import DecodingError, MemoryBudgetError, nearest
from daskdecode.models.decoder import Decoder
from daskdecode.models.estimators import resolve_estimator, resolve_scorer, resolve_screening
from daskdecode.models.samples import Samples, as_samples
from daskdecode.tuning.dask_ml import HELD_BLOCKS, Hyperband, SampleBlocks, Split, Workers, workers
from daskdecode.tuning.result import SearchResult

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_BLOCK_NBYTES = 64 * 2**20
"""Enough for a task to be worth its overhead, little beside a worker's memory."""

_HELD_OUT = 0.2
"""Share of the groups that are kept for scoring, and of the rest that choose among the models."""

_COPIES = 4
"""Of a block, while it is read, scaled and put together."""

_SHARE_OF_LIMIT = 0.6
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


@dataclass(frozen=True)
class Parts:
    """Numbers of the runs that train, that choose, and that only score."""

    train: list[int]
    validation: list[int]
    test: dict[Any, list[int]]


def search_stream(
    decoder: Any, X: Any, distributions: Any, y: Any, groups: Any, *, n_iter: int, random_state: int, nested: bool
) -> SearchResult:
    """Search with Hyperband; see :func:`daskdecode.search`.

    Notes
    -----
    Whole groups (subjects, or else runs) are held out twice: some score the models while they are trained, others only the winner.
    Training runs are shuffled and put together to blocks of up to 64 MiB, so that a block mixes groups. Peak memory of a worker: four
    blocks for each of its threads, two more, and three times the validation samples, which are as many whole runs as a sixteenth of its
    memory holds.
    """
    found = workers()
    model = _model(decoder, distributions)
    samples = as_samples(X, y, None, decoder.mask)
    classes, codes = _classes(samples)
    scorer = resolve_scorer(decoder.scoring, decoder._default_scoring)
    check_workers_have((model, distributions, scorer), "What is given as estimator, distributions or scoring")
    who = _groups(X, samples, groups)
    runs = _runs(samples, who, decoder.standardize)
    parts = _split([who[rows[0]] for rows, _ in runs], random_state, nested=nested)
    budget = memory_budget(decoder.memory_budget) if decoder.memory_budget is not None else found.memory_nbytes
    validation = _fitting(runs, parts.validation, budget // 16)
    blocks = _blocks(runs, parts.train, min(_BLOCK_NBYTES, budget // (24 * found.n_threads)), n_iter, random_state)
    _check_memory(runs, blocks, validation, budget, found)
    y_of = [np.concatenate([codes[runs[r][0]] for r in block]) for block in blocks]
    _check_classes(classes, np.concatenate(y_of), codes[np.concatenate([runs[r][0] for r in validation])])
    screening = resolve_screening(decoder.screening_percentile, decoder.screening_n_features, samples.grid, samples.x.shape[1])
    recipes = [Recipe([runs[r][1] for r in block]) for block in blocks]
    columns = None if screening is None else np.flatnonzero(_screened(recipes, y_of, classes.size, screening))
    chooses = Recipe([runs[r][1] for r in validation], columns)
    search = Hyperband(model, distributions, max_iter=n_iter, random_state=random_state, scoring=BlockScorer(scorer, classes.size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # each call of partial_fit is one epoch
        search.fit(
            Split(SampleBlocks.of(load, [r.keeping(columns) for r in recipes]), _whole(chooses)),
            Split(
                da.from_array(np.concatenate(y_of), chunks=(tuple(map(len, y_of)),)),
                da.from_array(codes[np.concatenate([runs[r][0] for r in validation])], chunks=-1),
            ),
            classes=np.arange(classes.size),
        )
    table: dict[str, Any] = {name: list(v) if name == "params" else v for name, v in search.cv_results_.items()}
    table["rank_test_score"] = ranks_of(table["partial_fit_calls"], table["test_score"], search.best_index_)
    result = SearchResult(
        table,
        search.best_index_,
        method="hyperband",
        scoring=decoder.scoring if isinstance(decoder.scoring, str) else decoder._default_scoring,
        estimator=" ".join(str(model).split()),
        best_estimator_=search.best_estimator_,
        best_decoder_=_as_decoder(decoder, search.best_estimator_, columns, samples, classes),
    )
    if nested:
        result.nested_scores_ = _score_groups(runs, parts.test, columns, search.best_estimator_, codes, scorer, classes.size)
        result.nested_params_ = [result.best_params_] * len(parts.test)
    return result


def ranks_of(calls: NDArray[Any], scores: NDArray[Any], best: int) -> Ints:
    """Rank models, 1 for the one that was chosen, then by how long they were trained, then by score.

    dask-ml ranks by score alone, within brackets: a model that was given up after one call may then stand above the one that won, though
    its score was of another stage.
    """
    chosen = np.arange(len(scores)) == best
    ranks = np.empty(len(scores), dtype=np.intp)
    ranks[np.lexsort((-np.asarray(scores, dtype=np.float64), -np.asarray(calls), ~chosen))] = np.arange(1, len(scores) + 1)
    return ranks


# ---------------------------------------------------------------------------------------------------------------------- what is asked


def _model(decoder: Any, distributions: Any) -> Any:
    """The unfitted estimator, checked."""
    if not isinstance(decoder, Decoder):
        raise DecodingError(f"method='hyperband' takes a daskdecode.Decoder, which tells classes apart; found {type(decoder).__name__}.")
    if decoder.standardize not in ("zscore_run", None):
        raise DecodingError(
            f"method='hyperband' reads run by run, and standardize={decoder.standardize!r} needs more than a run at a time: use "
            "standardize='zscore_run', or None."
        )
    if decoder.confounds is not None:
        raise DecodingError("method='hyperband' takes no confounds: regress them out of each subject first (daskdecode.regress_out).")
    model = resolve_estimator(decoder.estimator, "classifier").build(10, 20, **(decoder.estimator_args or {}))
    if not hasattr(model, "partial_fit"):
        raise DecodingError(
            f"method='hyperband' trains block by block, and {type(model).__name__} has no partial_fit: give an estimator that has, such as "
            "Decoder(SGDClassifier(loss='hinge'))."
        )
    if not isinstance(distributions, Mapping) or not distributions:
        raise DecodingError("method='hyperband' takes param_distributions as one dict of lists or distributions, with at least one name.")
    for name, values in distributions.items():
        if name not in model.get_params():
            raise DecodingError(f"The estimator has no parameter {name!r}. {nearest(name, model.get_params())}")
        if not hasattr(values, "rvs") and not (isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) and len(values)):
            raise DecodingError(f"param_distributions[{name!r}] is {values!r}: expected values in a list, or a distribution.")
    return model


def _classes(samples: Samples) -> tuple[NDArray[Any], Ints]:
    if samples.y is None:
        raise DecodingError("There are no labels: pass y=, one label a sample.")
    classes, codes = np.unique(samples.y, return_inverse=True)
    if classes.size < 2:
        raise DecodingError(f"All {codes.size} samples have the label {classes[0]!s}: decoding needs at least two classes.")
    return classes, codes.astype(np.intp)


def _groups(X: Any, samples: Samples, groups: Any) -> NDArray[Any]:
    """What is held out whole: what the caller says, else subjects where there are several, else runs."""
    if groups is not None:
        found = np.asarray(groups)
        if found.shape != (samples.x.shape[0],):
            raise DecodingError(f"groups has shape {found.shape} but X has {samples.x.shape[0]} samples: it needs one value a sample.")
        return found
    if isinstance(X, xr.Dataset) and schema.SUBJECT in X.coords and np.unique(X[schema.SUBJECT].values).size > 1:
        return np.asarray(X[schema.SUBJECT].values)
    if samples.groups is None:
        raise DecodingError("method='hyperband' holds out whole groups of samples: pass groups= (the subject or the run of each).")
    return samples.groups


def _runs(samples: Samples, who: NDArray[Any], how: Any) -> list[tuple[Ints, da.Array]]:
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


def _split(group_of_run: Sequence[Any], seed: int, *, nested: bool) -> Parts:
    """Deal whole groups out to training, validation and test."""
    groups = list(dict.fromkeys(group_of_run))
    needed = 3 if nested else 2
    if len(groups) < needed:
        raise DecodingError(
            f"method='hyperband' needs at least {needed} groups, to train, to choose" + (" and to score" if nested else "") + f"; found "
            f"{len(groups)}. Pool more subjects, or pass groups=" + (", or nested=False." if nested else ".")
        )
    order = [groups[g] for g in np.random.default_rng(seed).permutation(len(groups))]
    n_test = max(1, round(_HELD_OUT * len(groups))) if nested else 0
    n_validation = max(1, round(_HELD_OUT * (len(groups) - n_test)))
    test, validation = order[:n_test], set(order[n_test : n_test + n_validation])
    of = {g: [r for r, other in enumerate(group_of_run) if other == g] for g in groups}
    left = [g for g in groups if g not in validation and g not in test]
    return Parts([r for g in left for r in of[g]], [r for g in groups if g in validation for r in of[g]], {g: of[g] for g in test})


def _fitting(runs: Sequence[tuple[Ints, da.Array]], wanted: Sequence[int], nbytes: int) -> list[int]:
    """As many whole runs as fit, spread evenly over those wanted; at least one."""
    total = sum(runs[r][1].nbytes for r in wanted)
    n = max(1, min(len(wanted), int(len(wanted) * nbytes // max(total, 1))))
    return [wanted[i] for i in np.unique(np.linspace(0, len(wanted) - 1, n).round().astype(int))]


def _blocks(runs: Sequence[tuple[Ints, da.Array]], train: Sequence[int], nbytes: int, n_iter: int, seed: int) -> list[list[int]]:
    """Put shuffled runs together to blocks; at least as many as a model sees, where there are as many runs."""
    order = [train[i] for i in np.random.default_rng([seed, 1]).permutation(len(train))]
    most = min(nbytes, sum(runs[r][1].nbytes for r in order) // n_iter)
    blocks: list[list[int]] = []
    size = 0
    for r in order:
        own = runs[r][1].nbytes
        if not blocks or size + own > most:
            blocks.append([])
            size = 0
        blocks[-1].append(r)
        size += own
    return blocks


def _check_memory(
    runs: Sequence[tuple[Ints, da.Array]], blocks: Sequence[Sequence[int]], validation: Sequence[int], budget: int, found: Workers
) -> None:
    block = int(max(sum(runs[r][1].nbytes for r in b) for b in blocks))
    chooses = int(sum(runs[r][1].nbytes for r in validation))
    need = _COPIES * block * found.n_threads + HELD_BLOCKS * block + 3 * chooses
    if need > _SHARE_OF_LIMIT * budget:
        raise MemoryBudgetError(
            f"A worker needs {format_bytes(need)}: {_COPIES} copies of a block of {format_bytes(block)} for each of its {found.n_threads} "
            f"threads, {HELD_BLOCKS} blocks that wait, and 3 copies of the {format_bytes(chooses)} that choose. "
            f"It may take {_SHARE_OF_LIMIT:.0%} of {format_bytes(budget)}. Give workers more memory or fewer threads, or apply a mask."
        )


def _check_classes(classes: NDArray[Any], train: Ints, validation: Ints) -> None:
    for what, codes in (("training", train), ("validation", validation)):
        missing = [str(c) for k, c in enumerate(classes) if not (codes == k).any()]
        if missing:
            raise DecodingError(f"The {what} groups have no samples of {missing[0]!r}. Take another random_state, or leave the class out.")


# ------------------------------------------------------------------------------------------------------------------------ the passes


def _whole(recipe: Recipe) -> da.Array:
    """Samples as one chunk, read in a task."""
    read = dask.delayed(load, pure=False)(recipe)
    whole: da.Array = da.from_delayed(read, recipe.shape, dtype=recipe.runs[0].dtype)
    return whole


def _screened(recipes: Sequence[Recipe], y: Sequence[Ints], n_classes: int, screening: Screening) -> NDArray[np.bool_]:
    """Voxels with the largest F over the training samples; one pass."""
    sums = dask.delayed(_class_sums, pure=False)
    total = tree_sum([sums(recipe, codes, n_classes) for recipe, codes in zip(recipes, y, strict=True)]).compute()
    return screening.keep(f_of_classes(total, np.bincount(np.concatenate(y), minlength=n_classes)))


def _class_sums(recipe: Recipe, codes: Ints, n_classes: int) -> Floats:
    """Sums over each class and, last, of all squares; (n_classes + 1, n_voxels)."""
    x = load(recipe)
    sums = np.zeros((n_classes + 1, x.shape[1]))
    for k in range(n_classes):
        sums[k] = x[codes == k].sum(axis=0, dtype=np.float64)
    sums[-1] = np.einsum("ij,ij->j", x, x, dtype=np.float64)
    return sums


def f_of_classes(sums: Floats, counts: Ints) -> Floats:
    """One-way analysis of variance from class sums and the sum of squares, shape (n_voxels,), as scikit-learn's ``f_classif``."""
    n, n_classes = int(counts.sum()), counts.size
    correction = np.square(sums[:-1].sum(axis=0)) / n
    between = (np.square(sums[:-1]) / counts[:, None]).sum(axis=0) - correction
    within = sums[-1] - correction - between
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((between / (n_classes - 1)) / (within / (n - n_classes)))


@dataclass(frozen=True)
class BlockScorer:
    """Score of a classifier: of two classes the scorer's, of more its mean over one against the rest, as the Decoder's."""

    scorer: Scorer
    n_classes: int

    def __call__(self, model: Any, X: NDArray[np.floating], y: Ints) -> float:
        """Score samples (n_samples, n_voxels) with class codes y."""
        return self.of(decisions(model, X), y)

    def of(self, decision: Floats, y: Ints) -> float:
        """Score decisions (n_samples, n_problems)."""
        positive = [1] if self.n_classes == 2 else range(self.n_classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            each = [score_decisions(self.scorer, d, np.where(y == c, 1, -1)) for d, c in zip(decision.T, positive, strict=True)]
        return float(np.mean(each))


def decisions(model: Any, x: NDArray[np.floating]) -> Floats:
    """Decision values, or log-odds, shape (n_samples, 1) for two classes, else (n_samples, n_classes)."""
    if hasattr(model, "decision_function"):
        found = np.asarray(model.decision_function(x), dtype=np.float64)
    else:
        p = np.log(np.clip(model.predict_proba(x), np.finfo(np.float64).tiny, None))
        found = p[:, 1] - p[:, 0] if p.shape[1] == 2 else p
    return found[:, None] if found.ndim == 1 else found


def _decide(model: Any, recipe: Recipe) -> Floats:
    return decisions(model, load(recipe))


def _score_groups(
    runs: Sequence[tuple[Ints, da.Array]],
    test: Mapping[Any, Sequence[int]],
    columns: Ints | None,
    model: Any,
    codes: Ints,
    scorer: Scorer,
    n_classes: int,
) -> Floats:
    """Score the best model on each group that had no part in the search."""
    decide, known = dask.delayed(_decide, pure=False), dask.delayed(model)
    tasks = [[decide(known, Recipe([runs[r][1]], columns)) for r in own] for own in test.values()]
    (found,) = dask.compute(tasks)
    judge = BlockScorer(scorer, n_classes)
    rows = [np.concatenate([runs[r][0] for r in own]) for own in test.values()]
    return np.array([judge.of(np.concatenate(parts), codes[which]) for parts, which in zip(found, rows, strict=True)])


def _as_decoder(decoder: Decoder, model: Any, columns: Ints | None, samples: Samples, classes: NDArray[Any]) -> Decoder | None:
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
