"""Generalised linear models of dask-ml, fitted to blocks that are read anew in every pass of the solver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes
from numpy.typing import NDArray

from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.tuning.dask_ml import OneAgainstRest, fit_linear
from daskdecode.tuning.pooled.blocks import Block, load
from daskdecode.tuning.pooled.chains import Learnt, Lessons

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COPIES_OF_SOLVERS = 14
"""Of a block as it is stored, while solvers work on it in double precision: read, with a column for the intercept, scaled, multiplied."""

_UNPENALISED = ("newton", "gradient_descent")


def check_linear(estimator: Any, settings: Sequence[Mapping[str, Any]], candidates: Sequence[Any], n_voxels: int, budget: int) -> None:
    """Refuse before any work what dask-ml refuses late, or takes no notice of.

    Parameters
    ----------
    estimator : dask_ml.linear_model.LogisticRegression
    settings : sequence of mappings
        What is searched.
    candidates : sequence of estimators
        The same as estimators.
    n_voxels : int
        Voxels that training sets keep.
    budget : int
        Bytes that a process may take.

    Raises
    ------
    DecodingError, MemoryBudgetError
    """
    name = type(estimator).__name__
    for model, setting in zip(candidates, settings, strict=True):
        try:
            model._get_solver_kwargs()
        except ValueError as error:
            raise DecodingError(f"{name}: {error}.") from error
        if model.penalty not in ("l1", "l2", "elastic_net"):
            raise DecodingError(f"{name} has no penalty {model.penalty!r}: give 'l1', 'l2' or 'elastic_net'.")
        for unused in ("class_weight", "random_state"):
            if unused in setting or getattr(model, unused) is not None:
                raise DecodingError(f"dask-ml's {name} takes no notice of {unused}: leave it out, or use an estimator with partial_fit.")
        if model.solver in _UNPENALISED and {"C", "penalty"} & set(setting):
            raise DecodingError(f"solver={model.solver!r} of dask-ml's {name} has no penalty, so C changes nothing: use solver='lbfgs'.")
        if model.solver == "newton" and 3 * 8 * n_voxels**2 > budget:
            raise MemoryBudgetError(
                f"solver='newton' works on {n_voxels} x {n_voxels} second derivatives, {format_bytes(3 * 8 * n_voxels**2)} with what is "
                f"taken of them, and may take {format_bytes(budget)}. Use solver='lbfgs', or keep fewer voxels (screening_n_features)."
            )


def learn_linear(lessons: Lessons, blocks: Sequence[Block]) -> Delayed:
    """Fit the models one after another; each pass of a solver reads the blocks inside tasks. Eager; holds a :class:`Learnt`.

    Notes
    -----
    Memory of a process: for each of its threads what solvers take of a block.
    """
    learnt = Learnt([], np.zeros(len(lessons.models)))
    for m, (s, setting) in enumerate(lessons.models):
        start = time.perf_counter()
        x, codes = training_samples(blocks, lessons.trains[s], lessons.columns[s])
        model = lessons.build(x.shape[0], x.shape[1], **setting)
        learnt.models.append(lessons.attempt(partial(OneAgainstRest.fitted, partial(fit_linear, model), x, codes, lessons.classes)))
        learnt.seconds[m] = time.perf_counter() - start
    held: Delayed = dask.delayed(learnt, traverse=False)
    return held


def training_samples(blocks: Sequence[Block], train: Bools, columns: Any) -> tuple[da.Array, NDArray[np.intp]]:
    """Samples of a training set, (n_train, n_columns) float64, lazily by blocks; and their classes."""
    own = [(block, wanted) for block in blocks if (wanted := train[block.who]).any()]
    name = f"training-{uuid4().hex}"
    tasks: dict[Any, Any] = {(name, n, 0): (_Part(block, wanted, columns),) for n, (block, wanted) in enumerate(own)}
    n_voxels = own[0][0].recipe.shape[1] if columns is None else columns.size
    chunks = (tuple(int(wanted.sum()) for _, wanted in own), (int(n_voxels),))
    x = da.Array(HighLevelGraph.from_collections(name, tasks), name, chunks, dtype=np.float64)
    return x, np.concatenate([block.codes[wanted] for block, wanted in own])


class _Part:
    """Samples of a block that train, read by calling this; not a dataclass, which Dask would look into."""

    def __init__(self, block: Block, wanted: Bools, columns: Any) -> None:
        self.recipe, self.wanted = block.recipe.keeping(columns), None if wanted.all() else wanted

    def __call__(self) -> Floats:
        """Read and select."""
        x = load(self.recipe)
        return np.asarray(x if self.wanted is None else x[self.wanted], dtype=np.float64)
