from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdecode.engine.moments import Screening
from daskdecode.engine.ranking import Candidates, Rank, n_candidates


def chosen_from_blocks(scores, screening, cuts, order):
    """Masks (n_sets, n_problems, n_voxels) in canonical order; the columns of the blocks are in another order."""
    n_sets, n_problems, p = scores.shape
    rank = Rank(lambda x: scores[..., x[0]], n_candidates(screening, p), screening.n_features is not None)
    bounds = [0, *sorted(set(cuts)), p]
    found = reduce(add, [rank(order[None, lo:hi], order[lo:hi]) for lo, hi in pairwise(bounds)])
    assert found.scores.shape == found.voxels.shape == (n_sets * n_problems, min(p, n_candidates(screening, p)))
    return np.array([[found.choose(screening, s * n_problems + c, p) for c in range(n_problems)] for s in range(n_sets)])


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    n_levels=st.sampled_from([2, 3, 5, 1000]),
    n_constant=st.integers(0, 60),
    screening=st.one_of(
        st.integers(1, 80).map(lambda k: Screening(n_features=k)),
        st.sampled_from([0.1, 1, 3.7, 10, 20, 33.3, 50, 66.7, 90, 99, 99.9]).map(lambda q: Screening(percentile=q)),
    ),
    cuts=st.lists(st.integers(1, 70), max_size=6),
)
def test_blocks_choose_what_all_voxels_together_do(seed, n_levels, n_constant, screening, cuts):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, n_levels, size=(2, 3, 71)) / 7.0  # few levels: most scores are tied
    scores[:, :, rng.choice(71, n_constant, replace=False)] = np.nan
    found = chosen_from_blocks(scores, screening, cuts, rng.permutation(71))
    for s, c in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[s, c], screening.keep(scores[s, c]))


def test_only_what_may_still_be_chosen_is_kept():
    scores = np.random.default_rng(0).standard_normal((1, 1000))
    one = Candidates(scores[:, :0], np.zeros((1, 0), np.uint32), 30, last=False)
    voxels = np.arange(1000, dtype=np.uint32)[None]
    for lo in range(0, 1000, 100):
        one = one + Candidates(scores[:, lo : lo + 100], voxels[:, lo : lo + 100], 30, last=False)
        assert one.scores.shape == (1, 30)
    assert set(one.voxels[0]) == set(np.argsort(scores[0])[-30:])


@pytest.mark.parametrize("screening", [Screening(percentile=20), Screening(n_features=3)])
def test_constant_voxels_only_are_refused(screening):
    from daskdecode.errors import DecodingError

    with pytest.raises(DecodingError, match="every voxel is constant"):
        chosen_from_blocks(np.full((1, 1, 40), np.nan), screening, [20], np.arange(40))
