"""Permutation tests of a decoder: labels change places within runs, everything that looks at labels is done again."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from daskdecode.errors import DecodingError
from daskdecode.lost import ends_in_words
from daskdecode.models.base import BaseDecoder
from daskdecode.models.content import shown
from daskdecode.models.estimators import check_choice
from daskdecode.models.exchange import Exchange, exchangeable, step_of, times_of
from daskdecode.models.labellings import Labellings, folds_stay
from daskdecode.models.null import PermutationTest, class_means, summarise
from daskdecode.models.record import Record, digest_of, fingerprint
from daskdecode.models.samples import Samples

_KIND = "permutation test"


def permutation_test(
    decoder: BaseDecoder,
    X: Any,
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    n_permutations: int = 1000,
    random_state: int = 0,
    exchange: Exchange = "within_run",
    blocks: ArrayLike | None = None,
    confounds: Any = None,
    sample_weight: ArrayLike | None = None,
    sample_mask: ArrayLike | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PermutationTest:
    r"""Test a decoder's score against the scores that it gets when labels change places.

    .. math:: p = \frac{1 + \#\{i : t_i \ge t\}}{1 + m}

    with t the mean score over folds and classes and :math:`t_1 \dots t_m` the same after each permutation. Everything that looks at
    labels is done again for each: screening, tuning, fitting. Support vector machines (squared hinge loss) are solved exactly there, many
    at a time, where liblinear stops within a tolerance; t is then the smaller of the decoder's score and that of the exact solution, so
    that p is never too small for that.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
        Configured; it is not changed and need not be fitted. A regressor's values change places as labels do.
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
    confounds, sample_weight, sample_mask
        As for :meth:`daskdecode.Decoder.fit`. Confounds and weights belong to the samples: they stay where they are when labels move, so
        weights must not be made from the labels. ``blocks`` counts the samples of X, as these do.
    path : path, optional
        ``.npz`` file for what is done so far, written after each batch. A later call with the same data, parameters and versions goes
        on from there, also with more permutations; with others it is refused.
    progress : callable, optional
        Called with (permutations done, permutations in all).

    Returns
    -------
    PermutationTest
        Eager; runs on the active Dask scheduler. Without screening the voxels are read once and all permutations share one Gram matrix
        (ridge, and lda with a fixed shrinkage: in closed form). With screening, permutations sweep over the voxels several at a time, as
        many as the memory budget holds; the voxels stay in memory where it allows that.

    Raises
    ------
    DecodingError
        What :meth:`daskdecode.Decoder.fit` raises; nothing can be exchanged; a score that is not defined; ``path`` holds another test,
        or another run writes to it.

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
    options: dict[str, Any] = {"confounds": confounds, "sample_weight": sample_weight, "sample_mask": sample_mask, "progress": progress}
    options |= {"n_permutations": n_permutations, "random_state": random_state, "exchange": exchange, "blocks": blocks}
    with Record.alone(path, _KIND) as target:
        return permute(decoder, X, y, groups, path=target, **options)


@ends_in_words()
def permute(
    decoder: BaseDecoder,
    X: Any,
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    n_permutations: int,
    random_state: int,
    exchange: Exchange,
    blocks: ArrayLike | None = None,
    confounds: Any = None,
    sample_weight: ArrayLike | None = None,
    sample_mask: ArrayLike | None = None,
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PermutationTest:
    """:func:`permutation_test`, for whoever sees to it that no other run writes to `path`, or only the same one.

    A task of a cluster may run twice at once, where a worker was taken for lost: both write equal values, and none must be refused.
    """
    if not isinstance(decoder, BaseDecoder):
        raise DecodingError(f"permutation_test takes a daskdecode.Decoder or DecoderRegressor; found {type(decoder).__name__}.")
    check_choice("exchange", exchange, ["within_run", "blocks"])
    _require_fixed_folds(decoder.cv)
    n_permutations, random_state = _whole("n_permutations", n_permutations, 1), _whole("random_state", random_state, 0)
    decoder = clone(decoder)
    samples, question, design, plan, voxels = decoder._prepare(
        X, y, groups, confounds=confounds, sample_weight=sample_weight, sample_mask=sample_mask
    )
    _require_weights(samples)
    labels = np.asarray(samples.y)
    taken = slice(None) if samples.rows is None else samples.rows
    times, step_s, blocks = times_of(X), step_of(X), _checked(blocks, exchange, samples.n_given)
    units = exchangeable(
        exchange,
        labels,
        samples.groups,
        None if times is None else times[taken],
        None if blocks is None else blocks[taken],
        step_s[taken] if isinstance(step_s, np.ndarray) else step_s,
    )
    once = design.screening is None and design.within is None and path is None
    samples, voxels = decoder._load(samples, voxels, plan, once=once)
    content = None
    if path is not None:
        more: dict[str, Any] = {"exchangeable": digest_of(units.units), "random_state": random_state}
        more["permuted folds"] = "the same" if folds_stay(decoder.cv, samples, design) else shown(decoder.cv)
        content = fingerprint(decoder.get_params(deep=False), samples, design, **more)
    record = Record(_KIND, path, content)
    labellings = Labellings(decoder, samples, design, plan, voxels)
    observed = record.arrays.get("observed")
    if observed is None:
        observed = class_means(labellings.observed())
    if not np.isfinite(observed).all():
        raise DecodingError("The score is not defined in any fold (test folds have a single class): there is nothing to test.")
    null = record.arrays.get("null", np.empty((0, observed.shape[1])))
    while (done := len(null)) < n_permutations:
        numbers = range(done, min(done + labellings.batch, n_permutations))
        null = np.concatenate([null, class_means(labellings.scores([units.draw(random_state, i) for i in numbers]))])
        record.keep(observed=observed, null=null)
        if progress is not None:
            progress(len(null), n_permutations)
    return summarise(
        observed,
        null[:n_permutations],
        {name: number for name, (number, _) in question.rows.items()},
        scoring=decoder._scoring_name,
        estimator=str(decoder.estimator),
        exchange=exchange,
        random_state=random_state,
        n_arrangements=units.n_arrangements(labels),
        exchanged="values" if question.classes is None else "labels",
    )


def _require_fixed_folds(cv: Any) -> None:
    if getattr(cv, "random_state", 0) is None and getattr(cv, "shuffle", True):
        raise DecodingError(f"{cv} draws other folds at each call, so that no null could be had twice: give it a random_state.")


def _require_weights(samples: Samples) -> None:
    if samples.weight is not None and not samples.weight.all():
        first = samples.numbers(np.flatnonzero(samples.weight == 0))[0]
        raise DecodingError(
            f"sample_weight is 0 for sample {first}: with labels in another order a class "
            "might be left without samples to learn from. Leave samples out by sample_mask= instead."
        )


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
