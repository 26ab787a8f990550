"""The decoder of numbers: scikit-learn's conventions, nilearn's names, the engine's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from daskdecode.engine.crossval import CrossValidated
from daskdecode.engine.design import Design
from daskdecode.engine.plan import Engine
from daskdecode.errors import DecodingError
from daskdecode.models import outcome
from daskdecode.models.base import BaseDecoder, Question
from daskdecode.models.estimators import resolve_scorer
from daskdecode.models.samples import Samples

BETA = "beta"
"""What nilearn calls the one problem of a regression."""


class DecoderRegressor(RegressorMixin, BaseDecoder):  # type: ignore[misc]
    r"""Predict a number (a rating, a reaction time, an age) from patterns of voxels: a linear model, cross-validated.

    :math:`f(x) = w'x + b`. ``coef_`` is the mean over folds of each fold's best model. Folds and hyperparameters are worked out on
    :math:`K = XX'` (n x n) where the penalty is L2: the data are read once, or in a few passes where they exceed the memory budget.

    Parameters
    ----------
    estimator : str or scikit-learn regressor, default "ridge"
        ``"ridge"`` (the same as ``"ridge_regressor"``): :class:`sklearn.linear_model.RidgeCV` with 8 alphas from 0.001 to 10,000, chosen by
        leaving out one training sample at a time. ``"svr"``: :class:`sklearn.svm.SVR`, linear. ``"lasso"`` (``"lasso_regressor"``):
        :class:`sklearn.linear_model.LassoCV` with 30 alphas. ``"dummy_regressor"``: the training samples' mean.
    mask, cv, param_grid, tune, screening_percentile, screening_n_features, standardize, confounds, estimator_args, memory_budget, engine, \
    progress
        As for :class:`Decoder`, but an int for ``cv`` is :class:`sklearn.model_selection.KFold`, and voxels are screened by the F-test of
        their correlation with y (:func:`sklearn.feature_selection.f_regression`).
    scoring : str or callable, optional
        A scikit-learn scorer. Default ``"r2"``.

    Attributes
    ----------
    coef_, std_coef_, pattern_ : ndarray of float64, shape (1, n_voxels)
        Mean and standard deviation over folds; Haufe pattern, :math:`\operatorname{cov}(X, f) / \operatorname{var}(f)`.
    intercept_ : ndarray of float64, shape (1,)
    coef_img_, std_coef_img_, pattern_img_ : dict of str to Nifti1Image
        The same as images, under ``"beta"``. Only where X has a grid.
    cv_scores_, cv_params_ : dict
        Scores and chosen hyperparameters of each fold, under ``"beta"``.
    cv_predictions_ : DataFrame
        Out-of-fold predictions: sample, fold, run, target, predicted.
    cv_metrics_ : DataFrame
        For each fold: test runs, numbers of samples, ``r2``, ``mean_absolute_error``, ``correlation``, and ``chance``, the r2 of always
        giving the training samples' mean.
    estimators_ : list of lists of estimators
        The folds' models, only where they have no weights; ``predict`` then gives their mean, and there is no ``coef_`` and no pattern.
    confound_coef_, confound_names_, optimistic_scores_, cv_, \
    n_elements_, n_features_in_, screening_percentile_, optimistic_, scoring_, plan_, provenance_
        As for :class:`Decoder`.

    Notes
    -----
    The computations equal nilearn 0.14.1's with ``tune="held_out", standardize="zscore_sample"``.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdecode import DecoderRegressor
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal(60)
    >>> X = rng.standard_normal((60, 300))
    >>> X[:, :50] += y[:, None]
    >>> regressor = DecoderRegressor().fit(X, y, groups=np.repeat(np.arange(5), 12))
    >>> bool(np.mean(regressor.cv_scores_["beta"]) > 0.5)
    True
    """

    _kind = "regressor"
    _default_scoring = "r2"

    def __init__(
        self,
        estimator: Any = "ridge",
        *,
        mask: Any = None,
        cv: Any = "run",
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        tune: Literal["nested", "held_out"] = "nested",
        screening_percentile: float | None = 20,
        screening_n_features: int | None = None,
        scoring: str | Callable[..., float] | None = None,
        standardize: Literal["zscore_run", "zscore_fold", "zscore_sample", "psc"] | None = "zscore_run",
        confounds: str | Sequence[str] | ArrayLike | None = None,
        estimator_args: Mapping[str, Any] | None = None,
        memory_budget: str | int | None = None,
        engine: Engine = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            estimator,
            mask=mask,
            cv=cv,
            param_grid=param_grid,
            tune=tune,
            screening_percentile=screening_percentile,
            screening_n_features=screening_n_features,
            scoring=scoring,
            standardize=standardize,
            confounds=confounds,
            estimator_args=estimator_args,
            memory_budget=memory_budget,
            engine=engine,
            progress=progress,
        )

    def _question(self, samples: Samples) -> Question:
        values = _numbers(samples.y)
        if np.ptp(values) == 0:
            raise DecodingError(f"All {values.size} samples have the value {values[0]:g}: there is nothing to regress on.")
        return Question(None, values[None], {BETA: (0, 1)})

    def _tell(self, samples: Samples, design: Design, found: CrossValidated) -> None:
        self.cv_predictions_ = outcome.regression_predictions(samples, design.outer, design.targets[0], found.decision[:, 0])
        self.cv_metrics_ = outcome.regression_metrics(self.cv_predictions_, design.outer, design.targets[0])

    def predict(self, X: Any, groups: ArrayLike | None = None, confounds: Any = None) -> NDArray[np.float64]:
        """Predict the values of new samples.

        The samples are scaled as ``standardize`` names it: ``"zscore_run"`` within each of their own runs, ``"zscore_sample"`` over all
        samples given here (as nilearn does; a single sample is left as it is).

        Parameters
        ----------
        X : like that of :meth:`fit`
        groups : array-like, shape (n_samples,), optional
            Runs. Default: the dataset's ``run``; for arrays and images, all samples are taken for one run.
        confounds : like that of :meth:`fit`
            Of the new samples; needed where the fit had confounds.

        Returns
        -------
        ndarray of float64, shape (n_samples,)
        """
        check_is_fitted(self)
        return np.asarray(self._decide(self._new_samples(X, None, groups, confounds))[:, 0])

    def score(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None, confounds: Any = None) -> float:
        """Score predictions of new samples with ``scoring``.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        samples = self._new_samples(X, y, groups, confounds)
        scorer = resolve_scorer(self.scoring, self._default_scoring)
        return float(scorer(_Predicted(), self._decide(samples), _numbers(samples.y)))


class _Predicted(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted regressor whose single feature is its prediction: lets any scorer judge predictions that are already known."""

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(X[:, 0])

    def __sklearn_is_fitted__(self) -> bool:
        return True


def _numbers(y: NDArray[Any] | None) -> NDArray[np.float64]:
    """Values as float64; labels of a dataset are text, and may be numbers."""
    if y is None:
        raise DecodingError("There are no values to predict: pass y=, one number a sample.")
    try:
        values = y.astype(np.float64)
    except ValueError as error:
        raise DecodingError(f"A regressor predicts numbers, but y has {y.dtype} such as {y[0]!s}: pass y=, or use Decoder.") from error
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DecodingError(f"y has values that are not finite, the first at sample {bad}: leave those samples out.")
    return np.asarray(values)
