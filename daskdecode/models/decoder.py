"""The decoder: scikit-learn's conventions, nilearn's names, the engine's arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import dask.array as da
import numpy as np
import xarray as xr
from nibabel.nifti1 import Nifti1Image
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.utils.validation import check_is_fitted

from daskdecode.data.mask import to_nifti
from daskdecode.data.preprocess import standardize_samples
from daskdecode.engine.crossval import CrossValidated, Design, cross_validate, training_sets
from daskdecode.engine.fits import score_decisions
from daskdecode.engine.moments import Cells
from daskdecode.engine.plan import Plan, Workload, block_nbytes, make_plan
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.errors import DecodingError
from daskdecode.models import outcome
from daskdecode.models.estimators import (
    build_and_candidates,
    check_choice,
    check_on_small_problem,
    check_screening,
    effective_percentile,
    resolve_scorer,
    resolve_screening,
)
from daskdecode.models.outcome import by_name, label_of, plain
from daskdecode.models.samples import Quality, Samples, as_samples, count_bad
from daskdecode.models.splitters import inner_splits, outer_splits


class Decoder(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Tell conditions apart from patterns of voxels: one linear model a class, cross-validated.

    For two classes one model :math:`f(x) = w'x + b` with :math:`f > 0` for ``classes_[1]``; for more, one against the rest for each.
    ``coef_`` is the mean over folds of each fold's best model. Folds, classes and hyperparameters are worked out on
    :math:`K = XX'` (n x n): the data are read once, or in a few passes where they exceed the memory budget.

    Parameters
    ----------
    estimator : {"svc", "svc_l2"}, default "svc"
        ``svc``: :class:`sklearn.svm.LinearSVC` with squared hinge loss and L2 penalty, 10,000 iterations at most, ``random_state=0``.
    mask : str, path, image or array, optional
        Region to decode from: the name of a store's mask, or an image. Needed where X is NIfTI.
    cv : "run", int, splitter or iterable, default "run"
        Leave one run out; a number of stratified folds; any scikit-learn splitter; or (train, test) pairs.
    param_grid : dict or list of dict, optional
        Hyperparameters to try. Default for svc: ``C`` = 1, 10, 100. ``{}``: scikit-learn's defaults.
    tune : {"nested", "held_out"}, default "nested"
        Which samples choose hyperparameters. ``"nested"``: folds inside the training samples, so that ``cv_scores_`` are unbiased.
        ``"held_out"``: the fold that is then reported, as in nilearn; the result says that it is optimistic (``optimistic_``).
    screening_percentile : float or None, default 20
        Share of voxels that each fold keeps by its training samples' F-test, in per cent of the volume of a standard brain (MNI152): in a
        smaller mask a larger share is kept, up to all. For plain arrays, which have no volume, per cent of the columns. None, 100, or
        100 voxels and fewer: no screening.
    screening_n_features : int, optional
        Number of voxels to keep instead; ``screening_percentile`` must then be None.
    scoring : str or callable, optional
        A scikit-learn scorer, applied to each binary problem (class against rest). Default ``"roc_auc"``. Multiclass accuracy is in
        ``cv_metrics_`` whatever is asked here.
    standardize : {"zscore_run", "zscore_sample", "psc", None}, default "zscore_run"
        ``"zscore_run"``: within each run, so that nothing crosses between runs. ``"zscore_sample"``: over all samples before the split,
        as in nilearn. See :func:`daskdecode.standardize`.
    estimator_args : dict, optional
        Further arguments of the estimator, such as ``class_weight="balanced"``.
    memory_budget : str or int, optional
        Bytes, or text such as ``"4GB"``. Default: half of the free memory.
    progress : callable, optional
        Called with (problems done, problems in all) as batches end.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Sorted labels.
    coef_, std_coef_ : ndarray of float64, shape (1 or n_classes, n_voxels)
        Mean and standard deviation over folds, in the order of X's voxels, for the scaled data. Screened-out voxels count as 0.
    intercept_ : ndarray of float64, shape (1 or n_classes,)
    pattern_ : ndarray of float64, shape (1 or n_classes, n_voxels)
        Haufe patterns, :math:`\operatorname{cov}(X, s) / \operatorname{var}(s)` with s the mean decision value over folds: where the
        signal is, while ``coef_`` also says where noise is cancelled.
    coef_img_, std_coef_img_, pattern_img_ : dict of str to Nifti1Image
        The same as images, positive where the named class is higher. Only where X has a grid.
    cv_ : list of (train, test)
        Folds, as sample indices.
    cv_scores_ : dict of str to list of float
        Score of each fold, by class. The two classes of a binary problem share theirs.
    cv_params_ : dict of str to dict of str to list
        Hyperparameters chosen in each fold, by class and name.
    cv_predictions_ : DataFrame
        Out-of-fold predictions: sample, fold, run, label, predicted, ``decision_<class>``.
    cv_metrics_ : DataFrame
        For each fold: test runs, numbers of samples, accuracy and balanced accuracy over all classes, and ``chance``, the accuracy of
        always giving the training samples' most frequent class.
    confusion_ : DataFrame
        Counts of true (rows) and predicted (columns) labels over all folds.
    screening_percentile_ : float
        Percentile in effect.
    n_elements_, n_features_in_ : int
        Number of voxels.
    optimistic_ : bool
        Whether hyperparameters were chosen on the reported folds.
    scoring_ : str
    plan_ : Plan
    provenance_ : dict
        What was run on what; JSON-able.

    Notes
    -----
    The computations equal nilearn 0.14.1's with ``tune="held_out", standardize="zscore_sample"``, except that ``coef_img_`` has the sign of
    the class it is named after and that an int ``cv`` is never replaced by leave-one-group-out.

    Peak memory: see :meth:`explain`.

    References
    ----------
    Hastie & Tibshirani 2004, Biostatistics 5:329-340 (the rotation); Haufe et al. 2014, NeuroImage 87:96-110 (patterns); Varoquaux et al.
    2017, NeuroImage 145:166-179 (nested cross-validation).

    Examples
    --------
    >>> import numpy as np
    >>> from daskdecode import Decoder
    >>> rng = np.random.default_rng(0)
    >>> y = np.tile(["cat", "face"], 20)
    >>> X = rng.standard_normal((40, 300)) + 0.5 * (y == "face")[:, None]
    >>> decoder = Decoder().fit(X, y, groups=np.repeat(np.arange(4), 10))
    >>> bool(np.mean(decoder.cv_scores_["face"]) > 0.9)
    True
    """

    def __init__(
        self,
        estimator: str = "svc",
        *,
        mask: Any = None,
        cv: Any = "run",
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        tune: Literal["nested", "held_out"] = "nested",
        screening_percentile: float | None = 20,
        screening_n_features: int | None = None,
        scoring: str | Callable[..., float] | None = None,
        standardize: Literal["zscore_run", "zscore_sample", "psc"] | None = "zscore_run",
        estimator_args: Mapping[str, Any] | None = None,
        memory_budget: str | int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.estimator = estimator
        self.mask = mask
        self.cv = cv
        self.param_grid = param_grid
        self.tune = tune
        self.screening_percentile = screening_percentile
        self.screening_n_features = screening_n_features
        self.scoring = scoring
        self.standardize = standardize
        self.estimator_args = estimator_args
        self.memory_budget = memory_budget
        self.progress = progress

    # ------------------------------------------------------------------------------------------------------------- fitting

    def fit(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Cross-validate and average the folds' best models.

        Parameters
        ----------
        X : Dataset, DataArray, dask array, array-like, NIfTI
            A subject dataset (labels and runs are its own); a matrix (n_samples, n_features); or a path, an image or a sequence of them
            together with ``mask=``.
        y : array-like, shape (n_samples,), optional
            Labels. Default: the dataset's ``label``.
        groups : array-like, shape (n_samples,), optional
            Runs. Default: the dataset's ``run``.

        Returns
        -------
        Decoder
            Itself. Eager: the data are read and decoded on the active Dask scheduler.

        Raises
        ------
        DecodingError
            Labels, runs, folds or parameters that make no decodable problem; before any data are read.
        SelectionError
            An unknown or empty mask.
        MemoryBudgetError
            With the arithmetic, where even the smallest steps exceed ``memory_budget``.
        """
        samples, design, plan, blocks = self._prepare(X, y, groups)
        if plan.in_memory:
            samples = replace(samples, x=blocks.like(samples.x).x.persist())
            blocks = blocks.like(self._scale(samples)).keep()
        found, counts = cross_validate(blocks, design, plan, self.progress, also=blocks.like(samples.x).map_sum(count_bad))
        quality = Quality(*map(int, counts))
        self._keep(samples, design, plan, found)
        self._record(samples, design, plan, quality, found)
        return self

    def explain(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Plan:
        """Say how :meth:`fit` would run on these data, without reading them: route and why, passes, memory, tasks.

        Raises what :meth:`fit` would raise about labels, folds, parameters and memory.
        """
        return self._prepare(X, y, groups)[2]

    def _prepare(self, X: Any, y: Any, groups: Any) -> tuple[Samples, Design, Plan, VoxelBlocks]:
        """Check everything that can be checked without reading data, and lay out the work."""
        build, candidates = build_and_candidates(self.estimator, self.param_grid, self.estimator_args)
        scorer = resolve_scorer(self.scoring)
        check_on_small_problem(build, candidates, scorer)
        check_choice("tune", self.tune, ["nested", "held_out"])
        check_screening(self.screening_percentile, self.screening_n_features)
        samples = as_samples(X, y, groups, self.mask)
        if samples.y is None:
            raise DecodingError("There are no labels: pass y=, one label a sample.")
        if samples.y.dtype.kind == "f" and np.any(samples.y % 1):
            raise DecodingError(f"y holds numbers that are not whole ({samples.y[samples.y % 1 != 0][0]}): a decoder needs classes.")
        classes, codes = np.unique(samples.y, return_inverse=True)
        if classes.size < 2:
            raise DecodingError(f"All {samples.y.size} samples have the label {classes[0]!s}: decoding needs at least two classes.")
        splits = outer_splits(self.cv, samples.y, samples.keys)
        nested = self.tune == "nested" and len(candidates) > 1
        design = Design(
            classes=codes.astype(np.intp),
            targets=_targets(codes, classes.size),
            outer=splits,
            inner=[inner_splits(self.cv, train, samples.y, samples.keys) for train, _ in splits] if nested else None,
            candidates=candidates,
            build=build,
            scorer=scorer,
            screening=resolve_screening(self.screening_percentile, self.screening_n_features, samples.grid, samples.x.shape[1]),
            voxel_order=samples.voxel_order,
        )
        blocks = VoxelBlocks(self._scale(samples), block_nbytes(self.memory_budget))
        return samples, design, make_plan(_workload(blocks, design), self.memory_budget), blocks

    def _scale(self, samples: Samples) -> da.Array:
        if self.standardize == "zscore_run" and samples.groups is None:
            raise DecodingError("standardize='zscore_run' needs the run of each sample: pass groups=, or standardize='zscore_sample'.")
        return standardize_samples(samples.finite(), samples.groups, self.standardize)

    def _keep(self, samples: Samples, design: Design, plan: Plan, found: CrossValidated) -> None:
        """Set the fitted attributes that are numbers, tables and images."""
        y = np.asarray(samples.y)
        self.classes_ = np.unique(y)
        self.coef_, self.std_coef_, self.pattern_ = found.coef, found.std_coef, found.pattern
        self.intercept_ = found.intercepts.mean(axis=0)
        self.n_elements_ = self.n_features_in_ = int(samples.x.shape[1])
        self.screening_percentile_ = float(effective_percentile(self.screening_percentile, samples.grid, self.n_elements_))
        self.cv_, self.plan_ = list(design.outer), plan
        self.optimistic_ = self.tune == "held_out" and len(design.candidates) > 1
        self.scoring_ = self.scoring if isinstance(self.scoring, str) else getattr(self.scoring, "__name__", str(self.scoring or "roc_auc"))
        self._voxels, self._grid = samples.voxels, samples.grid
        # Two classes share one problem, whose decision is positive for the second.
        self._problem_of = {plain(label): 0 if self.classes_.size == 2 else c for c, label in enumerate(self.classes_)}
        self.cv_scores_ = {name: found.scores[:, c].tolist() for name, c in self._problem_of.items()}
        self.cv_params_ = {name: by_name([design.candidates[i] for i in found.chosen[:, c]]) for name, c in self._problem_of.items()}
        self.cv_predictions_ = outcome.predictions(samples, design.outer, self.classes_, found.decision)
        self.cv_metrics_ = outcome.metrics(self.cv_predictions_, design.outer, y)
        self.confusion_ = outcome.confusion(self.cv_predictions_, self.classes_)
        for name in ("coef_img_", "std_coef_img_", "pattern_img_"):
            self.__dict__.pop(name, None)  # of an earlier fit, perhaps on data without a grid now
        if samples.grid is not None:
            self.coef_img_ = self._images(self.coef_, samples.grid, signed=True)
            self.std_coef_img_ = self._images(self.std_coef_, samples.grid, signed=False)
            self.pattern_img_ = self._images(self.pattern_, samples.grid, signed=True)

    def _images(self, values: NDArray[np.float64], grid: xr.Dataset, *, signed: bool) -> dict[Any, Nifti1Image]:
        """One image a class, positive where that class is higher."""
        flipped = plain(self.classes_[0]) if signed and self.classes_.size == 2 else None
        return {name: to_nifti(-values[c] if name == flipped else values[c], grid) for name, c in self._problem_of.items()}

    def _record(self, samples: Samples, design: Design, plan: Plan, quality: Quality, found: CrossValidated) -> None:
        """Set ``provenance_``, and warn of what a reader of the scores should know."""
        notes = outcome.notes(samples, design.outer, plan, quality, found)
        for note in notes:
            warnings.warn(note, stacklevel=3)
        notes = [*notes, *outcome.scaling_note(self.standardize)]
        if self.optimistic_:
            notes = [*notes, "Hyperparameters were chosen on the held-out folds whose scores are reported: the scores are optimistic."]
        self.provenance_: dict[str, Any] = {
            **outcome.describe_samples(samples, quality),
            "mask": self.mask if isinstance(self.mask, str) else None,
            "estimator": self.estimator,
            "estimator_args": {k: plain(v) for k, v in (self.estimator_args or {}).items()},
            "param_grid": [{k: plain(v) for k, v in params.items()} for params in design.candidates],
            "chosen": {c: {k: [plain(v) for v in vs] for k, vs in p.items()} for c, p in self.cv_params_.items()},
            "tune": self.tune,
            "cv": str(self.cv) if isinstance(self.cv, str | int | np.integer) or hasattr(self.cv, "split") else "list of folds",
            "n_folds": len(design.outer),
            "scoring": self.scoring_,
            "standardize": self.standardize,
            "screening_percentile": self.screening_percentile_,
            "screening_n_features": plain(self.screening_n_features),
            "n_fits": plan.workload.n_fits,
            "n_unconverged": found.n_unconverged,
            "warnings": notes,
            "versions": outcome.versions(),
        }

    # ---------------------------------------------------------------------------------------------------------- prediction

    def decision_function(self, X: Any, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """Decision values of new samples.

        The samples are scaled as ``standardize`` names it: ``"zscore_run"`` within each of their own runs, ``"zscore_sample"`` over all
        samples given here (as nilearn does; a single sample is left as it is).

        Parameters
        ----------
        X : like that of :meth:`fit`
        groups : array-like, shape (n_samples,), optional
            Runs. Default: the dataset's ``run``; for arrays and images, all samples are taken for one run.

        Returns
        -------
        ndarray of float64, shape (n_samples,) for two classes, else (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self._decide(as_samples(X, None, groups, self.mask))

    def _decide(self, samples: Samples) -> NDArray[np.float64]:
        if samples.groups is None:
            samples = replace(samples, groups=np.zeros(samples.x.shape[0], dtype=str))
        weights = self._weights_for(samples)
        # As nilearn: there is nothing to scale a single sample by. Within runs that makes no sense, and scaling refuses it.
        alone = samples.x.shape[0] == 1 and self.standardize != "zscore_run"
        x = samples.finite() if alone else self._scale(samples)
        decision = np.asarray(VoxelBlocks(x, block_nbytes(self.memory_budget)).times(weights).compute()) + self.intercept_
        return np.asarray(decision[:, 0] if self.classes_.size == 2 else decision)

    def _weights_for(self, samples: Samples) -> NDArray[np.float64]:
        """Coefficients in the order of the new samples' voxels."""
        if samples.x.shape[1] != self.n_elements_:
            raise DecodingError(
                f"X has {samples.x.shape[1]} voxels but the decoder was fitted on {self.n_elements_}: select the same mask."
            )
        if samples.grid is not None and self._grid is not None and not _same_grid(samples.grid, self._grid):
            raise DecodingError("X lies on another voxel grid (shape or affine) than the data that the decoder was fitted on: resample it.")
        if samples.voxels is None or self._voxels is None:
            return self.coef_
        ours, theirs = np.argsort(self._voxels), np.argsort(samples.voxels)
        if not np.array_equal(self._voxels[ours], samples.voxels[theirs]):
            raise DecodingError("X has other voxels than the decoder was fitted on: select the same mask.")
        weights = np.empty_like(self.coef_)
        weights[:, theirs] = self.coef_[:, ours]
        return weights

    def predict(self, X: Any, groups: ArrayLike | None = None) -> NDArray[Any]:
        """Predict labels, ``classes_[1]`` where a binary decision value is positive, else the class with the largest one.

        Parameters and scaling as for :meth:`decision_function`.

        Returns
        -------
        ndarray, shape (n_samples,)
        """
        return label_of(self.decision_function(X, groups), self.classes_)

    def score(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> float:
        """Score predictions on new samples with ``scoring``.

        For more than two classes, ``"accuracy"`` and ``"balanced_accuracy"`` compare labels; other scorers are averaged over the
        one-against-rest problems.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        samples = as_samples(X, y, groups, self.mask)
        if samples.y is None:
            raise DecodingError("There are no labels to score against: pass y=, one label a sample.")
        unknown = sorted(set(samples.y.tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise DecodingError(
                f"The decoder knows the classes {self.classes_.tolist()}, but y has {unknown[:5]} too: leave those samples out "
                "(daskdecode.select_labels)."
            )
        decision = self._decide(samples)
        if self.classes_.size > 2 and self.scoring in ("accuracy", "balanced_accuracy"):
            metric = accuracy_score if self.scoring == "accuracy" else balanced_accuracy_score
            return float(metric(samples.y, label_of(decision, self.classes_)))
        scorer = resolve_scorer(self.scoring)
        columns = decision[:, None] if decision.ndim == 1 else decision
        positive = self.classes_[1:] if self.classes_.size == 2 else self.classes_
        each = [score_decisions(scorer, d, np.where(samples.y == c, 1, -1)) for d, c in zip(columns.T, positive, strict=True)]
        return float(np.mean(each))


def _same_grid(a: xr.Dataset, b: xr.Dataset) -> bool:
    return list(a.attrs["shape"]) == list(b.attrs["shape"]) and np.allclose(a.attrs["affine"], b.attrs["affine"], atol=1e-2)


def _targets(codes: NDArray[Any], n_classes: int) -> NDArray[np.intp]:
    """Binary problems: the second class against the first, or each against the rest; -1 or +1, shape (n_problems, n_samples)."""
    positive = [1] if n_classes == 2 else range(n_classes)
    return np.stack([np.where(codes == c, 1, -1) for c in positive]).astype(np.intp)


def _workload(blocks: VoxelBlocks, design: Design) -> Workload:
    sets = training_sets(design)
    n_samples, n_voxels = blocks.shape
    screening = design.screening
    return Workload(
        n_samples=n_samples,
        n_voxels=n_voxels,
        itemsize=blocks.x.dtype.itemsize,
        n_kept=n_voxels if screening is None else screening.n_kept(n_voxels),
        n_training_sets=len(sets),
        n_folds=len(design.outer),
        n_classes=len(design.targets),
        n_candidates=len(design.candidates),
        n_cells=0 if screening is None else int(Cells.of([s.train for s in sets], design.classes).counts.size),
        n_blocks=blocks.n_blocks,
        block_voxels=blocks.widest,
    )
