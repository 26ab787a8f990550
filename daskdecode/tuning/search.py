"""Searches of hyperparameters: a grid, settings drawn at random, or Hyperband; dask-ml spreads them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid, ParameterSampler

from daskdecode.engine.design import Design, TrainingSet, training_sets
from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.lost import ends_in_words
from daskdecode.models.base import BaseDecoder
from daskdecode.models.content import shown
from daskdecode.models.estimators import check_choice
from daskdecode.models.record import Record, digest_of, fingerprint
from daskdecode.models.samples import Samples
from daskdecode.quiet import quiet
from daskdecode.tuning.choice import result_of
from daskdecode.tuning.folds import Scored, score_settings
from daskdecode.tuning.result import SearchResult

Settings = list[dict[str, Any]]

_KIND = "search"

_STREAM = "Or route='stream', for estimators with partial_fit: it reads block by block, whatever the number of samples."


@ends_in_words()
def search(
    decoder: BaseDecoder,
    X: Any,
    param_distributions: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    method: Literal["grid", "random", "hyperband"] = "grid",
    route: Literal["auto", "stream"] = "auto",
    n_iter: int = 10,
    n_passes: int = 1,
    random_state: int = 0,
    confounds: Any = None,
    sample_weight: ArrayLike | None = None,
    sample_mask: ArrayLike | None = None,
    nested: bool = True,
    refit: bool = True,
    error_score: float | Literal["raise"] = "raise",
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    r"""Search the hyperparameters of a decoder, spread over folds and settings by dask-ml on the active Dask scheduler.

    .. math:: \bar s_k = \frac{1}{F} \sum_f \frac{1}{C} \sum_c s_{fck}, \qquad \hat k = \min \arg\max_k \bar s_k

    with :math:`s_{fck}` the score of setting k on the held-out samples of fold f for problem c (one problem for two classes or a
    regression, else each class against the rest). The largest of many scores is optimistic. What choosing in this way is worth is
    measured by doing it again without each fold: :math:`s_f = s_{f \cdot \hat k(f)}`, where :math:`\hat k(f)` is chosen by folds inside
    the training samples of f. Those are ``nested_scores_``, and their mean is the score to report.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
        What to decode with: estimator, folds, screening, scaling, scoring. It is not changed; its own ``param_grid`` and ``tune`` are
        not used.
    X, y, groups
        As for :meth:`daskdecode.Decoder.fit`. For ``"hyperband"`` and ``"stream"`` also what :func:`daskdecode.pool_subjects` returns, and
        groups are what is held out whole: subjects where there are several, else runs.
    param_distributions : dict or list of dict
        Lists of values; for ``"random"`` and ``"hyperband"`` also distributions (with ``rvs``). The names are the estimator's
        (``C``; ``pca__n_components`` of a pipeline's step).
    method : {"grid", "random", "hyperband"}, default "grid"
        ``"grid"``: every setting. ``"random"``: ``n_iter`` of them, those that scikit-learn's ``RandomizedSearchCV`` draws.
        ``"hyperband"``: many settings on few blocks of samples, fewer on more (Li et al. 2018); for estimators with ``partial_fit`` and
        more samples than memory holds. It needs a ``distributed.Client``.
    route : {"auto", "stream"}, default "auto"
        ``"stream"``: samples are read block by block inside tasks and never held together, for pooled subjects (many more samples than
        voxels). For estimators with ``partial_fit``, and for ``dask_ml.linear_model.LogisticRegression``, which ``"logistic"`` then
        stands for (see Notes). Never taken unasked: models that learn block by block are other models. ``"hyperband"`` always is.
    n_iter : int, default 10
        Settings drawn (``"random"``); blocks of samples that the longest-trained models see (``"hyperband"``).
    n_passes : int, default 1
        With ``route="stream"``: how often models with ``partial_fit`` see every block.
    random_state : int, default 0
        Seed of the draws, and of the order of blocks.
    confounds, sample_weight, sample_mask
        As for :meth:`daskdecode.Decoder.fit`; not with ``"hyperband"`` or ``"stream"``.
    nested : bool, default True
        Whether to measure what the choice is worth. It takes as many fits as there are training sets inside training sets (66 more for
        12 runs, times the settings), but no other pass over the data where these fit into memory.
    refit : bool, default True
        Whether to fit ``best_decoder_`` with the best setting (on the stream also ``best_estimator_``); Hyperband has fitted it already.
    error_score : "raise" or float, default "raise"
        What a fit that fails scores. A setting with a NaN ranks last. Not with ``"hyperband"``.
    path : path, optional
        ``.npz`` file for the scores so far, written each time that a twentieth of the fits has ended. A later call with the same data,
        settings, parameters and versions goes on from there, and does only the refit where all are there; with others it is refused. For
        ``"hyperband"`` a folder, made where there is none, with what each model has learnt and scored, a file a model, written as calls of
        ``partial_fit`` end. These are pickled: go on only from folders of your own.
    progress : callable, optional
        Called with (problems done, problems in all) as batches end; not by Hyperband.

    Returns
    -------
    SearchResult

    Raises
    ------
    DecodingError
        Before any data are read: an unknown method or parameter, a grid with distributions, folds that cannot be nested, and whatever
        :meth:`daskdecode.Decoder.fit` refuses; a ``path`` that is damaged, cannot be written, or is written to by another search. Once
        the data are read: ``path`` holds another search. After the search: every fit has failed (also where `error_score` is NaN).
    MemoryBudgetError
        With the arithmetic, where even the smallest steps exceed the decoder's ``memory_budget``.
    ClusterError
        Workers died on the same task again and again, or all of them have gone, or the scheduler has.
    OSError
        ``path`` cannot be written, as on a full disk; names the file.

    Notes
    -----
    Eager. Where a Gram matrix will do (svc, logistic, ridge), settings are fitted on those of each training set, n x n, worked out in the
    passes that :meth:`daskdecode.Decoder.explain` names; else on the voxels, gathered once. Steps of a pipeline that settings share are
    fitted once a training set. Equal to scikit-learn's ``GridSearchCV`` on the voxels with screening as a step of the pipeline.

    On the stream a block is up to 64 MiB of whole runs in random order. Models that learn block by block (all folds, inner folds and
    settings) are trained side by side, each as dask-ml's ``Incremental`` trains one, and a block is read once for up to 32 of them;
    another pass scores them on the groups that were held out. Screening takes one pass for all training sets. For ``"logistic"``
    (``solver="lbfgs"``, L2 penalty on weights and intercept, as scikit-learn's liblinear) every iteration of every fit is a pass over
    the data. Peak memory of a process: for each thread four blocks (fourteen for ``"logistic"``), and three times the models of a chain.

    Peak memory of a worker otherwise: that of :meth:`daskdecode.Decoder.fit`, same settings. With ``path`` every value is looked at once
    more, another pass over data that do not fit into memory (where blocks are screened, the same pass). A search that goes on works out
    anew what training sets see, for those of one batch, but no fit that has been kept.

    References
    ----------
    Varoquaux et al. 2017, NeuroImage 145:166-179 (nested cross-validation); Bergstra & Bengio 2012, JMLR 13:281-305 (random search);
    Li et al. 2018, JMLR 18:185 (Hyperband); Sievert et al. 2019, SciPy proceedings (Hyperband in dask-ml).
    """
    if not isinstance(decoder, BaseDecoder):
        raise DecodingError(f"search takes a daskdecode.Decoder or DecoderRegressor; found {type(decoder).__name__}.")
    check_choice("method", method, ["grid", "random", "hyperband"])
    check_choice("route", route, ["auto", "stream"])
    for name, count in (("n_iter", n_iter), ("n_passes", n_passes)):
        if not _is_count(count):
            raise DecodingError(f"{name}={count!r} must be a whole number, at least 1.")
    if n_passes != 1 and (route != "stream" or method == "hyperband"):
        raise DecodingError("n_passes= is for grid and random searches with route='stream': how often models see the data there.")
    if not isinstance(error_score, int | float) and error_score != "raise":
        raise DecodingError(f"error_score={error_score!r} must be 'raise' or a number.")
    of_samples = {"confounds": confounds, "sample_weight": sample_weight, "sample_mask": sample_mask}
    if method == "hyperband":  # a stream of its own
        given = [name for name, value in of_samples.items() if value is not None]
        if given:
            raise DecodingError(f"method='hyperband' takes no {given[0]}: select, clean and balance the samples of each subject first.")
        if error_score != "raise":
            raise DecodingError("method='hyperband' takes no error_score: a fit that fails ends it.")
        from daskdecode.tuning.pooled.hyperband import search_hyperband  # distributed is not quick to import

        return search_hyperband(
            decoder, X, param_distributions, y, groups, n_iter=int(n_iter), random_state=random_state, nested=nested, path=path
        )
    settings = settings_of(param_distributions, method, int(n_iter), random_state)
    with Record.alone(path, _KIND) as target:
        asked = _Asked(decoder, X, y, groups, of_samples, settings, nested, error_score, target, progress)
        if route == "stream":
            found, design, sets, fit = _by_stream(asked, n_passes=int(n_passes), random_state=random_state)
        else:
            found, design, sets, fit = _by_sweeps(asked)
    if np.isneginf(found.scores[..., 0]).all():
        raise DecodingError(
            f"All {found.failed.sum()} fits failed: there is no setting to choose. error_score='raise' shows the first error."
        )
    result = result_of(found, design, sets, nested, method=method, scoring=decoder._scoring_name, estimator=_name_of(decoder))
    for note in result.notes_:
        warnings.warn(note, stacklevel=3)  # of the decorator too
    if refit:
        result.best_estimator_, result.best_decoder_ = fit(result.best_params_)
    return result


@dataclass(frozen=True)
class _Asked:
    """What is asked of a search whose settings are known."""

    decoder: Any
    X: Any
    y: Any
    groups: Any
    of_samples: dict[str, Any]
    settings: Settings
    nested: bool
    error_score: float | str
    target: Path | None
    progress: Callable[[int, int], None] | None

    def record(self, samples: Samples, design: Design, **more: Any) -> Record | None:
        """Where scores are kept; None where they are not. How settings were come by is not part of its content."""
        if self.target is None:
            return None
        # The decoder's own settings are not used.
        params = {name: value for name, value in self.decoder.get_params(deep=False).items() if name not in ("param_grid", "tune")}
        told = digest_of(np.array([shown(setting)]) for setting in self.settings)
        content = fingerprint(params, samples, design, settings=told, error_score=repr(self.error_score), **more)
        return Record(_KIND, self.target, content)


_Way = tuple[Scored, Design, list[TrainingSet], Callable[[Mapping[str, Any]], tuple[Any, Any]]]
"""Scores, of what, and what trains the best setting on all samples: an estimator or None, and a decoder or None."""


def _by_sweeps(asked: _Asked) -> _Way:
    """Score on Gram matrices or gathered voxels."""
    grid = [{k: [v] for k, v in s.items()} for s in asked.settings]
    decoder = clone(asked.decoder).set_params(param_grid=grid, tune="nested" if asked.nested else "held_out")
    with _told_of_search():
        try:
            samples, _, design, plan, blocks = decoder._prepare(asked.X, asked.y, asked.groups, **asked.of_samples)
        except MemoryBudgetError as error:
            raise MemoryBudgetError(f"{error} {_STREAM}") from error
    samples, blocks = decoder._load(samples, blocks, plan)
    sets = training_sets(design)
    record = asked.record(samples, design)
    found = score_settings(blocks, design, sets, plan, error_score=asked.error_score, record=record, progress=asked.progress)

    def fit(best: Mapping[str, Any]) -> tuple[None, BaseDecoder]:
        chosen = clone(asked.decoder).set_params(param_grid={k: [v] for k, v in best.items()})
        return None, chosen.fit(asked.X, asked.y, asked.groups, **asked.of_samples)

    return found, design, sets, fit


def _by_stream(asked: _Asked, **how: int) -> _Way:
    """Score block by block."""
    from daskdecode.tuning.pooled.stream import Stream  # distributed is not quick to import

    given = [name for name, value in asked.of_samples.items() if value is not None]
    if given:
        raise DecodingError(f"route='stream' takes no {given[0]}: select, clean and balance the samples of each subject first.")
    lenient = asked.error_score != "raise"
    with _told_of_search():
        stream = Stream.of(asked.decoder, asked.X, asked.y, asked.groups, asked.settings, nested=asked.nested, lenient=lenient, **how)
    record = None
    if asked.target is not None:
        record = asked.record(stream.samples, stream.design, hashed=stream.look(hashing=True), route="stream", groups=stream.told, **how)
    found = stream.score(error_score=asked.error_score, record=record, progress=asked.progress)
    return found, stream.design, stream.sets, stream.refit


@contextmanager
def _told_of_search() -> Iterator[None]:
    """Say what a decoder's checks say in the words of a search."""
    try:
        yield
    except DecodingError as error:
        said = str(error).replace("tune='nested'", "nested=True").replace("tune='held_out' (optimistic)", "nested=False (optimistic)")
        raise DecodingError(said) from error


def settings_of(distributions: Any, method: str, n_iter: int, random_state: int) -> Settings:
    """Settings to try, in the order of scikit-learn's searches.

    Raises
    ------
    DecodingError
        Nothing to search, or a distribution in a grid.
    """
    parts = [distributions] if isinstance(distributions, Mapping) else distributions
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not all(isinstance(part, Mapping) for part in parts):
        raise DecodingError(f"param_distributions must be a dict or a list of dicts; found {type(distributions).__name__}.")
    if not any(parts):
        raise DecodingError("param_distributions names no parameter: there is nothing to search. Give some, such as {'C': [0.1, 1, 10]}.")
    parts = [{name: _values(value) for name, value in part.items()} for part in parts]
    drawn = sorted({name for part in parts for name, value in part.items() if hasattr(value, "rvs")})
    if method == "grid" and drawn:
        raise DecodingError(f"A grid needs lists of values, but {drawn[0]!r} is a distribution: use method='random', or give a list.")
    try:
        if method == "grid":
            return [dict(params) for params in ParameterGrid(parts)]
        with quiet("The total space of parameters"):  # Fewer settings than asked for: then all of them.
            return [dict(params) for params in ParameterSampler(parts, n_iter, random_state=random_state)]
    except (TypeError, ValueError) as error:
        raise DecodingError(f"param_distributions={distributions!r}: {error}") from error


def _is_count(n: Any) -> bool:
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and int(n) > 0


def _values(value: Any) -> Any:
    """Let a single value stand for a list of one."""
    if hasattr(value, "rvs"):
        return value
    return list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]


def _name_of(decoder: BaseDecoder) -> str:
    return decoder.estimator if isinstance(decoder.estimator, str) else " ".join(str(decoder.estimator).split())
