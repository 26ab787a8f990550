"""What a fit is told of single samples (confounds, weights) and what each fold learns by itself: checked before data are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskdecode.engine.design import Design, training_sets
from daskdecode.engine.solvers import takes_sample_weight
from daskdecode.engine.within_fold import WithinFold
from daskdecode.errors import DecodingError
from daskdecode.models.samples import Samples

IN_FOLDS = "zscore_fold"
"""The ``standardize`` that is no scaling of the data before they are split."""


def within_fold(standardize: str | None, samples: Samples) -> WithinFold | None:
    """Return what every training set is to learn; None where that is nothing."""
    if standardize != IN_FOLDS and samples.confounds is None:
        return None
    confounds = np.zeros((samples.x.shape[0], 0)) if samples.confounds is None else samples.confounds
    return WithinFold(standardize == IN_FOLDS, confounds)


def check_confounds(design: Design) -> list[str]:
    """Refuse confounds that leave nothing of a training set, and say what cannot be learnt of them.

    Returns
    -------
    list of str
        Notes for the record.
    """
    if design.within is None or not design.within.confounds.shape[1]:
        return []
    sets = training_sets(design)
    everything = design.within.learn(np.arange(design.targets.shape[1])).basis.shape[1]
    ranks = [design.within.learn(fold.train).basis.shape[1] for fold in sets]
    for fold, rank in zip(sets, ranks, strict=True):
        if rank >= fold.train.size - 1:
            raise DecodingError(
                f"A training set has {fold.train.size} samples and {rank} independent confounds: nothing but its mean would be left. Use "
                "fewer confounds, or regress them out of whole runs, before labels are selected (daskdecode.regress_out)."
            )
    fewer = sum(rank < everything for rank in ranks)
    if not fewer:
        return []
    where = f"In {fewer} of {len(sets)} training sets some confounds do not vary by themselves"
    return [f"{where}: what they do to voxels cannot be learnt there, and is not removed from the test samples."]


def check_weights(design: Design, name: Any) -> None:
    """Refuse sample weights that the estimator does not take, or that leave a training set without a class."""
    if design.sample_weight is None:
        return
    if not takes_sample_weight(design.build(10, 20, **design.candidates[0])):
        told = repr(name) if isinstance(name, str) else type(name).__name__
        raise DecodingError(f"estimator {told} takes no sample_weight. Leave it out, or choose another estimator (svc, logistic, ridge).")
    counted = design.sample_weight > 0
    for fold in training_sets(design):
        for target in design.targets:
            found = np.unique(target[fold.train])
            left = np.unique(target[fold.train][counted[fold.train]])
            if not left.size or (design.classes is not None and left.size < found.size):
                raise DecodingError("sample_weight is 0 for all samples of a class in a training set: nothing could be told from it.")
