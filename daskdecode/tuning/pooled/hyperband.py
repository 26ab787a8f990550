"""Hyperband on samples that are never in memory together: subjects pooled, runs read when a model needs them, and forgotten."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from daskdecode.alone import alone
from daskdecode.engine.moments import Screening
from daskdecode.engine.plan import memory_budget
from daskdecode.engine.sweep import tree_sum
from daskdecode.engine.workers import check_workers_have
from daskdecode.errors import DecodingError, MemoryBudgetError, nearest
from daskdecode.models.content import NOT_CONTENT, shown
from daskdecode.models.decoder import Decoder
from daskdecode.models.estimators import resolve_estimator, resolve_scorer, resolve_screening
from daskdecode.models.outcome import versions
from daskdecode.models.record import Record, digest_of, in_classes
from daskdecode.models.samples import Samples, as_samples
from daskdecode.tuning.pooled.blocks import (
    BLOCK_NBYTES,
    COPIES,
    SHARE_OF_LIMIT,
    BlockScorer,
    Look,
    Recipe,
    Runs,
    as_decoder,
    classes_of,
    decide_on,
    f_of_classes,
    groups_of,
    load,
    looks,
    packed,
    runs_of,
)
from daskdecode.tuning.pooled.bracket import HELD_BLOCKS
from daskdecode.tuning.pooled.dask_ml_hyperband import Hyperband, SampleBlocks, Split, Workers, workers
from daskdecode.tuning.pooled.stages import Stages
from daskdecode.tuning.result import SearchResult

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_KIND = "Hyperband search"

_FILE = "search.npz"

_HELD_OUT = 0.2
"""Share of the groups that are kept for scoring, and of the rest that choose among the models."""


@dataclass(frozen=True)
class Parts:
    """Numbers of the runs that train, that choose, and that only score."""

    train: list[int]
    validation: list[int]
    test: dict[Any, list[int]]


@dataclass(frozen=True)
class Plan:
    """Numbers of the runs that choose, and of those in each block that trains."""

    validation: list[int]
    blocks: list[list[int]]

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """For the record."""
        sizes = [len(block) for block in self.blocks]
        return {"validation": np.array(self.validation), "blocks": np.concatenate(self.blocks), "sizes": np.array(sizes)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Plan:
        """As it was recorded."""
        blocks = np.split(arrays["blocks"], np.cumsum(arrays["sizes"])[:-1])
        return cls(arrays["validation"].tolist(), [block.tolist() for block in blocks])


def search_hyperband(
    decoder: Any, X: Any, distributions: Any, y: Any, groups: Any, *, n_iter: int, random_state: int, nested: bool, path: Any = None
) -> SearchResult:
    """Search with Hyperband; see :func:`daskdecode.search`.

    Notes
    -----
    Whole groups (subjects, or else runs) are held out twice: some score the models while they are trained, others only the winner.
    Training runs are shuffled and put together to blocks of up to 64 MiB, so that a block mixes groups. Peak memory of a worker: four
    blocks for each of its threads, two more, and three times the validation samples, which are as many whole runs as a sixteenth of its
    memory holds.

    With a path, the plan, the screening and the nested scores are kept in one file of a folder, and what models have learnt in a file a
    model. A search that goes on follows the plan that was kept, whatever memory workers have now, so that its numbers are the same.
    """
    with _alone(path) as folder:
        return _search(decoder, X, distributions, y, groups, n_iter=n_iter, random_state=random_state, nested=nested, folder=folder)


def _search(
    decoder: Any, X: Any, distributions: Any, y: Any, groups: Any, *, n_iter: int, random_state: int, nested: bool, folder: Path | None
) -> SearchResult:
    found = workers()
    model = _model(decoder, distributions)
    samples = as_samples(X, y, None, decoder.mask)
    classes, codes = classes_of(samples)
    scorer = resolve_scorer(decoder.scoring, decoder._default_scoring)
    check_workers_have((model, distributions, scorer), "What is given as estimator, distributions or scoring")
    who = groups_of(X, samples, groups)
    runs = runs_of(samples, who, decoder.standardize)
    parts = _split([who[rows[0]] for rows, _ in runs], random_state, nested=nested)
    budget = memory_budget(decoder.memory_budget) if decoder.memory_budget is not None else found.memory_nbytes
    plan = Plan(
        _fitting(runs, parts.validation, budget // 16),
        _blocks(runs, parts.train, min(BLOCK_NBYTES, budget // (24 * found.n_threads)), n_iter, random_state),
    )
    _check_memory(runs, plan, budget, found)
    _check_classes(classes, codes, runs, plan)
    screening = resolve_screening(decoder.screening_percentile, decoder.screening_n_features, samples.grid, samples.x.shape[1])
    judge = BlockScorer(scorer, classes.size)
    search = Hyperband(model, distributions, max_iter=n_iter, random_state=random_state, scoring=judge)
    asked = {"n_iter": n_iter, "random_state": int(random_state), "nested": nested, "screening": repr(screening)}
    goes_on = folder is not None and (folder / _FILE).exists()
    seen = _seen(runs, plan, codes, classes.size, summing=screening is not None and not goes_on, hashing=folder is not None)
    content = {} if folder is None else _content(decoder, samples, who, search.settings(), seen.hashed) | asked
    record = Record(_KIND, None if folder is None else folder / _FILE, content)
    stages = Stages(folder, {"search": digest_of([np.array(json.dumps(content))])})
    if goes_on:
        plan = Plan.of_arrays(record.arrays)
        _check_memory(runs, plan, budget, found)
    else:
        # In one go: a file that is there has all that need not be seen again.
        columns = {} if screening is None else {"columns": _kept_columns(screening, seen.sums, runs, plan, codes)}
        record.keep(**plan.as_arrays(), **columns)
    kept = record.arrays.get("columns")
    _train(search, runs, plan, kept, codes, stages)
    best = search.best_estimator_
    result = _result(search, decoder, model)
    result.best_decoder_ = as_decoder(decoder, best, kept, samples, classes)
    if nested:
        if "nested_scores" not in record.arrays:
            record.keep(nested_scores=_score_groups(runs, parts.test, kept, best, codes, judge))
        result.nested_scores_ = record.arrays["nested_scores"]
        result.nested_params_ = [result.best_params_] * len(parts.test)
    return result


def _train(search: Hyperband, runs: Runs, plan: Plan, columns: Ints | None, codes: Ints, stages: Stages) -> None:
    """Let dask-ml train on blocks and choose on the validation runs."""
    y_of = [np.concatenate([codes[runs[r][0]] for r in block]) for block in plan.blocks]
    recipes = [Recipe([runs[r][1] for r in block], columns) for block in plan.blocks]
    chooses = Recipe([runs[r][1] for r in plan.validation], columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # each call of partial_fit is one epoch
        search.fit(
            Split(SampleBlocks.of(load, recipes), _whole(chooses)),
            Split(
                da.from_array(np.concatenate(y_of), chunks=(tuple(map(len, y_of)),)),
                da.from_array(codes[np.concatenate([runs[r][0] for r in plan.validation])], chunks=-1),
            ),
            stages=stages,
            classes=np.arange(search.scoring.n_classes),
        )


def _result(search: Hyperband, decoder: Decoder, model: Any) -> SearchResult:
    table: dict[str, Any] = {name: list(v) if name == "params" else v for name, v in search.cv_results_.items()}
    table["rank_test_score"] = ranks_of(table["partial_fit_calls"], table["test_score"], search.best_index_)
    return SearchResult(
        table,
        search.best_index_,
        method="hyperband",
        scoring=decoder.scoring if isinstance(decoder.scoring, str) else decoder._default_scoring,
        estimator=" ".join(str(model).split()),
        best_estimator_=search.best_estimator_,
    )


def _seen(runs: Runs, plan: Plan, codes: Ints, n_classes: int, *, summing: bool, hashing: bool) -> Look:
    """See sums of the runs that train, and the hash of all, reading each run that is needed for it once."""
    if not (summing or hashing):
        return Look(np.zeros((0, 0)), 0)
    trains = [[runs[r] for r in block] for block in plan.blocks]
    parts = [tree_sum(looks(trains, codes, n_classes, summing=summing, hashing=hashing))]
    if hashing:
        others = set(range(len(runs))).difference(*plan.blocks)
        parts.append(tree_sum(looks([[runs[r]] for r in others], codes, n_classes, summing=False, hashing=True)))
    found = dask.compute(*parts)
    return Look(found[0].sums, sum(look.hashed for look in found) % 2**64)


def _kept_columns(screening: Screening, sums: Floats, runs: Runs, plan: Plan, codes: Ints) -> Ints:
    """Voxels that screening keeps."""
    y = codes[np.concatenate([runs[r][0] for block in plan.blocks for r in block])]
    return np.flatnonzero(screening.keep(f_of_classes(sums, np.bincount(y, minlength=len(sums) - 1))))


# ---------------------------------------------------------------------------------------------------------------- what is kept


@contextlib.contextmanager
def _alone(path: Any) -> Iterator[Path | None]:
    """Say before any long work whether a folder can be used and what is in it be read, and keep other searches from it."""
    if path is None:
        yield None
        return
    folder = Path(path)
    if (folder.exists() and not folder.is_dir()) or not folder.parent.is_dir():
        raise DecodingError(f"path={str(path)!r}: method='hyperband' keeps a file a model, and needs a folder, in one that exists.")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise DecodingError(f"The folder {folder} cannot be written to. Give another path.")
    with alone(folder / ".lock", f"Another {_KIND} writes to {folder}", DecodingError), _of_folder():
        Record.check(folder / _FILE, _KIND)
        Stages.check(folder)
        yield folder


@contextlib.contextmanager
def _of_folder() -> Iterator[None]:
    """A file alone is not to be deleted: the others would be of another search."""
    try:
        yield
    except DecodingError as error:
        if "delete the file" not in str(error):
            raise
        raise DecodingError(str(error).replace("delete the file", "delete its folder")) from error


def _content(decoder: Decoder, samples: Samples, who: NDArray[Any], settings: Sequence[Any], hashed: int) -> dict[str, Any]:
    """What scores depend on, JSON-able."""
    not_used = NOT_CONTENT | {"cv", "engine", "param_grid", "tune"}
    return {
        "data": f"{samples.x.dtype.str} {samples.x.shape} {hashed:016x}",
        "labels": digest_of(in_classes(np.asarray(samples.y))),
        "runs": digest_of([] if samples.groups is None else [samples.groups.astype(str)]),
        "groups": digest_of([who.astype(str)]),
        **{name: shown(value) for name, value in decoder.get_params(deep=False).items() if name not in not_used},
        "settings": digest_of(np.array([shown(setting)]) for setting in settings),
        **versions(),
        "dask-ml": version("dask-ml"),
    }


# ---------------------------------------------------------------------------------------------------------------- what is asked


def ranks_of(calls: NDArray[Any], scores: NDArray[Any], best: int) -> Ints:
    """Rank models, 1 for the one that was chosen, then by how long they were trained, then by score.

    dask-ml ranks by score alone, within brackets: a model that was given up after one call may then stand above the one that won, though
    its score was of another stage.
    """
    chosen = np.arange(len(scores)) == best
    ranks = np.empty(len(scores), dtype=np.intp)
    ranks[np.lexsort((-np.asarray(scores, dtype=np.float64), -np.asarray(calls), ~chosen))] = np.arange(1, len(scores) + 1)
    return ranks


def _model(decoder: Any, distributions: Any) -> Any:
    """The unfitted estimator, checked."""
    if not isinstance(decoder, Decoder):
        raise DecodingError(
            f"method='hyperband' takes a daskdecode.Decoder, which tells classes apart; found {type(decoder).__name__}. To search with "
            "values for labels, take method='grid' or 'random': samples are then held in memory."
        )
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


def _fitting(runs: Runs, wanted: Sequence[int], nbytes: int) -> list[int]:
    """As many whole runs as fit, spread evenly over those wanted; at least one."""
    total = sum(runs[r][1].nbytes for r in wanted)
    n = max(1, min(len(wanted), int(len(wanted) * nbytes // max(total, 1))))
    return [wanted[i] for i in np.unique(np.linspace(0, len(wanted) - 1, n).round().astype(int))]


def _blocks(runs: Runs, train: Sequence[int], nbytes: int, n_iter: int, seed: int) -> list[list[int]]:
    """Put shuffled runs together to blocks; at least as many as a model sees, where there are as many runs."""
    order = [train[i] for i in np.random.default_rng([seed, 1]).permutation(len(train))]
    most = min(nbytes, sum(runs[r][1].nbytes for r in order) // n_iter)
    return packed(runs, order, most)


def _check_memory(runs: Runs, plan: Plan, budget: int, found: Workers) -> None:
    block = int(max(sum(runs[r][1].nbytes for r in b) for b in plan.blocks))
    chooses = int(sum(runs[r][1].nbytes for r in plan.validation))
    need = COPIES * block * found.n_threads + HELD_BLOCKS * block + 3 * chooses
    if need > SHARE_OF_LIMIT * budget:
        raise MemoryBudgetError(
            f"A worker needs {format_bytes(need)}: {COPIES} copies of a block of {format_bytes(block)} for each of its {found.n_threads} "
            f"threads, {HELD_BLOCKS} blocks that wait, and 3 copies of the {format_bytes(chooses)} that choose. "
            f"It may take {SHARE_OF_LIMIT:.0%} of {format_bytes(budget)}. Give workers more memory or fewer threads, or apply a mask."
        )


def _check_classes(classes: NDArray[Any], codes: Ints, runs: Runs, plan: Plan) -> None:
    for what, chosen in (("training", [r for block in plan.blocks for r in block]), ("validation", plan.validation)):
        there = codes[np.concatenate([runs[r][0] for r in chosen])]
        missing = [str(c) for k, c in enumerate(classes) if not (there == k).any()]
        if missing:
            raise DecodingError(f"The {what} groups have no samples of {missing[0]!r}. Take another random_state, or leave the class out.")


def _score_groups(
    runs: Runs, test: Mapping[Any, Sequence[int]], columns: Ints | None, model: Any, codes: Ints, judge: BlockScorer
) -> Floats:
    """Score the best model on each group that had no part in the search."""
    decide, known = dask.delayed(decide_on, pure=False), dask.delayed(model)
    tasks = [[decide(known, Recipe([runs[r][1]], columns)) for r in own] for own in test.values()]
    (found,) = dask.compute(tasks)
    rows = [np.concatenate([runs[r][0] for r in own]) for own in test.values()]
    return np.array([judge.of(np.concatenate(parts), codes[which]) for parts, which in zip(found, rows, strict=True)])


def _whole(recipe: Recipe) -> da.Array:
    """Samples as one chunk, read in a task."""
    read = dask.delayed(load, pure=False)(recipe)
    array: da.Array = da.from_delayed(read, recipe.shape, dtype=recipe.runs[0].dtype)
    return array
