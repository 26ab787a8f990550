"""Estimators by the names that nilearn gave them: which scikit-learn object each is, what it searches, what it must see of the data.

A linear model with an isotropic L2 penalty sees its samples only through their inner products, so a factor of the Gram matrix will do
(see :mod:`daskdecode.engine.rotation`). L1 penalties, variances of single voxels and trees are tied to the axes: they need the voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV, RidgeClassifierCV, RidgeCV, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVR, LinearSVC, LinearSVR, l1_min_c

from daskdecode.engine.discriminant import Discriminant

Floats = NDArray[np.float64]
Kind = Literal["classifier", "regressor"]


@dataclass(frozen=True)
class TimesMinC:
    """A value of C that depends on the training data: so many times the smallest C at which an L1 penalty keeps any voxel."""

    factor: float

    def of(self, x: Floats, target: NDArray[Any]) -> float:
        """Return the value for training samples ``x`` (n_train, n_voxels), as the solver sees them."""
        return float(self.factor * l1_min_c(x, target, loss="squared_hinge"))

    def __str__(self) -> str:
        return f"{self.factor:g} x l1_min_c"


def _solver_nbytes(_: Any, n_train: int, n_voxels: int) -> int:
    # A copy in double precision, liblinear's own (an index beside each value) and its transpose.
    return 5 * 8 * n_train * n_voxels


def _lda_nbytes(estimator: Discriminant, n_train: int, n_voxels: int) -> int:
    # The samples centred and weighted, the same divided by the diagonal, squares on the way. Or the covariance of each class and of
    # both, and what the least-squares solver copies: voxels x voxels.
    small = estimator.is_shrunk and n_train < n_voxels
    return (6 if small else 4) * 8 * n_train * n_voxels + (0 if small or estimator.solver == "svd" else 5 * 8 * n_voxels**2)


def _never(_: Any) -> bool:
    return False


def _always(_: Any) -> bool:
    return True


def _unless_isotropic(estimator: Discriminant) -> bool:
    return not estimator.is_isotropic


@dataclass(frozen=True)
class Model:
    """An estimator as the engine needs to know it.

    Attributes
    ----------
    make : callable
        ``make(**params)``: an unfitted scikit-learn estimator.
    param_grid : mapping
        The grid that is searched where the user gives none.
    fixed : mapping
        What the name stands for, and what can therefore not be changed.
    defaults : mapping
        What the user may change.
    dual : bool
        Whether ``dual`` is to be set to what scikit-learn would choose for the voxels.
    needs_voxels : callable
        ``needs_voxels(estimator)``: whether the solver must see the voxels; else a factor of the Gram matrix will do.
    searches : str
        Parameter whose whole list goes to the estimator, which chooses from it inside its training samples; "" where there is none.
    aliases : mapping
        Other names that a grid may use.
    nbytes : callable
        ``nbytes(estimator, n_train, n_voxels)``: bytes that a fit on voxels takes beside its training samples.
    counts_voxels : bool
        Whether ``n_voxels`` is to be set to the number of voxels that the features stand for.
    """

    make: Callable[..., Any]
    param_grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    dual: bool = False
    needs_voxels: Callable[[Any], bool] = _never
    searches: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    nbytes: Callable[[Any, int, int], int] = _solver_nbytes
    counts_voxels: bool = False

    def build(self, n_train: int, n_voxels: int, **params: Any) -> Any:
        """Return an unfitted estimator, as it would be for the full problem."""
        # dual="auto" would look at the factor, which never has more columns than samples, and take the primal solver: another tolerance,
        # other numbers. The choice is made on the problem that the factor stands for.
        settings = {**self.defaults, **params, **self.fixed}
        if self.dual and settings.get("dual", "auto") == "auto":
            settings["dual"] = n_train < n_voxels or settings.get("loss") == "hinge"
        if self.counts_voxels:
            settings["n_voxels"] = n_voxels
        # A parameter may be an estimator itself (a step of a pipeline), or a generator: fits that overlap must not share it, nor depend on
        # which of them was first. Copied as scikit-learn's clone does.
        return self.make(**{name: clone(value, safe=False) for name, value in settings.items()})


@dataclass(frozen=True)
class _CopyOf:
    """Makes copies of an estimator that the user gave, with some parameters changed."""

    estimator: Any

    def __call__(self, **params: Any) -> Any:
        return clone(self.estimator).set_params(**params)


def model_of(estimator: Any) -> Model:
    """Take any scikit-learn estimator or pipeline: nothing is known of it, so it sees the voxels.

    Linear discriminants are known: the same numbers come without a covariance of all voxels.
    """
    if type(estimator) is LinearDiscriminantAnalysis:
        return replace(LDA, make=_CopyOf(Discriminant(**estimator.get_params())), defaults={})
    return Model(_CopyOf(estimator), needs_voxels=_always)


def takes_turns(estimator: Any) -> bool:
    """Say whether fits of a process must not overlap: liblinear shares a random generator, and a covariance of voxels is large."""
    parts = [estimator, *estimator.get_params(deep=True).values()]
    if any(isinstance(p, LinearDiscriminantAnalysis) and not (isinstance(p, Discriminant) and p.is_shrunk) for p in parts):
        return True
    return any(isinstance(p, LinearSVC | LinearSVR | LogisticRegression | LogisticRegressionCV) for p in parts)


def _logistic(penalty: str) -> Model:
    ratio = {"l1": 1, "l2": 0}[penalty]
    # scikit-learn 1.8 names the penalty by its share of L1; before, by its name.
    named = "use_legacy_attributes" in signature(LogisticRegressionCV).parameters
    fixed = {"l1_ratios": (ratio,), "use_legacy_attributes": False} if named else {"penalty": penalty}
    return Model(
        LogisticRegressionCV,
        {"Cs": [np.geomspace(2e-3, 2e4, 8) * 0.5]},
        fixed={"solver": "liblinear", **fixed},
        # L1: liblinear visits voxels in random order. nilearn leaves the seed open, and gives other weights each time.
        defaults={"scoring": "neg_log_loss", "random_state": 0},
        needs_voxels=_always if penalty == "l1" else _never,
        searches="Cs",
        aliases={"C": "Cs"},
    )


def _svc(penalty: str, values: Sequence[Any], **how: Any) -> Model:
    return Model(LinearSVC, {"C": values}, fixed={"penalty": penalty}, defaults={"max_iter": 10_000, "random_state": 0}, **how)


_ALPHAS = np.geomspace(1e-3, 1e4, 8)
_SVC_L2 = _svc("l2", (1, 10, 100), dual=True)
_RIDGE = Model(RidgeCV, {"alphas": [_ALPHAS]}, searches="alphas")
# scikit-learn 1.7 takes the number of values from the parameter for the values.
_N_ALPHAS = "n_alphas" if signature(LassoCV).parameters["alphas"].default is None else "alphas"
_LASSO = Model(LassoCV, {_N_ALPHAS: [30]}, needs_voxels=_always, searches="alphas")
LDA = Model(
    Discriminant,
    defaults={"solver": "lsqr", "shrinkage": "auto"},
    needs_voxels=_unless_isotropic,
    nbytes=_lda_nbytes,
    counts_voxels=True,
)

CLASSIFIERS: Mapping[str, Model] = {
    "svc": _SVC_L2,
    "svc_l2": _SVC_L2,
    "svc_l1": _svc("l1", [TimesMinC(2), TimesMinC(20), TimesMinC(200)], needs_voxels=_always),
    "logistic": _logistic("l2"),
    "logistic_l2": _logistic("l2"),
    "logistic_l1": _logistic("l1"),
    "ridge_classifier": Model(RidgeClassifierCV, {"alphas": [_ALPHAS]}, searches="alphas"),
    "lda": LDA,
    "gnb": Model(GaussianNB, needs_voxels=_always),
    "sgd": Model(SGDClassifier, {"alpha": (1e-4, 1e-3, 1e-2, 1e-1)}, defaults={"random_state": 0}, needs_voxels=_always),
    "dummy_classifier": Model(DummyClassifier, fixed={"strategy": "stratified"}, defaults={"random_state": 0}),
}
"""What :class:`daskdecode.Decoder` knows by name."""

REGRESSORS: Mapping[str, Model] = {
    "ridge": _RIDGE,
    "ridge_regressor": _RIDGE,
    "lasso": _LASSO,
    "lasso_regressor": _LASSO,
    "svr": Model(SVR, {"C": (1, 10, 100)}, fixed={"kernel": "linear"}, defaults={"max_iter": 10_000}),
    "dummy_regressor": Model(DummyRegressor, fixed={"strategy": "mean"}),
}
"""What :class:`daskdecode.DecoderRegressor` knows by name."""
