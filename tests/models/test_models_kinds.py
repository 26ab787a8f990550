"""Kinds of numbers and of names: what is asked is the same question whichever they come in."""

from __future__ import annotations

import numpy as np
import pytest

from daskdecode import Decoder, permutation_test
from daskdecode.errors import DecodingError

N = 36
Y, G = np.tile(["a", "b"], N // 2), np.repeat([1, 2, 10], N // 3)
COUNTS = np.round(1000 * (np.random.default_rng(0).standard_normal((N, 150)) + 0.6 * (Y == "a")[:, None] * (np.arange(150) < 9)))


def scores(x, y=Y, groups=G, **params):
    return Decoder("ridge_classifier", **params).fit(x, y, groups).cv_scores_["a"]


@pytest.mark.parametrize("standardize", ["zscore_run", "zscore_fold", None])
@pytest.mark.parametrize(("dtype", "above"), [(">f4", 0), (">f8", 0), ("longdouble", 0), (">i2", 0), ("uint32", 4_000_000_000), (">i8", 0)])
def test_signals_of_any_kind_score_as_their_float64(dtype, above, standardize):
    """Compiled code takes native float32 and float64 only, and float32 would round 4,000,000,001."""
    x = (COUNTS + above).astype(dtype)
    assert scores(x, standardize=standardize) == scores(x.astype(np.float64), standardize=standardize)


@pytest.mark.parametrize("dtype", ["float16", "longdouble", ">f8", "bool"])
def test_signals_of_any_kind_have_a_fingerprint(dtype, tmp_path):
    x, decoder = (COUNTS / 1000).astype(dtype), Decoder("ridge_classifier", screening_percentile=None)
    permutation_test(decoder, x, Y, G, n_permutations=1, path=tmp_path / "null.npz")
    permutation_test(decoder, x.copy(), Y, G, n_permutations=1, path=tmp_path / "null.npz")
    x[17, 70] = not x[17, 70] if dtype == "bool" else x[17, 70] + 1
    with pytest.raises(DecodingError, match="the data differ"):
        permutation_test(decoder, x, Y, G, n_permutations=1, path=tmp_path / "null.npz")


@pytest.mark.parametrize("standardize", [None, "zscore_fold"])
@pytest.mark.parametrize("estimator", ["ridge_classifier", "gnb"])
def test_constant_voxels_take_no_part_whatever_their_value(estimator, standardize):
    """Not even in screening of data as they are: what is outside the brain is often one number, and need not be 0."""
    options = {"standardize": standardize, "screening_percentile": None, "screening_n_features": 60}
    found = []
    for values in (np.zeros(400), np.random.default_rng(5).uniform(500, 1500, 400)):
        x = np.hstack([np.broadcast_to(values, (N, 400)), COUNTS + 0.1])
        with pytest.warns(UserWarning, match="400 of 550 voxels are constant"):
            found.append(Decoder(estimator, **options).fit(x, Y, np.arange(N) // 9).cv_scores_["a"])
    assert found[0] == pytest.approx(found[1])


def test_runs_are_what_their_names_say():
    order = np.random.default_rng(1).permutation(N)
    expected = scores(COUNTS)
    for names in (["1", "2", "10"], ["01", "1", "10"], ["1", "2", "\u00b2"], [0.1, 0.2, 0.25]):
        assert scores(COUNTS, groups=np.repeat(names, N // 3)) == pytest.approx(expected)
    assert scores(COUNTS[order], Y[order], G[order]) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["svc", "svc_l1", "logistic_l1"])
def test_a_generator_is_shared_by_no_fits(estimator):
    """Scores would depend on which fit was first, and on how many there were before."""
    generator = np.random.RandomState(3)
    decoder = Decoder(estimator, estimator_args={"random_state": generator}, screening_percentile=None)
    first = decoder.fit(COUNTS, Y, G).coef_
    np.testing.assert_array_equal(decoder.fit(COUNTS, Y, G).coef_, first)
    np.testing.assert_array_equal(generator.get_state()[1], np.random.RandomState(3).get_state()[1])
    assert generator.get_state()[2] == np.random.RandomState(3).get_state()[2]


@pytest.mark.parametrize("name", ["y", "groups"])
def test_a_value_that_is_missing_beside_text_is_missing(name):
    """NumPy makes it the word "nan", which would be a class, or a run, of its own."""
    given = [float("nan") if n in (4, 9, 17, 28) else str(v) for n, v in enumerate(Y if name == "y" else G)]
    with pytest.raises(DecodingError, match=f"{name} is missing for 4 samples"):
        scores(COUNTS, **{name: given})


@pytest.mark.parametrize("kind", [list, lambda values: np.array(values, dtype=object)])
@pytest.mark.parametrize("name", ["y", "groups"])
def test_a_number_and_a_text_that_read_alike_are_not_taken_for_one(name, kind):
    numbers = G if name == "groups" else np.searchsorted(["a", "b"], Y)
    given = [str(v) if n > 24 else v for n, v in enumerate(numbers.tolist())]
    with pytest.raises(DecodingError, match=f"{name} holds both the number 1.* and the text '1" if name == "groups" else "the number 0"):
        scores(COUNTS, **{name: kind(given)})
