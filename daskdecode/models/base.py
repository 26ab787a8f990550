"""What a decoder and a regressor share: checks, folds, the engine, maps, the record, and predictions for new samples."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import dask.array as da
import numpy as np
import xarray as xr
from nibabel.nifti1 import Nifti1Image
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from daskdecode.data.mask import to_nifti
from daskdecode.data.preprocess import standardize_samples
from daskdecode.engine.crossval import CrossValidated, cross_validate
from daskdecode.engine.design import Design
from daskdecode.engine.plan import Engine, Plan, block_nbytes
from daskdecode.engine.registry import Kind
from daskdecode.engine.solvers import decision_values
from daskdecode.engine.sweep import VoxelBlocks
from daskdecode.engine.workers import check_workers_have
from daskdecode.errors import DecodingError
from daskdecode.lost import ends_in_words
from daskdecode.models import outcome
from daskdecode.models.estimators import (
    build_and_candidates,
    check_choice,
    check_on_small_problem,
    check_scorer,
    check_screening,
    effective_percentile,
    resolve_estimator,
    resolve_scorer,
    resolve_screening,
)
from daskdecode.models.outcome import by_name, plain
from daskdecode.models.samples import Quality, Samples, as_samples, by_place, count_bad, names_variables
from daskdecode.models.splitters import among, inner_splits, outer_splits
from daskdecode.models.within import IN_FOLDS, check_confounds, check_weights, within_fold
from daskdecode.models.workload import plan_blocks

_OF_WEIGHTS = ("coef_", "std_coef_", "pattern_", "intercept_", "confound_coef_", "coef_img_", "std_coef_img_", "pattern_img_")


@dataclass(frozen=True)
class Question:
    """What is to be told from the data.

    Attributes
    ----------
    classes : ndarray of int, shape (n_samples,), or None
        Class code of each sample; None in a regression.
    targets : ndarray, shape (n_problems, n_samples)
        -1 or +1 for each binary problem; what is regressed on, one row.
    rows : dict of name to (int, int)
        The problem that scores and maps of a name come from, and the sign to give its maps: two classes share one problem, whose
        weights are positive for the second.
    """

    classes: NDArray[np.intp] | None
    targets: NDArray[Any]
    rows: dict[Any, tuple[int, int]]


class BaseDecoder(ABC, BaseEstimator):  # type: ignore[misc]
    """Cross-validate linear models of voxels, and average the folds' best; see :class:`Decoder` and :class:`DecoderRegressor`."""

    _kind: ClassVar[Kind]
    _default_scoring: ClassVar[str]

    def __init__(
        self,
        estimator: Any = "svc",
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
        self.estimator = estimator
        self.mask = mask
        self.cv = cv
        self.param_grid = param_grid
        self.tune = tune
        self.screening_percentile = screening_percentile
        self.screening_n_features = screening_n_features
        self.scoring = scoring
        self.standardize = standardize
        self.confounds = confounds
        self.estimator_args = estimator_args
        self.memory_budget = memory_budget
        self.engine = engine
        self.progress = progress

    # ------------------------------------------------------------------------------------------------------ what differs

    @abstractmethod
    def _question(self, samples: Samples) -> Question:
        """Turn labels or values into problems; raise where there are none to decode."""

    @abstractmethod
    def _tell(self, samples: Samples, design: Design, found: CrossValidated) -> None:
        """Set the fitted attributes of out-of-fold predictions and their metrics."""

    @property
    def _scoring_name(self) -> str:
        scoring = self.scoring or self._default_scoring
        return scoring if isinstance(scoring, str) else getattr(scoring, "__name__", str(scoring))

    # ------------------------------------------------------------------------------------------------------------- fitting

    @ends_in_words()
    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        confounds: Any = None,
        sample_weight: ArrayLike | None = None,
        sample_mask: ArrayLike | None = None,
    ) -> Self:
        """Cross-validate and average the folds' best models.

        Parameters
        ----------
        X : Dataset, DataArray, dask array, array-like, NIfTI
            A subject dataset (labels and runs are its own); a matrix (n_samples, n_features); or a path, an image or a sequence of them
            together with ``mask=``.
        y : array-like, shape (n_samples,), optional
            Labels, or the values to regress on. Default: the dataset's ``label``.
        groups : array-like, shape (n_samples,), optional
            Runs. Default: the dataset's ``run``.
        confounds : DataFrame or array-like, shape (n_samples, n_confounds), or names, optional
            What each training set regresses out of every voxel, of its own samples and, with the same slopes, of the test samples; a row
            a sample of X. Names are of variables of a dataset. Default: the parameter ``confounds``. After ``"zscore_run"``,
            ``"zscore_sample"`` and ``"psc"``, before ``"zscore_fold"``.
        sample_weight : array-like of float, shape (n_samples,), optional
            Weights of samples in the fits, as scikit-learn's estimators take them (svc: factors of C). Screening, scaling, confounds and
            scores do not know them.
        sample_mask : array-like of bool, shape (n_samples,), or of int, optional
            Samples to take, as a mask or by number. The others neither train, test nor scale. Everything else that is given, also a list of
            folds, counts the samples of X, and so do the results.

        Returns
        -------
        Decoder or DecoderRegressor
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
        samples, question, design, plan, blocks = self._prepare(
            X, y, groups, confounds=confounds, sample_weight=sample_weight, sample_mask=sample_mask
        )
        samples, blocks = self._load(samples, blocks, plan)
        found, counts = cross_validate(blocks, design, plan, self.progress, also=blocks.like(samples.x).map_sum(count_bad))
        quality = Quality(*map(int, counts))
        self._keep(samples, question, design, plan, found)
        self._tell(samples, design, found)
        self.cv_predictions_["sample"] = samples.numbers(self.cv_predictions_["sample"].to_numpy())
        self._record(samples, design, plan, quality, found)
        return self

    @ends_in_words()
    def explain(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None, **of_samples: Any) -> Plan:
        """Say how :meth:`fit` would run on these data, without reading them: route and why, passes, memory, tasks.

        Takes what :meth:`fit` takes, and raises what it would raise about labels, folds, parameters and memory.
        """
        return self._prepare(X, y, groups, **of_samples)[3]

    def _prepare(
        self, X: Any, y: Any, groups: Any, *, confounds: Any = None, sample_weight: Any = None, sample_mask: Any = None
    ) -> tuple[Samples, Question, Design, Plan, VoxelBlocks]:
        """Check everything that can be checked without reading data, and lay out the work."""
        model = resolve_estimator(self.estimator, self._kind)
        build, candidates = build_and_candidates(model, self.param_grid, self.estimator_args)
        scorer = resolve_scorer(self.scoring, self._default_scoring)
        if isinstance(self.estimator, str):
            check_on_small_problem(build, candidates, scorer, self._kind)
        else:
            check_scorer(scorer, build(10, 20))
        check_workers_have((build, candidates, scorer), "What is given as estimator, grid or scoring")
        check_choice("tune", self.tune, ["nested", "held_out"])
        check_choice("engine", self.engine, list(get_args(Engine)))
        check_choice("standardize", self.standardize, ["zscore_run", "zscore_fold", "zscore_sample", "psc", None])
        check_screening(self.screening_percentile, self.screening_n_features)
        of_samples = {"confounds": self._confounds(confounds), "sample_weight": sample_weight, "sample_mask": sample_mask}
        samples = as_samples(X, y, groups, self.mask, **of_samples)
        if samples.y is None:
            raise DecodingError("There are no labels: pass y=, one label a sample.")
        question = self._question(samples)
        y, classes = (samples.y, True) if question.classes is not None else (question.targets[0], False)
        cv = among(self.cv, samples.rows, samples.n_given)
        splits = outer_splits(cv, y, samples.keys, classes=classes)
        nested = self.tune == "nested" and len(candidates) > 1
        design = Design(
            classes=question.classes,
            targets=question.targets,
            outer=splits,
            inner=[inner_splits(cv, train, y, samples.keys, classes=classes) for train, _ in splits] if nested else None,
            candidates=candidates,
            build=build,
            scorer=scorer,
            screening=resolve_screening(self.screening_percentile, self.screening_n_features, samples.grid, samples.x.shape[1]),
            voxel_order=samples.voxel_order,
            within=within_fold(self.standardize, samples),
            sample_weight=samples.weight,
        )
        check_confounds(design)
        check_weights(design, self.estimator)
        plan, blocks = plan_blocks(self._scale(samples), design, model, self.engine, self.memory_budget)
        return samples, question, design, plan, blocks

    def _confounds(self, given: Any) -> Any:
        return self.confounds if given is None else given

    def _load(self, samples: Samples, blocks: VoxelBlocks, plan: Plan, *, once: bool = False) -> tuple[Samples, VoxelBlocks]:
        """Read the data, where the plan keeps them in memory; else leave them lazy, to be read block by block.

        Parameters
        ----------
        samples : Samples
        blocks : VoxelBlocks
        plan : Plan
        once : bool
            Nothing will read them twice: they need not be kept, even where there is room.
        """
        if plan.in_memory and once:
            return samples, blocks
        raw = blocks.like(samples.x)
        samples = replace(samples, x=raw.x.persist() if plan.in_memory else raw.read_whole())
        blocks = blocks.like(self._scale(samples))
        return samples, blocks.keep() if plan.in_memory else blocks

    def _scale(self, samples: Samples) -> da.Array:
        if self.standardize == "zscore_run" and samples.groups is None:
            raise DecodingError("standardize='zscore_run' needs the run of each sample: pass groups=, or standardize='zscore_sample'.")
        how: Any = None if self.standardize == IN_FOLDS else self.standardize
        return standardize_samples(samples.finite(), samples.groups, how)

    def _keep(self, samples: Samples, question: Question, design: Design, plan: Plan, found: CrossValidated) -> None:
        """Set the fitted attributes that both kinds have: models, scores, images."""
        for name in (*_OF_WEIGHTS, "estimators_", "_columns", "_preparations", "optimistic_scores_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        self._rows = question.rows
        self.n_elements_ = self.n_features_in_ = int(samples.x.shape[1])
        self.screening_percentile_ = float(effective_percentile(self.screening_percentile, samples.grid, self.n_elements_))
        self.cv_, self.plan_ = [(samples.numbers(train), samples.numbers(test)) for train, test in design.outer], plan
        self.confound_names_ = list(samples.confound_names)
        self.optimistic_ = self.tune == "held_out" and len(design.candidates) > 1
        self.scoring_ = self._scoring_name
        self._voxels, self._grid = samples.voxels, samples.grid
        self.cv_scores_ = {name: found.scores[:, c].tolist() for name, (c, _) in self._rows.items()}
        if len(design.candidates) > 1:
            self.optimistic_scores_ = {name: found.optimistic[:, c].tolist() for name, (c, _) in self._rows.items()}
        self.cv_params_ = {name: by_name([row[c] for row in found.params]) for name, (c, _) in self._rows.items()}
        if found.models is not None:
            self.estimators_, self._columns, self._preparations = found.models, found.columns, found.preparations
            return
        self.confound_coef_ = found.slopes
        self.coef_, self.std_coef_, self.pattern_ = found.coef, found.std_coef, found.pattern
        self.intercept_ = found.intercepts.mean(axis=0)
        if samples.grid is not None:
            self.coef_img_ = self._images(found.coef, samples.grid, signed=True)
            self.std_coef_img_ = self._images(found.std_coef, samples.grid, signed=False)
            self.pattern_img_ = self._images(found.pattern, samples.grid, signed=True)

    def _images(self, values: Any, grid: xr.Dataset, *, signed: bool) -> dict[Any, Nifti1Image]:
        """One image a name, positive where what it names is higher."""
        return {name: to_nifti(values[c] * (sign if signed else 1), grid) for name, (c, sign) in self._rows.items()}

    def _record(self, samples: Samples, design: Design, plan: Plan, quality: Quality, found: CrossValidated) -> None:
        """Set ``provenance_``, and warn of what a reader of the scores should know."""
        notes = outcome.notes(samples, design.outer, plan, quality, found)
        for note in notes:
            warnings.warn(note, stacklevel=4)  # of the decorator of fit too
        notes = [*notes, *outcome.scaling_note(self.standardize), *check_confounds(design)]
        if self.optimistic_:
            notes = [*notes, "Hyperparameters were chosen on the held-out folds whose scores are reported: the scores are optimistic."]
        self.provenance_: dict[str, Any] = {
            **outcome.describe_samples(samples, quality, classes=design.classes is not None),
            "mask": self.mask if isinstance(self.mask, str) else None,
            "estimator": " ".join(str(self.estimator).split()),
            "estimator_args": {k: plain(v) for k, v in (self.estimator_args or {}).items()},
            "param_grid": [{k: plain(v) for k, v in params.items()} for params in design.candidates],
            "chosen": {c: {k: [plain(v) for v in vs] for k, vs in p.items()} for c, p in self.cv_params_.items()},
            "tune": self.tune,
            "cv": str(self.cv) if isinstance(self.cv, str | int | np.integer) or hasattr(self.cv, "split") else "list of folds",
            "n_folds": len(design.outer),
            "scoring": self.scoring_,
            "standardize": self.standardize,
            "confounds": self.confound_names_,
            "sample_weight": samples.weight is not None,
            "n_left_out": samples.n_given - int(samples.x.shape[0]),
            "engine": self.engine,
            "optimistic_scores": {str(c): list(map(plain, v)) for c, v in getattr(self, "optimistic_scores_", {}).items()},
            "screening_percentile": self.screening_percentile_,
            "screening_n_features": plain(self.screening_n_features),
            "n_fits": plan.workload.n_fits,
            "n_unconverged": found.n_unconverged,
            "warnings": notes,
            "versions": outcome.versions(),
        }

    # ---------------------------------------------------------------------------------------------------------- prediction

    @ends_in_words()
    def _decide(self, samples: Samples) -> NDArray[np.float64]:
        """Decision values (or predictions) of new samples, shape (n_samples, n_problems)."""
        if samples.groups is None:
            samples = replace(samples, groups=np.zeros(samples.x.shape[0], dtype=str))
        place = self._place_of_voxels(samples)
        # As nilearn: there is nothing to scale a single sample by. Within runs that makes no sense, and scaling refuses it.
        alone = samples.x.shape[0] == 1 and self.standardize != "zscore_run"
        x = samples.finite() if alone else self._scale(samples)
        confounds = self._new_confounds(samples)
        if hasattr(self, "estimators_"):
            return self._vote(np.asarray(x.compute(), dtype=np.float64)[:, place], confounds)
        weights = np.empty_like(self.coef_)
        weights[:, place] = self.coef_
        decision = VoxelBlocks(x, block_nbytes(self.memory_budget)).times(weights).compute() + self.intercept_
        if self.confound_coef_ is not None:
            decision += confounds @ self.confound_coef_.T
        return np.asarray(decision)

    def _new_confounds(self, samples: Samples) -> NDArray[np.float64]:
        """Confounds of new samples, (n_samples, n_confounds), in the order of the fit: by name where both have names, else by place."""
        known, names = self.confound_names_, samples.confound_names
        given = np.zeros((samples.x.shape[0], 0)) if samples.confounds is None else samples.confounds
        if len(names) != len(known):
            fitted = f"with {len(known)} confounds" if known else "without confounds"
            raise DecodingError(f"The decoder was fitted {fitted}, but {len(names)} are given for the new samples: pass confounds=.")
        if by_place(len(known)) in (known, names) or known == names:
            return given
        if sorted(known) != sorted(names):
            raise DecodingError(f"The decoder was fitted with the confounds {known}, but those of the new samples are {names}.")
        return given[:, [names.index(name) for name in known]]

    def _vote(self, x: NDArray[np.float64], confounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over folds of what their models say of samples (n_samples, n_voxels), voxels in the order of the fit."""
        votes: list[list[NDArray[np.float64]]] = []
        for fold in zip(self.estimators_, self._columns or [], self._preparations or [], strict=True):
            votes.append([])
            for model, columns, preparation in zip(*fold, strict=True):
                seen = np.ascontiguousarray(x[:, columns])
                votes[-1].append(decision_values(model, seen if preparation is None else preparation(seen, confounds)))
        return np.asarray(np.mean(votes, axis=0).T)

    def _new_samples(self, X: Any, y: Any, groups: Any, confounds: Any) -> Samples:
        """What the methods for new samples are given. Names of confounds hold for them too; values of others' confounds do not."""
        if confounds is None and names_variables(self.confounds):
            confounds = self.confounds
        return as_samples(X, y, groups, self.mask, confounds=confounds)

    def _place_of_voxels(self, samples: Samples) -> NDArray[np.intp]:
        """Columns of the new samples that hold the voxels of the fit, in their order."""
        if samples.x.shape[1] != self.n_elements_:
            raise DecodingError(
                f"X has {samples.x.shape[1]} voxels but the decoder was fitted on {self.n_elements_}: select the same mask."
            )
        if samples.grid is not None and self._grid is not None and not _same_grid(samples.grid, self._grid):
            raise DecodingError("X lies on another voxel grid (shape or affine) than the data that the decoder was fitted on: resample it.")
        place = np.arange(self.n_elements_)
        if samples.voxels is None or self._voxels is None:
            return place
        ours, theirs = np.argsort(self._voxels), np.argsort(samples.voxels)
        if not np.array_equal(self._voxels[ours], samples.voxels[theirs]):
            raise DecodingError("X has other voxels than the decoder was fitted on: select the same mask.")
        place[ours] = theirs
        return place


def _same_grid(a: xr.Dataset, b: xr.Dataset) -> bool:
    return list(a.attrs["shape"]) == list(b.attrs["shape"]) and np.allclose(a.attrs["affine"], b.attrs["affine"], atol=1e-2)
