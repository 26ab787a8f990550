"""Scores of one design under many orders of its labels, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import LeaveOneGroupOut

from daskdecode.engine.closed_form import closed_form
from daskdecode.engine.design import Design, training_sets
from daskdecode.engine.judge import judge_of
from daskdecode.engine.moments import Cells
from daskdecode.engine.plan import OWN_NBYTES, Plan
from daskdecode.engine.relabel import Seen, shared_scores, swept_scores
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.errors import DecodingError
from daskdecode.models.base import BaseDecoder
from daskdecode.models.samples import Samples
from daskdecode.models.splitters import among, inner_splits, outer_splits

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_TOGETHER_NBYTES = 2**28
"""Room for what all labellings of a batch need in closed form, or have screened: more would take memory and save nothing."""

_FIT_NBYTES = 2000
"""What is kept of one problem on one training set until its labelling's tuning is done: scores, in objects that are larger than they."""

_FITS_TOGETHER = 100
"""Labellings whose fits are separate: a batch is what is lost when a test is killed."""


def folds_stay(cv: Any, samples: Samples, design: Design) -> bool:
    """Whether the folds of a rule are the same in whatever order the labels are."""
    cv = among(cv, samples.rows, samples.n_given)
    by_runs = cv == "run" if isinstance(cv, str) else isinstance(cv, LeaveOneGroupOut)
    listed = not isinstance(cv, str | int | np.integer) and not hasattr(cv, "split")
    given = listed and (design.inner is None or samples.groups is not None)
    # Folds of a regression never look at its values.
    return by_runs or given or design.classes is None


class Labellings:
    """Scores of many orders of the labels.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
    samples, design, plan, blocks
        What its preparation gave. Where nothing is screened the voxels are read here, once.

    Attributes
    ----------
    batch : int
        Orders to score together.
    """

    def __init__(self, decoder: BaseDecoder, samples: Samples, design: Design, plan: Plan, blocks: VoxelBlocks) -> None:
        self.decoder, self.samples, self.design, self.plan, self.blocks = decoder, samples, design, plan, blocks
        self.judge = judge_of(decoder.scoring, design.scorer, classes=design.classes is not None)
        self.cv = among(decoder.cv, samples.rows, samples.n_given)
        self.same_folds = folds_stay(decoder.cv, samples, design)
        self.seen = Seen.of(blocks, design, plan) if self._sees_the_same() else None
        self.batch = self._batch()

    def _sees_the_same(self) -> bool:
        """Whether labels have no part in what fits see, and memory holds it."""
        if self.design.within is None:
            return self.design.screening is None
        n_sets = len(training_sets(self.design))
        matrices = 8 * self.plan.workload.n_samples**2 if self.plan.route == "gram" else self.plan.selection_nbytes
        small = n_sets * matrices <= self.plan.memory_budget - self.plan.peak_nbytes
        return self.design.screening is None and self.same_folds and small

    def _batch(self) -> int:
        w, design = self.plan.workload, self.design
        if self.seen is None:
            # Sums of products with the labels over what no training set tells apart, twice while they are joined.
            n_cells = Cells.of([train for train, _ in design.splits()], np.zeros(w.n_samples, dtype=np.intp)).first.size
            sums = 2 * 8 * len(design.targets) * n_cells * w.n_voxels
            one = w.n_selections * (w.n_voxels + self.plan.selection_nbytes) + sums
            return int(max(1, self.plan.room_nbytes(_TOGETHER_NBYTES) // one))
        sets, n_problems, n_models = training_sets(design), len(design.targets), len(design.candidates)
        tested = max(sum(map(len, fold.tests)) for fold in sets)
        # Labels and weights of the samples, decision values and their ranks on the tests: of the tasks that run at one time.
        running = 8 * n_problems * (5 * w.n_samples + 5 * n_models * tested) * w.n_threads
        room = min(_TOGETHER_NBYTES, self.plan.memory_budget - OWN_NBYTES - sum(data.nbytes for data in self.seen.data.values()))
        fitting = int(max(1, room // (running + n_problems * len(sets) * _FIT_NBYTES)))
        separate = design.sample_weight is not None or closed_form(self._models(), w.n_voxels, exact=True) is None
        return min(fitting, _FITS_TOGETHER) if separate else fitting

    def observed(self) -> Floats:
        """Score the labels as they are, (2, n_folds, n_problems): as the decoder does, and as those of other orders are scored."""
        as_they_are = [np.arange(self.blocks.shape[0])]
        own = self.scores(as_they_are, exact=False)
        models = self._models()
        same = self.design.sample_weight is not None or (closed_form(models, 1) is None) == (closed_form(models, 1, exact=True) is None)
        return np.concatenate([own, own if same else self.scores(as_they_are)])

    def _models(self) -> list[Any]:
        n_train, n_voxels = self.design.outer[0][0].size, self.blocks.shape[1]
        return [self.design.build(n_train, n_voxels, **params) for params in self.design.candidates]

    def scores(self, orders: Sequence[Ints], *, exact: bool = True) -> Floats:
        """Score the labels in each order, (n_orders, n_folds, n_problems)."""
        designs = [self._relabelled(order) for order in orders]
        if self.seen is not None:
            return shared_scores(self.seen, designs, self.judge, exact=exact)
        together = len(orders) * self.plan.workload.n_selections
        return swept_scores(self.blocks, designs, self.plan, self.judge, together=together, exact=exact)

    def _relabelled(self, order: Ints) -> Design:
        """The design with its labels in another order, and new folds where the rule of cv looks at labels."""
        design, groups = self.design, self.samples.keys
        classes = None if design.classes is None else design.classes[order]
        design = replace(design, classes=classes, targets=design.targets[:, order])
        if self.same_folds:
            return design
        y = np.asarray(self.samples.y)[order]
        try:
            outer = outer_splits(self.cv, y, groups)
            inner = None if design.inner is None else [inner_splits(self.cv, train, y, groups) for train, _ in outer]
        except DecodingError as error:
            raise DecodingError(
                f"With labels in another order, the folds of cv={self.decoder.cv} do not hold all classes: {error}"
            ) from error
        return replace(design, outer=outer, inner=inner)
