"""The decoder of conditions: scikit-learn's conventions, nilearn's names, the engine's arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from daskdecode.engine.crossval import CrossValidated
from daskdecode.engine.design import Design
from daskdecode.engine.scoring import score_decisions
from daskdecode.engine.solvers import gives_probabilities
from daskdecode.errors import DecodingError
from daskdecode.models import outcome
from daskdecode.models.base import BaseDecoder, Question
from daskdecode.models.estimators import resolve_estimator, resolve_scorer
from daskdecode.models.outcome import label_of, plain
from daskdecode.models.samples import Samples


class Decoder(ClassifierMixin, BaseDecoder):  # type: ignore[misc]
    r"""Tell conditions apart from patterns of voxels: one linear model a class, cross-validated.

    For two classes one model :math:`f(x) = w'x + b` with :math:`f > 0` for ``classes_[1]``; for more, one against the rest for each.
    ``coef_`` is the mean over folds of each fold's best model. Folds, classes and hyperparameters are worked out on
    :math:`K = XX'` (n x n): the data are read once, or in a few passes where they exceed the memory budget.

    Parameters
    ----------
    estimator : str or scikit-learn classifier, default "svc"
        ``"svc"`` (``"svc_l2"``): :class:`sklearn.svm.LinearSVC` with squared hinge loss and L2 penalty, 10,000 iterations at most,
        ``random_state=0``; ``"svc_l1"``. ``"logistic"`` (``"logistic_l2"``), ``"logistic_l1"``:
        :class:`sklearn.linear_model.LogisticRegressionCV`. ``"ridge_classifier"``: :class:`sklearn.linear_model.RidgeClassifierCV`.
        ``"lda"``: :class:`sklearn.discriminant_analysis.LinearDiscriminantAnalysis` with Ledoit-Wolf shrinkage, or with a number
        for ``shrinkage`` in ``estimator_args``; never a covariance of all voxels. ``"gnb"``:
        :class:`sklearn.naive_bayes.GaussianNB`. ``"sgd"``: :class:`sklearn.linear_model.SGDClassifier`, ``random_state=0``.
        ``"dummy_classifier"``. L1 penalties, ``lda``, ``gnb``, ``sgd`` and classifiers passed as objects are fitted on the voxels
        themselves, at the price that has; :meth:`explain` says so.
    mask : str, path, image or array, optional
        Region to decode from: the name of a store's mask, or an image. Needed where X is NIfTI.
    cv : "run", int, splitter or iterable, default "run"
        Leave one run out; a number of stratified folds; any scikit-learn splitter; or (train, test) pairs.
    param_grid : dict or list of dict, optional
        Hyperparameters to try. Default for svc: ``C`` = 1, 10, 100; for the others nilearn's. ``{}``: scikit-learn's defaults. Where a
        value is a distribution, 10 settings are drawn. Lists for ``alphas`` and ``Cs`` go to the estimator, which chooses inside the
        training samples.
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
    standardize : {"zscore_run", "zscore_fold", "zscore_sample", "psc", None}, default "zscore_run"
        ``"zscore_run"``: within each run, so that nothing crosses between runs. ``"zscore_fold"``: by mean and standard deviation of the
        training samples, those of inner folds included, as :class:`sklearn.preprocessing.StandardScaler` at the head of a pipeline (a
        voxel's F does not depend on its scale, so screening is the same before and after). ``"zscore_sample"``: over all samples before
        the split, as in nilearn. See :func:`daskdecode.standardize`.
    confounds : str or sequence of str, optional
        Names of variables (along ``time``) of the datasets that are decoded: each training set regresses them, and a constant, out of every
        voxel, and the same slopes are taken from its test samples; inner folds learn their own. After scaling within runs, before
        ``"zscore_fold"``. For values instead of names: :meth:`fit`. Not for what goes with the labels by design: it takes the signal along.
    estimator_args : dict, optional
        Further arguments of the estimator, such as ``class_weight="balanced"``.
    memory_budget : str or int, optional
        Bytes, or text such as ``"4GB"``. Default: half of the free memory.
    engine : {"auto", "dual", "direct"}, default "auto"
        What solvers work on. ``"dual"`` (or ``"gram"``): inner products of samples; refused for estimators that need voxels.
        ``"direct"``: voxels. ``"auto"``: inner products where voxels outnumber samples and the estimator allows it.
    progress : callable, optional
        Called with (problems done, problems in all) as batches end.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Sorted labels.
    coef_, std_coef_ : ndarray of float64, shape (1 or n_classes, n_voxels)
        Mean and standard deviation over folds, in the order of X's voxels. Screened-out voxels count as 0. For the data as ``standardize``
        scales them before the split; with ``"zscore_fold"`` that is not at all: each fold's weights are divided by its scales, w / s, and
        its intercept becomes b - w'm / s, so that new samples need no scaling and the mean over folds is that of the folds' models.
    confound_coef_ : ndarray of float64, shape (1 or n_classes, n_confounds), or None
        Mean over folds of the weights on confounds, so that ``X @ coef_.T + C @ confound_coef_.T + intercept_`` decides: what a fold's
        model would have said of voxels from which its slopes have taken C. None without ``"zscore_fold"`` and confounds.
    confound_names_ : list of str
    intercept_ : ndarray of float64, shape (1 or n_classes,)
    pattern_ : ndarray of float64, shape (1 or n_classes, n_voxels)
        Haufe patterns, :math:`\operatorname{cov}(X, s) / \operatorname{var}(s)` with s the mean decision value over folds: where the
        signal is, while ``coef_`` also says where noise is cancelled.
    coef_img_, std_coef_img_, pattern_img_ : dict of str to Nifti1Image
        The same as images, positive where the named class is higher. Only where X has a grid.
    estimators_ : list of lists of estimators
        The folds' models, only where they have no weights (gnb, trees, pipelines): then there are no ``coef_``, ``intercept_`` and
        patterns, and new samples get the mean over folds of the models' decision values (or log-odds).
    cv_ : list of (train, test)
        Folds, as sample indices.
    cv_scores_ : dict of str to list of float
        Score of each fold, by class. The two classes of a binary problem share theirs.
    optimistic_scores_ : dict of str to list of float
        Where there were hyperparameters to choose: the score of each fold had it chosen them itself, as nilearn reports it. Beside unbiased
        ``cv_scores_`` they show what that choice would have gained; with ``tune="held_out"`` they *are* ``cv_scores_``.
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

    _kind = "classifier"
    _default_scoring = "roc_auc"

    def _question(self, samples: Samples) -> Question:
        labels = np.asarray(samples.y)
        whole = np.isfinite(labels) & (np.trunc(labels) == labels) if labels.dtype.kind == "f" else np.ones(labels.shape, dtype=bool)
        if not whole.all():
            found = labels[~whole][0]
            raise DecodingError(f"y holds numbers that are not whole ({found}): a decoder needs classes. DecoderRegressor takes numbers.")
        classes, codes = np.unique(labels, return_inverse=True)
        if classes.size < 2:
            raise DecodingError(f"All {labels.size} samples have the label {classes[0]!s}: decoding needs at least two classes.")
        positive = [1] if classes.size == 2 else range(classes.size)
        targets = np.stack([np.where(codes == c, 1, -1) for c in positive]).astype(np.intp)
        rows = {plain(c): (0, 1 if n else -1) if classes.size == 2 else (n, 1) for n, c in enumerate(classes)}
        return Question(codes.astype(np.intp), targets, rows)

    def _tell(self, samples: Samples, design: Design, found: CrossValidated) -> None:
        y = np.asarray(samples.y)
        self.classes_ = np.unique(y)
        self.cv_predictions_ = outcome.predictions(samples, design.outer, self.classes_, found.decision)
        self.cv_metrics_ = outcome.metrics(self.cv_predictions_, design.outer, y)
        self.confusion_ = outcome.confusion(self.cv_predictions_, self.classes_)

    def decision_function(self, X: Any, groups: ArrayLike | None = None, confounds: Any = None) -> NDArray[np.float64]:
        """Decision values of new samples.

        The samples are scaled as ``standardize`` names it: ``"zscore_run"`` within each of their own runs, ``"zscore_sample"`` over all
        samples given here (as nilearn does; a single sample is left as it is).

        Parameters
        ----------
        X : like that of :meth:`fit`
        groups : array-like, shape (n_samples,), optional
            Runs. Default: the dataset's ``run``; for arrays and images, all samples are taken for one run.
        confounds : like that of :meth:`fit`
            Of the new samples; needed where the fit had confounds, but for names in the parameter ``confounds``. Matched by name where both
            have names.

        Returns
        -------
        ndarray of float64, shape (n_samples,) for two classes, else (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self._decision(self._new_samples(X, None, groups, confounds))

    def _decision(self, samples: Samples) -> NDArray[np.float64]:
        decision = self._decide(samples)
        return np.asarray(decision[:, 0] if self.classes_.size == 2 else decision)

    def predict(self, X: Any, groups: ArrayLike | None = None, confounds: Any = None) -> NDArray[Any]:
        """Predict labels, ``classes_[1]`` where a binary decision value is positive, else the class with the largest one.

        Parameters and scaling as for :meth:`decision_function`.

        Returns
        -------
        ndarray, shape (n_samples,)
        """
        return label_of(self.decision_function(X, groups, confounds), self.classes_)

    def _has_probabilities(self) -> bool:
        try:
            return gives_probabilities(resolve_estimator(self.estimator, self._kind).build(10, 20))
        except DecodingError:  # an unknown name: fit says so
            return False

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any, groups: ArrayLike | None = None, confounds: Any = None) -> NDArray[np.float64]:
        r"""Probabilities of the classes, :math:`1 / (1 + e^{-f})` of the mean decision value over folds.

        Only for estimators whose decision values are log-odds (logistic, lda, gnb, and others that have probabilities but no decision
        function). For more than two classes, those of one against the rest, divided by their sum, as in scikit-learn.

        Parameters and scaling as for :meth:`decision_function`.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        p = expit(self._decide(self._new_samples(X, None, groups, confounds)))
        return np.hstack([1 - p, p]) if self.classes_.size == 2 else p / p.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None, confounds: Any = None) -> float:
        """Score predictions on new samples with ``scoring``.

        For more than two classes, ``"accuracy"`` and ``"balanced_accuracy"`` compare labels; other scorers are averaged over the
        one-against-rest problems.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        samples = self._new_samples(X, y, groups, confounds)
        if samples.y is None:
            raise DecodingError("There are no labels to score against: pass y=, one label a sample.")
        unknown = sorted(set(samples.y.tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise DecodingError(
                f"The decoder knows the classes {self.classes_.tolist()}, but y has {unknown[:5]} too: leave those samples out "
                "(daskdecode.select_labels)."
            )
        decision = self._decision(samples)
        if self.classes_.size > 2 and self.scoring in ("accuracy", "balanced_accuracy"):
            metric = accuracy_score if self.scoring == "accuracy" else balanced_accuracy_score
            return float(metric(samples.y, label_of(decision, self.classes_)))
        scorer = resolve_scorer(self.scoring, self._default_scoring)
        columns = decision[:, None] if decision.ndim == 1 else decision
        positive = self.classes_[1:] if self.classes_.size == 2 else self.classes_
        each = [score_decisions(scorer, d, np.where(samples.y == c, 1, -1)) for d, c in zip(columns.T, positive, strict=True)]
        return float(np.mean(each))


def require_classifier(decoder: Any, name: str) -> None:
    """Refuse what is no :class:`Decoder`, before any work."""
    if not isinstance(decoder, Decoder):
        raise DecodingError(f"{name} takes a daskdecode.Decoder, which tells classes apart; found {type(decoder).__name__}.")
