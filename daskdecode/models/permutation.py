"""Permutation tests of a decoder: labels change places within runs, everything that looks at labels is done again."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import LeaveOneGroupOut

from daskdecode.engine.closed_form import judge_accuracy, judge_auc
from daskdecode.engine.design import Design
from daskdecode.engine.plan import Plan
from daskdecode.engine.relabel import Judge, Shared, ridge_scores, screened_scores, shared_scores
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.errors import DecodingError
from daskdecode.models.decoder import Decoder, require_classifier
from daskdecode.models.estimators import check_choice
from daskdecode.models.exchange import Exchange, exchangeable, repetition_of, times_of
from daskdecode.models.outcome import plain
from daskdecode.models.record import Record, fingerprint
from daskdecode.models.samples import Samples
from daskdecode.models.splitters import inner_splits, outer_splits

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_ROUNDING = 1e-12
"""Scores closer than this are equal: the same labels in another order must count as a tie."""


@dataclass(frozen=True)
class PermutationTest:
    """What a permutation test found; m permutations. ``str(test)`` is a table.

    Attributes
    ----------
    score : float
        Mean over folds and classes of the decoder's score.
    null : ndarray of float64, shape (m,)
        The same of each permutation.
    pvalue : float
        ``(1 + b) / (1 + m)``, b the number of permutations that score as high or higher (Phipson & Smyth 2010).
    class_scores : dict of label to float
        Mean over folds, class against rest. Two classes share one problem.
    class_nulls : dict of label to ndarray of float64, shape (m,)
    class_pvalues : dict of label to float
        Of each class alone.
    class_pvalues_fwe : dict of label to float
        Corrected for looking at all classes: each score against the largest over classes of each permutation (family-wise error).
    classes : list
    scoring, exchange, estimator : str
    random_state : int
    n_arrangements : int
        Different labellings that exchange can reach. With few, no p value can be small.
    """

    score: float
    null: Floats
    pvalue: float
    class_scores: dict[Any, float]
    class_nulls: dict[Any, Floats]
    class_pvalues: dict[Any, float]
    class_pvalues_fwe: dict[Any, float]
    classes: list[Any]
    scoring: str
    estimator: str
    exchange: str
    random_state: int
    n_arrangements: int

    @property
    def n_permutations(self) -> int:
        """Number of permutations, m."""
        return int(self.null.size)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain, JSON-able values; classes become text."""
        per_class = ("class_scores", "class_pvalues", "class_pvalues_fwe")
        names = ("score", "pvalue", "scoring", "estimator", "exchange", "random_state", "n_permutations", "n_arrangements")
        return {
            **{name: getattr(self, name) for name in names},
            "classes": [str(c) for c in self.classes],
            "null": self.null.tolist(),
            **{name: {str(c): v for c, v in getattr(self, name).items()} for name in per_class},
            "class_nulls": {str(c): v.tolist() for c, v in self.class_nulls.items()},
        }

    def __str__(self) -> str:
        what = {"within_run": "labels within runs", "blocks": "whole blocks within runs"}[self.exchange]
        lines = [
            f"{self.scoring} {self.score:.4f}, p = {self.pvalue:.4g}",
            f"null: {self.n_permutations} permutations of {what}",
            f"      mean {self.null.mean():.4f}, 95% below {np.quantile(self.null, 0.95):.4f}, largest {self.null.max():.4f}",
        ]
        if self.n_arrangements <= self.n_permutations:
            lines.append(f"only {self.n_arrangements} labellings differ: p cannot fall much below 1/{self.n_arrangements}")
        width = max(len("class"), *(len(str(c)) for c in self.classes))
        lines.append(f"{'class':<{width}}  score   p       p (family-wise)")
        lines += [
            f"{c!s:<{width}}  {self.class_scores[c]:.4f}  {self.class_pvalues[c]:<6.4g}  {self.class_pvalues_fwe[c]:.4g}"
            for c in self.classes
        ]
        return "\n".join(lines)


def permutation_test(
    decoder: Decoder,
    X: Any,
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    n_permutations: int = 1000,
    random_state: int = 0,
    exchange: Exchange = "within_run",
    blocks: ArrayLike | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PermutationTest:
    r"""Test a decoder's score against the scores that it gets when labels change places.

    .. math:: p = \frac{1 + \#\{i : t_i \ge t\}}{1 + m}

    with t the mean score over folds and classes and :math:`t_1 \dots t_m` the same after each permutation. Everything that looks at
    labels is done again for each: screening, tuning, fitting.

    Parameters
    ----------
    decoder : Decoder
        Configured; it is not changed and need not be fitted.
    X, y, groups
        As for :meth:`daskdecode.Decoder.fit`. Without runs, all samples count as one run.
    n_permutations : int, default 1000
        m. The smallest p value is 1 / (1 + m).
    random_state : int, default 0
        Permutation i is drawn by ``numpy.random.default_rng([random_state, i])``: the null does not depend on workers or on resuming.
    exchange : {"within_run", "blocks"}, default "within_run"
        What changes places. ``"within_run"``: single samples of a run, right where they are independent (one sample a trial or block).
        ``"blocks"``: stimulation blocks, maximal stretches of one label within a run, with others of the same length in the run: right
        for volumes, whose noise is autocorrelated. A gap in a dataset's ``time`` ends a block too.
    blocks : array-like, shape (n_samples,), optional
        With ``exchange="blocks"``: the block of each sample, a name or number. Needed where two blocks of one label may follow each other
        without a gap, so that labels do not tell where one ends: only blocks that do not depend on the labels make the test exact.
    path : path, optional
        ``.npz`` file for what is done so far, written after each batch. A later call with the same data, parameters and versions goes
        on from there, also with more permutations; with others it is refused.
    progress : callable, optional
        Called with (permutations done, permutations in all).

    Returns
    -------
    PermutationTest
        Eager; runs on the active Dask scheduler. Without screening the voxels are read once and all permutations share one Gram matrix
        (ridge: in closed form); with screening each permutation sweeps over the voxels, which stay in memory where the budget allows.

    Raises
    ------
    DecodingError
        What :meth:`daskdecode.Decoder.fit` raises; nothing can be exchanged; a score that is not defined; ``path`` holds another test.

    References
    ----------
    Ojala & Garriga 2010, JMLR 11:1833-1863; Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39; Winkler et al. 2015, NeuroImage
    123:253-268 (blocks); Nichols & Holmes 2002, Human Brain Mapping 15:1-25 (maximum statistic).

    Examples
    --------
    >>> import numpy as np
    >>> import daskdecode as dd
    >>> rng = np.random.default_rng(0)
    >>> y = np.tile(["cat", "face"], 20)
    >>> X = rng.standard_normal((40, 300)) + 0.3 * (y == "face")[:, None]
    >>> decoder = dd.Decoder(param_grid={"C": 1}, screening_percentile=None)
    >>> test = dd.permutation_test(decoder, X, y, groups=np.repeat(np.arange(4), 10), n_permutations=99)
    >>> test.pvalue
    0.01
    """
    require_classifier(decoder, "permutation_test")
    check_choice("exchange", exchange, ["within_run", "blocks"])
    _require_fixed_folds(decoder.cv)
    n_permutations, random_state = _whole("n_permutations", n_permutations, 1), _whole("random_state", random_state, 0)
    target = None if path is None else Record.check(path)
    decoder = clone(decoder)
    samples, *_, design, plan, voxels = decoder._prepare(X, y, groups)
    labels = np.asarray(samples.y)
    times = times_of(X)
    step_s = repetition_of(X, times, samples.groups)
    units = exchangeable(exchange, labels, samples.groups, times, _checked(blocks, exchange, labels.size), step_s)
    if plan.in_memory and (design.screening is not None or path is not None):
        samples = replace(samples, x=voxels.like(samples.x).x.persist())
        voxels = voxels.like(decoder._scale(samples)).keep()
    record = Record(target, None if target is None else fingerprint(decoder, samples, design, units, random_state))
    labellings = _labellings(decoder, samples, design, plan, voxels)
    if record.observed is None:
        record.observed = _class_means(labellings.scores([np.arange(units.n_samples)]))[0]
    if not np.isfinite(record.observed).all():
        raise DecodingError("The score is not defined in any fold (test folds have a single class): there is nothing to test.")
    while (done := len(record.null)) < n_permutations:
        numbers = range(done, min(done + labellings.batch, n_permutations))
        record.add(_class_means(labellings.scores([units.draw(random_state, i) for i in numbers])))
        if progress is not None:
            progress(len(record.null), n_permutations)
    scoring = (
        decoder.scoring if isinstance(decoder.scoring, str) else getattr(decoder.scoring, "__name__", str(decoder.scoring or "roc_auc"))
    )
    return summarise(
        record.observed,
        record.null[:n_permutations],
        [plain(c) for c in np.unique(labels)],
        scoring=scoring,
        estimator=str(decoder.estimator),
        exchange=exchange,
        random_state=random_state,
        n_arrangements=units.n_arrangements(labels),
    )


def summarise(observed: Floats, null: Floats, classes: Sequence[Any], **settings: Any) -> PermutationTest:
    """Turn scores by problem, (n_problems,) and (m, n_problems), into p values."""
    problem = {c: 0 if len(classes) == 2 else i for i, c in enumerate(classes)}
    score, mean = float(observed.mean()), null.mean(axis=1)
    largest = null.max(axis=1)
    return PermutationTest(
        score=score,
        null=mean,
        pvalue=_pvalue(score, mean),
        class_scores={c: float(observed[i]) for c, i in problem.items()},
        class_nulls={c: null[:, i] for c, i in problem.items()},
        class_pvalues={c: _pvalue(observed[i], null[:, i]) for c, i in problem.items()},
        class_pvalues_fwe={c: _pvalue(observed[i], largest) for c, i in problem.items()},
        classes=list(classes),
        **settings,
    )


def _pvalue(score: float, null: Floats) -> float:
    # Written so that a null score that is not defined counts as at least as high.
    return float((1 + np.sum(~(null < score - _ROUNDING))) / (1 + null.size))


def _class_means(scores: Floats) -> Floats:
    """Mean over the folds where the score is defined: (m, n_folds, n_problems) to (m, n_problems)."""
    defined = np.isfinite(scores)
    total = np.where(defined, scores, 0.0).sum(axis=1)
    count = defined.sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _require_fixed_folds(cv: Any) -> None:
    if getattr(cv, "random_state", 0) is None and getattr(cv, "shuffle", True):
        raise DecodingError(f"{cv} draws other folds at each call, so that no null could be had twice: give it a random_state.")


def _checked(blocks: Any, exchange: Exchange, n_samples: int) -> NDArray[Any] | None:
    if blocks is None:
        return None
    found = np.asarray(blocks)
    if exchange != "blocks":
        raise DecodingError("blocks= names the blocks that are exchanged: pass exchange='blocks' with it.")
    if found.shape != (n_samples,):
        raise DecodingError(f"blocks has shape {found.shape} but X has {n_samples} samples: blocks needs one value a sample.")
    return found


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise DecodingError(f"{name}={value!r} must be a whole number of at least {least}.")
    return number


# --------------------------------------------------------------------------------------------------------------- labellings


class _Labellings(Protocol):
    """Scores of many orders of the labels; ``batch`` of them together."""

    batch: int

    def scores(self, orders: Sequence[Ints]) -> Floats:
        """(n_orders, n_folds, n_problems)."""


def _labellings(decoder: Decoder, samples: Samples, design: Design, plan: Plan, blocks: VoxelBlocks) -> _Labellings:
    relabel = _Relabel(decoder, samples, design)
    if design.screening is not None:
        relabel.design = replace(design, scorer=_Scorer(judge_of(decoder.scoring, design), design.scorer))
        return _Screened(relabel, blocks, plan)
    shared = Shared.of(blocks, design, plan)
    alphas = ridge_alphas(design, shared.n_voxels)
    if alphas is not None and relabel.same_folds:
        return RidgeLabellings(shared.gram(), design, alphas, judge_of(decoder.scoring, design))
    return _SharedGram(relabel, shared, judge_of(decoder.scoring, design))


def ridge_alphas(design: Design, n_voxels: int) -> Floats | None:
    """Penalties of a ridge classifier whose scores have a closed form: nothing to choose but alpha, by plain leave-one-out; else None."""
    if len(design.candidates) != 1:
        return None
    model = design.build(design.outer[0][0].size, n_voxels, **design.candidates[0])
    plain_ridge = isinstance(model, RidgeClassifierCV) and model.fit_intercept and model.cv is model.scoring is model.class_weight is None
    return np.atleast_1d(np.asarray(model.alphas, dtype=np.float64)) if plain_ridge else None


class _Relabel:
    """The design with its labels in another order, and new folds where the rule of cv looks at labels."""

    def __init__(self, decoder: Decoder, samples: Samples, design: Design) -> None:
        self.decoder, self.samples, self.design = decoder, samples, design
        by_runs = decoder.cv == "run" if isinstance(decoder.cv, str) else isinstance(decoder.cv, LeaveOneGroupOut)
        listed = not isinstance(decoder.cv, str | int | np.integer) and not hasattr(decoder.cv, "split")
        given = listed and (design.inner is None or samples.groups is not None)
        # Folds of a regression never look at its values.
        self.same_folds = by_runs or given or design.classes is None

    def __call__(self, order: Ints) -> Design:
        design, groups = self.design, self.samples.keys
        classes = None if design.classes is None else design.classes[order]
        design = replace(design, classes=classes, targets=design.targets[:, order])
        if self.same_folds:
            return design
        y = np.asarray(self.samples.y)[order]
        try:
            outer = outer_splits(self.decoder.cv, y, groups)
            inner = None if design.inner is None else [inner_splits(self.decoder.cv, train, y, groups) for train, _ in outer]
        except DecodingError as error:
            raise DecodingError(
                f"With labels in another order, the folds of cv={self.decoder.cv} do not hold all classes: {error}"
            ) from error
        return replace(design, outer=outer, inner=inner)


class _Screened:
    """Each labelling screens its own voxels: sweeps for each."""

    batch = 10

    def __init__(self, relabel: _Relabel, blocks: VoxelBlocks, plan: Plan) -> None:
        self.relabel, self.blocks, self.plan = relabel, blocks, plan

    def scores(self, orders: Sequence[Ints]) -> Floats:
        return np.stack([screened_scores(self.blocks, self.relabel(order), self.plan) for order in orders])


class _SharedGram:
    """All labellings see the same voxels: one Gram matrix, each training set factorised once a batch."""

    batch = 100

    def __init__(self, relabel: _Relabel, shared: Shared, judge: Judge) -> None:
        self.relabel, self.shared, self.judge = relabel, shared, judge

    def scores(self, orders: Sequence[Ints]) -> Floats:
        return shared_scores(self.shared, [self.relabel(order) for order in orders], self.judge)


class RidgeLabellings:
    """Ridge classifiers in closed form: all labellings of a fold are matrix products.

    Parameters
    ----------
    gram : ndarray of float64, shape (n_samples, n_samples)
    design : Design
        Its folds and targets are used.
    alphas : ndarray of float64, shape (n_alphas,)
    judge : callable
        See :func:`daskdecode.engine.relabel.ridge_scores`.
    """

    def __init__(self, gram: Floats, design: Design, alphas: Floats, judge: Judge) -> None:
        self.gram, self.design, self.alphas, self.judge = gram, design, alphas, judge
        # Four arrays (n_samples, n_vectors) a task, in about a quarter of a gigabyte.
        self.batch = max(1, 2**28 // (32 * design.targets.size))

    def scores(self, orders: Sequence[Ints]) -> Floats:
        """Score the targets in each order, (n_orders, n_folds, n_problems)."""
        targets = self.design.targets[:, np.stack(orders)].transpose(1, 0, 2)
        return ridge_scores(self.gram, self.design.outer, targets, self.alphas, self.judge)


def judge_of(scoring: Any, design: Design) -> Judge:
    """Return what scores many decisions at once: ranks for ROC AUC, else the scorer on one column after another."""
    if design.classes is not None and scoring in (None, "roc_auc"):
        return judge_auc
    if scoring == "accuracy":
        return judge_accuracy
    return _OneByOne(design.scorer)


class _Scorer:
    """A judge in the place of a scorer, where there are decision values to be judged: several times as fast."""

    def __init__(self, judge: Judge, otherwise: Callable[..., float]) -> None:
        self.judge, self.otherwise = judge, otherwise

    def __call__(self, estimator: Any, X: Floats, y: Ints) -> float:
        if isinstance(self.judge, _OneByOne) or not hasattr(estimator, "decision_function"):
            return self.otherwise(estimator, X, y)
        return float(self.judge(estimator.decision_function(X)[:, None], np.asarray(y, dtype=np.float64)[:, None])[0])


class _OneByOne:
    def __init__(self, scorer: Callable[..., float]) -> None:
        self.scorer = scorer

    def __call__(self, decision: Floats, truth: Floats) -> Floats:
        columns = zip(decision.T, truth.T.astype(np.intp), strict=True)
        return np.array([score_decisions(self.scorer, d, t) for d, t in columns])
